"""The plan of a grid sweep."""

import re
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.sweeps.jobs import InvalidJob, PlannedTrial
from stability.sweeps.plan import Plan, check_count
from tests.support.configs import tiny


def planned(*overrides: str) -> PlannedTrial:
    return PlannedTrial(tiny(*overrides), Path(" ".join(overrides)))


def test_settings_that_vary_together_are_one_factor_with_a_usual_name() -> None:
    levels = ((), ("optimizer.epsilon=0.5", "optimizer.beta2=0.5"))
    trials = tuple(planned(f"seed={seed}", *own) for own in levels for seed in (0, 1))
    plan = Plan(trials, duplicates=1, invalid=(InvalidJob("steps=0", "too small"),))
    assert plan.factors == ("optimizer.epsilon",)
    assert [*plan.cells.values()] == [[*trials[:2]], [*trials[2:]]]
    assert plan.describe(trials[3]) == "epsilon 0.5  seed 1"
    assert plan.jobs == 6


def test_settings_that_change_no_result_are_no_factor() -> None:
    trials = (planned("study=one", "validate_every=5"), planned("study=other", "validate_every=6"))
    assert Plan(trials, duplicates=0, invalid=()).factors == ()


@pytest.mark.parametrize(
    ("value", "or_null", "ending"),
    [
        (0, False, "=0: give a whole number of 1 or more."),
        (True, True, "=True: give a whole number of 1 or more, or null."),
        (None, False, "=None: give a whole number of 1 or more."),
    ],
)
def test_a_count_is_a_whole_number_of_1_or_more(value: object, or_null: bool, ending: str) -> None:
    check_count("setting", 1)
    check_count("setting", None, or_null=True)
    with pytest.raises(StabilityError, match=re.escape(f"setting{ending}")):
        check_count("setting", value, or_null=or_null)
