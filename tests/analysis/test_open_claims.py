"""A study trains what its open claims need, and no more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stability.analysis.claims import Claim, read_claims
from stability.analysis.open_claims import Planned, needed_next
from stability.analysis.rulings import rule
from stability.analysis.trial import Trial, Trials
from tests.support.claims import write_claims
from tests.support.trials import trial

Key = tuple[int, int, int]  # the levels of a and b, and the seed


def run(claims: list[Claim], seeds: int, train: Callable[[int, int, int], Any]) -> tuple[list[list[Key]], Trials]:
    """Train rounds until the study ends. Return them, and all trials."""
    planned = {
        (a, b, s): Planned(s, {"a": a, "b": b}) for a in range(2) for b in range(2) for s in range(seeds)
    }  # fmt: skip
    trained: dict[Key, Trial] = {}
    rounds = []
    while needed := needed_next(claims, Trials(tuple(trained.values())), planned, trained):
        assert not trained.keys() & needed, "none is trained twice"
        rounds.append(needed)
        trained |= {(a, b, s): trial(s, a=a, b=b, **train(a, b, s)) for a, b, s in needed}
    return rounds, Trials(tuple(trained.values()))


def test_a_claim_gets_its_own_cells_and_as_many_seeds_as_it_takes_at_least(tmp_path: Path) -> None:
    claims = read_claims(write_claims(tmp_path, "compare: {a: [0, 1]}, where: {b: 0}, response: per, expect: higher"))
    rounds, trials = run(claims, 20, lambda a, b, s: {"per": 0.2 + 0.3 * a + 0.001 * s})
    assert rounds == [[(a, 0, s) for a in range(2) for s in range(6)]]
    assert [ruling.ruling for ruling in rule(claims, trials, anytime=True)] == ["confirmed"]


def test_a_counterexample_ends_a_claim_about_all_trials_and_another_claim_goes_on(tmp_path: Path) -> None:
    stated = (
        "where: {b: 1}, expect: {all: stable}",
        "compare: {a: [0, 1]}, where: {b: 0}, response: per, expect: higher",
    )
    claims = read_claims(write_claims(tmp_path, *stated))
    rounds, trials = run(claims, 30, lambda a, b, s: {"per": 0.2 + 0.1 * a, "outcome": "exploded" if b else "stable"})
    assert {key for key in rounds[0] if key[1]} == {(a, 1, s) for a in range(2) for s in range(2)}
    assert not any(key[1] for later in rounds[1:] for key in later)
    assert [ruling.ruling for ruling in rule(claims, trials, anytime=True)] == ["refuted", "confirmed"]


def test_a_claim_that_the_seeds_left_cannot_rule_on_gets_none_of_them(tmp_path: Path) -> None:
    claims = read_claims(write_claims(tmp_path, "compare: {a: [0, 1]}, response: per, expect: higher"))
    assert run(claims, 5, lambda a, b, s: {"per": 0.2})[0] == []
    rounds, _ = run(claims, 8, lambda a, b, s: {"per": 0.2 + 0.1 * a * (-1) ** s})
    assert {seed for keys in rounds for _, _, seed in keys} == {*range(6)}, "2 more could not decide"


def test_a_claim_gets_no_more_seeds_if_others_that_show_nothing_put_it_out_of_reach(tmp_path: Path) -> None:
    here = "compare: {a: [0, 1]}, where: {b: 1}, response: per, expect: higher"
    flat = [f"compare: {{a: [0, 1]}}, where: {{b: 0}}, response: {name}, expect: higher" for name in ("per", "steps")]

    def train(a: int, b: int, s: int) -> dict[str, Any]:
        return {"per": 0.2 + a * b * (-0.03 if s == 2 else 0.1)}  # one of the first six seeds says the opposite

    alone, _ = run(read_claims(write_claims(tmp_path, here)), 9, train)
    assert {s for keys in alone for _, b, s in keys if b} == {*range(9)}
    claims = read_claims(write_claims(tmp_path, here, *flat))
    rounds, trials = run(claims, 9, train)
    assert {s for keys in rounds for _, b, s in keys if b} == {*range(6)}
    assert [ruling.ruling for ruling in rule(claims, trials, anytime=True)] == ["inconclusive"] * 3

    everything = Trials(
        tuple(trial(s, a=a, b=b, **train(a, b, s)) for a in range(2) for b in range(2) for s in range(9))
    )
    assert rule(claims, everything, anytime=True)[0].ruling == "inconclusive", "as the other seeds would have shown"


def test_what_the_study_does_not_have_is_not_waited_for(tmp_path: Path) -> None:
    stated = "compare: {a: [0, 2]}, response: per, expect: higher", "where: {c: 1}, expect: {all: stable}"
    assert run(read_claims(write_claims(tmp_path, *stated)), 9, lambda a, b, s: {})[0] == []


@pytest.mark.slow
def test_without_an_effect_at_most_one_study_in_twenty_rules_wrongly(tmp_path: Path) -> None:
    stated = [f"compare: {{a: [0, 1]}}, where: {{b: {b}}}, response: per, expect: higher" for b in range(2)]
    claims = read_claims(write_claims(tmp_path, *stated, "compare: {b: [0, 1]}, response: per, expect: {same: 0.5}"))
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        _, trials = run(claims, 16, lambda a, b, s: {"per": 0.5 + 0.1 * float(rng.normal())})
        wrong += any(ruling.ruling != "inconclusive" for ruling in rule(claims, trials, anytime=True)[:2])
    assert wrong <= 10  # 100 draws at 5 % are above this in 1 % of cases
