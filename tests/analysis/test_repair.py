"""The race of changes: on simulated trainings whose boundary between healthy and failed is known."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from stability.analysis.remedies import remedies
from stability.analysis.repair import UNCHANGED, Job, Race, check_failed, next_best, race
from stability.analysis.tried import Tried
from stability.diagnosis.verdict import Verdict

SETTINGS: dict[str, Any] = {"settings.lr": 3.0, "settings.eps": 1e-8, "settings.clip": None}
TOO_HIGH = Verdict("exploded", "rate_too_high", evidence={})
STABLE = Tried("stable", None, False, 0.1, 100, "")
EXPLODED = Tried("exploded", "rate_too_high", True, math.nan, 10, "")
CRASHED = Tried("crashed", None, None, math.nan, 0, "")

Training = Callable[[Mapping[str, Any], int], Tried]


def run(training: Training, settings: Mapping[str, Any] = SETTINGS, seeds: int = 2) -> tuple[Race, dict[Job, Tried]]:
    """Race the changes of simulated trainings to the end."""
    changes = remedies(TOO_HIGH, settings, 1.0)
    results: dict[Job, Tried] = {}
    while (found := race(changes, results, 0, seeds)).needed:
        assert results.keys().isdisjoint(found.needed)
        results |= {job: training({**settings, **dict(job.change.settings)}, job.seed) for job in found.needed}
    return found, results


def answer(found: Race) -> str:
    return str(found.answer) if found.answer else ""


def test_the_smallest_change_wins_and_is_confirmed_on_fresh_seeds() -> None:
    found, results = run(lambda s, seed: STABLE if s["settings.lr"] < 2 else EXPLODED)
    assert answer(found) == "settings.lr=1"
    assert [job.seed for job in results if job.change == found.answer] == [0, 1, 2]
    assert len(results) == 3, "one on the first seed, two to confirm"


def test_a_larger_change_is_found_where_smaller_ones_fail() -> None:
    found, results = run(lambda s, seed: STABLE if s["settings.lr"] < 0.2 else EXPLODED)
    assert answer(found) == "settings.lr=0.1"
    trainings = sum(result.steps for result in results.values()) / STABLE.steps
    assert trainings < 4.5, "those that fail end early"


def test_another_role_is_found() -> None:
    found, _ = run(lambda s, seed: STABLE if s["settings.clip"] else EXPLODED)
    assert answer(found) == "settings.clip=1"


def test_what_is_healthy_by_chance_is_not_confirmed_and_the_race_goes_on() -> None:
    def training(s: Mapping[str, Any], seed: int) -> Tried:
        return STABLE if s["settings.lr"] < 0.5 or (s["settings.lr"] < 2 and seed == 0) else EXPLODED

    found, results = run(training)
    assert answer(found) == "settings.lr=0.3"
    assert [job.seed for job in results if str(job.change) == "settings.lr=1"] == [0, 1, 2]


def test_two_roles_are_changed_together_when_none_helps_alone() -> None:
    def training(s: Mapping[str, Any], seed: int) -> Tried:
        if s["settings.lr"] <= 1 and s["settings.clip"]:
            return STABLE
        return Tried("undecided", None, True, 0.9, 100, "") if s["settings.lr"] <= 1 else EXPLODED

    found, _ = run(training)
    assert answer(found) == "settings.lr=1 settings.clip=1"


def test_what_went_too_far_rules_out_what_goes_farther() -> None:
    def training(s: Mapping[str, Any], seed: int) -> Tried:
        return EXPLODED if s["settings.lr"] > 1 else Tried("undecided", "step_too_small", True, 1.0, 100, "")

    _, results = run(training)
    tried = {str(job.change) for job in results}
    assert "settings.lr=1" in tried
    assert not tried & {"settings.lr=0.3", "settings.lr=0.1", "settings.lr=0.03"}


def test_when_nothing_helps_the_race_ends_and_crashes_are_no_successes() -> None:
    found, results = run(lambda s, seed: CRASHED)
    assert not found.answer
    assert {job.seed for job in results} == {0}
    found, results = run(lambda s, seed: EXPLODED)
    assert not found.answer
    assert any(len(job.change.roles) == 2 for job in results)


def test_the_race_goes_on_from_any_subset_of_its_results_as_if_it_had_not_been_stopped() -> None:
    def training(s: Mapping[str, Any], seed: int) -> Tried:
        return STABLE if s["settings.lr"] < 0.2 else EXPLODED

    found, results = run(training)
    changes = remedies(TOO_HIGH, SETTINGS, 1.0)
    known = dict([*results.items()][::2])
    while (again := race(changes, known, 0, 2)).needed:
        known |= {job: results[job] for job in again.needed}
    assert again == found
    assert known == results


def test_the_next_best_is_the_healthy_change_with_the_lowest_error_rate() -> None:
    def training(s: Mapping[str, Any], seed: int) -> Tried:
        healthy = s["settings.lr"] < 0.2 or (s["settings.lr"] < 2 and seed == 0)
        return STABLE._replace(error_rate=s["settings.lr"] / 10) if healthy else EXPLODED

    found, results = run(training)
    assert found.answer
    assert str(next_best(found.answer, results | {Job(UNCHANGED, 0): STABLE}, 0)) == "settings.lr=0.3"
    assert next_best(found.answer, {}, 0) is None


def test_failed_has_to_fail_in_two_of_three_seeds() -> None:
    def check(*trials: Tried) -> tuple[Job | None, str]:
        return check_failed({Job(UNCHANGED, 5 + number): tried for number, tried in enumerate(trials)}, 5)

    assert check() == (Job(UNCHANGED, 5), "")
    assert check(EXPLODED) == (Job(UNCHANGED, 6), "")
    assert check(EXPLODED, EXPLODED) == check(EXPLODED, STABLE, EXPLODED) == (None, "")
    assert check(STABLE, EXPLODED) == (Job(UNCHANGED, 7), "")
    assert check(EXPLODED._replace(outcome="undecided", cause="step_too_small")) == (None, ""), "in all seeds alike"
    assert "FAILED is healthy in 2 of 3 seeds, and failed in 1" in check(STABLE, EXPLODED, STABLE)[1]
    assert "FAILED is healthy in 2 of 2 seeds, and did not fail" in check(STABLE, STABLE)[1]
    assert check(CRASHED) == (None, "FAILED crashed in 1 of 1 trial: mend what the error says first.")
    assert check(EXPLODED, CRASHED) == (Job(UNCHANGED, 7), ""), "a crash says nothing of the training"
    assert check(EXPLODED, CRASHED, EXPLODED) == (None, "")
    assert check(EXPLODED, CRASHED, STABLE) == (Job(UNCHANGED, 8), "")
    assert check(EXPLODED, CRASHED, STABLE, EXPLODED) == (None, "")
    assert "crashed in 2 of 3 trials" in check(EXPLODED, CRASHED, CRASHED)[1]
