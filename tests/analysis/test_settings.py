"""Factors, seeds and names, told from the settings of runs that somebody else has made."""

from collections.abc import Sequence
from typing import Any

import pytest

from stability.analysis.effects import effects
from stability.analysis.settings import levels_of, merged, with_factors
from stability.analysis.trial import Trial, Trials
from stability.core.errors import StabilityError
from tests.support.trials import trial


def runs(*settings: dict[str, Any], healthy: Sequence[bool] = ()) -> list[Trial]:
    good = healthy or [True] * len(settings)
    return [
        trial(0, name=f"run{i}", factors=levels_of(own), healthy=good[i], ours=False) for i, own in enumerate(settings)
    ]


def grid(**levels: list[Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}]
    for name, own in levels.items():
        found = [{**one, name: level} for one in found for level in own]
    return found


def test_what_differs_is_a_factor_and_the_seed_is_none() -> None:
    found = with_factors(runs(*grid(lr=[0.1, 1.0], seed=[3, 4], epochs=[5])))
    assert found.factors == {"lr": (0.1, 1.0)}
    assert [t.seed for t in found.trials] == [3, 4, 3, 4]
    assert found.trials[0].factors == {"lr": 0.1, "epochs": 5}
    assert (found.notes, found.bound, found.left_out) == ((), {}, ())


@pytest.mark.parametrize(
    "name", ["trainer.seed", "random_state", "args/manual_seed", "random-seed", "np_seed", "cfg.seed_everything"]
)
def test_a_seed_is_known_by_its_name(name: str) -> None:
    found = with_factors(runs(*({"lr": lr, name: seed} for lr in (1, 2) for seed in (0, 1))))
    assert [t.seed for t in found.trials] == [0, 1, 0, 1]
    assert [*found.factors] == ["lr"]


def test_texts_are_the_levels_that_they_stand_for() -> None:
    texts = {"a": "1e-3", "b": "True", "c": "null", "d": "[1, 2]", "e": "adam", "f": " 7 ", "g": "nan", "h": "1_000"}
    expected = {"a": 0.001, "b": True, "c": None, "d": (1, 2), "e": "adam", "f": 7, "g": "nan", "h": "1_000"}
    assert levels_of(texts) == expected
    assert levels_of({"x": {"y": [1, {"z": 2}]}, "n": float("nan")}) == {"x.y": (1, '{"z": 2}'), "n": "nan"}


def test_without_a_seed_an_effect_has_no_interval() -> None:
    found = with_factors(runs(*grid(lr=[0.1, 1.0], k=[1, 1, 1]), healthy=[True] * 3 + [False] * 3))
    assert [t.seed for t in found.trials] == [None] * 6
    assert found.notes == (
        "No setting is known as the seed, so a difference between runs cannot be told from chance. --seed NAME says "
        "which setting it is.",
    )
    (effect,) = (e for e in effects(found) if e.response == "healthy" and e.kind == "difference")
    assert (effect.effect, effect.matches, effect.seeds) == (-1, 3, 1)
    assert effect.p != effect.p


def test_the_seed_can_be_named() -> None:
    made = runs(*grid(lr=[0.1, 1.0], repeat=[0, 1]))
    assert [t.seed for t in with_factors(made, seed="repeat").trials] == [0, 1, 0, 1]
    with pytest.raises(StabilityError, match=r"--seed reps: no run has that setting. There are lr, repeat."):
        with_factors(made, seed="reps")
    with pytest.raises(StabilityError, match=r"--seed lr: a seed is a whole number, and a run has 0.1."):
        with_factors(made, seed="lr")


def test_seeds_that_are_never_shared_are_no_pairs() -> None:
    found = with_factors(runs(*({"lr": lr, "seed": 10 * lr + i} for lr in (1, 2) for i in range(3))))
    assert {t.seed for t in found.trials} == {None}
    assert "Each run has seed of its own, so no two runs share a seed" in found.notes[0]


def test_of_several_seeds_the_plain_one_is_taken() -> None:
    found = with_factors(runs(*grid(lr=[1, 2], data_seed=[0, 1], seed=[0, 1])))
    assert {*found.factors} == {"lr", "data_seed"}
    assert found.notes == ("seed is taken for the seed, and data_seed for a factor. --seed NAME changes that.",)
    together = with_factors(runs(*({"lr": lr, "seed": s, "data_seed": s} for lr in (1, 2) for s in (0, 1))))
    assert {*together.factors} == {"lr"}
    assert together.notes == ("data_seed always changes with the seed.",)


def test_settings_that_change_together_are_one_factor() -> None:
    pairs = [{"lr": lr, "wd": 10 * lr, "warmup": 100 if lr == 1 else 7, "seed": s} for lr in (1, 2) for s in (0, 1)]
    found = with_factors(runs(*pairs))
    assert {*found.factors} == {"lr"}
    assert found.bound == {"lr": ("wd", "warmup")}
    assert found.notes[0].startswith("wd and warmup always change with lr: their effects cannot be told apart")
    assert {e.tied for e in effects(found)} == {("wd", "warmup")}


def test_a_random_search_ties_nothing() -> None:
    found = with_factors(runs(*({"lr": 0.1 + i, "wd": 3.7 * i, "seed": 0} for i in range(30))))
    assert {*found.factors} == {"lr", "wd"}
    assert found.bound == {}


def test_what_only_names_a_run_is_no_factor() -> None:
    settings = [
        {"lr": lr, "seed": s, "output_dir": f"out/{lr}-{s}", "run_name": f"{lr}", "logger.save_dir": f"a{lr}"}
        for lr in (1, 2)
        for s in (0, 1)
    ]
    found = with_factors(runs(*settings))
    assert {*found.factors} == {"lr"}
    assert found.notes == ("output_dir, run_name and logger.save_dir only name runs, and are no factors.",)


def test_a_setting_of_two_types_is_said() -> None:
    found = with_factors(runs(*grid(lr=[0.1, 1.0, "auto"], seed=[0, 1])))
    assert found.factors["lr"] == (0.1, 1.0, "auto")
    assert found.notes == ("lr is a number in 4 runs and a text in 2 runs (auto).",)


def test_runs_of_another_program_are_left_out() -> None:
    made = runs(*grid(lr=[1, 2], wd=[0, 1], seed=[0, 1]), {"lr": 1, "trees": 5, "depth": 3})
    found = with_factors(made)
    assert len(found.trials) == 8
    ((place, reason),) = found.left_out
    assert (place.name, reason) == (
        "run8", "of another program: it has 1 setting of the other runs, and 2 of its own"
    )  # fmt: skip
    assert [t.name for t in with_factors(made, named=["trees"]).trials] == ["run8"]


def test_a_run_that_was_started_again_counts_once() -> None:
    found = with_factors(runs({"lr": 1, "seed": 0}, {"lr": 2, "seed": 0}, {"lr": 1, "seed": 0}))
    assert [t.name for t in found.trials] == ["run1", "run2"]
    assert [reason for _, reason in found.left_out] == ["a later run has the same settings and seed"]


def test_a_trial_that_is_in_two_places_counts_once() -> None:
    first, second = trial(0, x=1), trial(0, x=1, name="again")
    both = merged([Trials((first,), notes=("a",)), Trials((second, trial(1, x=1)), notes=("a",))])
    assert len(both.trials) == 2
    assert both.notes == ("a",)
    assert both.left_out[0][1] == "the same trial as another one, which is counted once"
