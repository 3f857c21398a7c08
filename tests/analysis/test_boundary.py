"""The largest healthy learning rate, from made-up trials and from simulated searches whose boundary is known."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stability.analysis.boundary import LR, Boundary, as_rows, boundaries
from stability.analysis.trial import Trial, Trials
from stability.sweeps.bisection import Limits, next_value
from tests.support.trials import trial

SEARCH = Limits(start=0.01, lowest=1e-4, highest=10, tolerance=1.35)


def tried(lr: float, outcome: str, seed: int = 0, **factors: Any) -> Trial:
    """A trial at a learning rate; that of the day layers is the same if not given."""
    day = factors.pop("lr_max_day", lr)
    healthy = outcome in ("stable", "slow")
    rates = {"schedule__lr_max": lr, "schedule__lr_max_day": day}
    return trial(seed, outcome=outcome, healthy=healthy, **rates, **factors)


def found(*trials: Trial) -> list[Boundary]:
    return boundaries(Trials(trials))


def one(outcomes: str, seed: int = 0) -> list[Trial]:
    """A seed's trials at the rates 1, 2, 4 …, an outcome a letter."""
    words = {"s": "stable", "l": "slow", "u": "undecided", "b": "blank_collapse", "m": "mode_collapse"}
    words |= {"e": "exploded", "n": "non_finite", "d": "bad_data"}
    return [tried(2.0**i, words[letter], seed) for i, letter in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "low", "high", "again"),
    [
        ("sse", 2, 4, ()),
        ("slmn", 2, 4, ()),
        ("ubse", 4, 8, ()),  # too low at first
        ("sbu", 1, 2, ()),  # above a healthy rate, what has learned nothing is too high
        ("ssl", 4, math.inf, ()),
        ("uub", 0, math.inf, ()),
        ("uuee", 0, 4, ()),
        ("nee", 0, 1, ()),
        ("seses", 1, 2, (4, 16)),
        ("usdse", 8, 16, ()),  # bad data are not the rate's fault
    ],
)
def test_a_seeds_boundary_lies_in_its_bracket(outcomes: str, low: float, high: float, again: tuple[float, ...]) -> None:
    (boundary,) = found(*one(outcomes))
    (bracket,) = boundary.brackets
    assert (bracket.low, bracket.high, bracket.again) == (low, high, again)
    assert (boundary.low, boundary.high) == pytest.approx((low, high))
    assert boundary.value == pytest.approx(math.sqrt(low * high)) or (
        math.isnan(boundary.value) and (not low or high > 99)
    )


def test_the_interval_over_seeds_is_students_t_of_the_brackets_middles() -> None:
    (boundary,) = found(*one("sseee", 0), *one("sssse", 1), *one("seeee", 2))
    middles = np.log([math.sqrt(2 * 4), math.sqrt(8 * 16), math.sqrt(1 * 2)])
    assert boundary.value == pytest.approx(stats.gmean(np.exp(middles)))
    error = math.sqrt((np.var(middles, ddof=1) + math.log(2) ** 2 / 12) / 3)
    low, high = stats.t.interval(0.95, 2, middles.mean(), error)
    assert (boundary.low, boundary.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert boundary.seeds == 3
    assert boundary.notes == ()


def test_the_interval_is_never_narrower_than_the_brackets() -> None:
    (boundary,) = found(*(t for seed in range(20) for t in one("sse", seed)))
    assert (boundary.low, boundary.high) == pytest.approx((2, 4))


def test_open_brackets_have_no_mean() -> None:
    (boundary,) = found(*one("sse", 0), *one("sss", 1), *one("ses", 2))
    assert math.isnan(boundary.value)
    assert (boundary.low, boundary.high) == (1, math.inf)
    assert boundary.notes == (
        "healthy up to the largest value tried in 1 of 3 seeds",
        "healthy again above the boundary in 1 of 3 seeds",
    )
    (boundary,) = found(*one("eee", 0), *one("sse", 1))
    assert math.isnan(boundary.value)
    assert (boundary.low, boundary.high) == (0, 4)
    assert boundary.notes == ("no healthy value in 1 of 2 seeds",)


def test_every_cell_of_the_other_factors_has_its_boundary() -> None:
    trials = [
        tried(lr, "stable" if lr < limit else "exploded", seed, optimizer__epsilon=epsilon, aug__max_cut=3)
        for epsilon, limit in ((0.1, 3), (1e-8, 0.5))
        for seed in (4, 2)
        for lr in (0.1, 1, 10)
    ]
    single = tried(1, "stable", optimizer__epsilon=1e-4, aug__max_cut=3)
    small, large = found(*trials, single)  # at one rate there is no boundary
    assert (small.cell, large.cell) == ({"optimizer.epsilon": 1e-8}, {"optimizer.epsilon": 0.1})
    assert [(b.seed, b.low, b.high) for b in small.brackets] == [(2, 0.1, 1), (4, 0.1, 1)]
    assert [(b.seed, b.low, b.high) for b in large.brackets] == [(2, 1, 10), (4, 1, 10)]
    days = found(*(tried(lr, "stable", lr_max_day=day) for lr in (0.1, 1) for day in (0.01, 0.1)))
    assert [boundary.cell for boundary in days] == [{"schedule.lr_max_day": 0.01}, {"schedule.lr_max_day": 0.1}]
    assert found() == []


def test_a_table_of_boundaries_has_short_names_and_notes() -> None:
    trials = [tried(lr, "stable" if lr < 1 else "exploded", optimizer__epsilon=e) for lr in (0.1, 1) for e in (1e-8, 1)]
    assert as_rows(found(*trials), LR) == [
        {
            "epsilon": epsilon, "lr": "0.316", "low": "0.1", "high": "1", "brackets": "0.1 to 1",
            "notes": "one seed: no interval",
        }
        for epsilon in ("1e-08", "1")
    ]  # fmt: skip
    (row,) = as_rows(found(tried(0.01, "undecided"), tried(0.1, "undecided")), "settings.rate")
    assert (row["rate"], row["low"], row["high"]) == ("nan", "0", "inf")
    assert "no healthy value in 1 of 1 seeds" in row["notes"]


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0])
def test_intervals_hold_the_truth_of_simulated_searches(spread: float, seeds: int) -> None:
    """The spread of the seeds' boundaries is in units of the natural logarithm; a bracket is 0.29 wide."""
    rng = np.random.default_rng(seeds)
    held, studies = 0, 150
    for _ in range(studies):
        center = rng.uniform(math.log(0.02), math.log(2))
        trials = []
        for seed, limit in enumerate(np.exp(rng.normal(center, spread, seeds))):
            outcomes: dict[float, str] = {}
            while (rate := next_value(outcomes, SEARCH)) is not None:
                outcomes[rate] = "stable" if rate < limit else "exploded"
            trials += [tried(rate, outcome, seed) for rate, outcome in outcomes.items()]
        (boundary,) = found(*trials)
        held += boundary.low <= math.exp(center) <= boundary.high
    assert held / studies >= 0.92  # 150 studies: ± 0.035
    assert spread < 1 or seeds == 2 or held < studies  # nor are they far too wide
