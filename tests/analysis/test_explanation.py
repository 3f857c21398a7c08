"""The search for the smallest cause: on simulated trainings whose causes are known."""

import math
import random
import re
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest

from stability.analysis.beliefs import Difference, Job, Mixture
from stability.analysis.bets import Counts, claims_made, e_value, level_of
from stability.analysis.explanation import Explanation, Flip, _hitting_sets, explain, role_of

Cause = frozenset[str]


def of(count: int) -> list[Difference]:
    """Differences a, b, c …, two in a group."""
    return [Difference("abcdefghijkl"[i], "bad", "good", f"group {i // 2}") for i in range(count)]


def run(
    differences: Sequence[Difference],
    rate: Callable[[Mixture], float | None],
    *,
    seed: int = 0,
    budget: int = 3000,
    invalid: Sequence[Mixture] = (),
) -> tuple[Explanation, dict[Job, bool | None]]:
    """Experiment on trainings that fail at a rate that the mixture has; None for one that crashes."""
    outcomes: dict[Job, bool | None] = {}
    while (found := explain(differences, outcomes, invalid)).needed and len(outcomes) < budget:
        assert outcomes.keys().isdisjoint(found.needed)
        assert len({*found.needed}) == len(found.needed)
        for job in found.needed[: budget - len(outcomes)]:
            chance = random.Random(f"{seed} {sorted(job.mixture.failed)} {job.mixture.between} {job.seed}").random()
            fails = rate(job.mixture)
            outcomes[job] = None if fails is None else chance < fails
    return explain(differences, outcomes, invalid), outcomes


def planted(causes: Sequence[str], high: float = 1, low: float = 0) -> Callable[[Mixture], float]:
    """The rate of trainings that fail if all of the letters of one of these causes are there."""
    return lambda mixture: high if any({*cause} <= mixture.failed for cause in causes) else low


def sets(found: Sequence[Cause]) -> set[str]:
    return {"".join(sorted(names)) for names in found}


@pytest.mark.parametrize(
    ("causes", "cures"),
    [
        (["a"], {"a"}),
        (["bc"], {"b", "c"}),
        (["a", "d"], {"ad"}),
        (["ab", "f"], {"af", "bf"}),
        (["ab", "bc", "ca"], {"ab", "bc", "ac"}),
        (["abcdef"], {*"abcdef"}),
    ],
)
def test_causes_alone_and_together_are_found_with_all_their_cures(causes: list[str], cures: set[str]) -> None:
    found, outcomes = run(of(6), planted(causes))
    assert found.confirmed
    assert sets(found.sufficient) == {"".join(sorted(cause)) for cause in causes}
    assert sets(found.cures) == cures
    assert len(outcomes) < 100
    for name in "abcdef":
        own = [cause for cause in causes if name in cause]
        assert role_of(name, found).kind == ("alone" if name in own else "together" if own else "none")
        assert sets(role_of(name, found).others) == (set() if name in own else {c.replace(name, "") for c in own})


def test_what_is_confirmed_is_true_in_95_of_100_experiments_and_most_are_exact() -> None:
    """With failures by chance, and also where one value protects, which the search does not expect."""
    wrong = exact = 0
    for seed in range(60):
        rng = random.Random(seed)
        letters = rng.sample("abcdef", 4)
        causes = rng.choice([[letters[0]], ["".join(letters[:2])], [letters[0], "".join(letters[1:3])]])
        high, low = rng.choice([(1, 0), (0.8, 0.1)])
        plain, protects = planted(causes, high, low), rng.random() < 0.2

        def rate(mixture: Mixture, plain=plain, low=low, shield=letters[3] if protects else "-") -> float:  # type: ignore[no-untyped-def]
            return float(low if shield in mixture.failed and len(mixture.failed) < 4 else plain(mixture))

        found, _ = run(of(6), rate, seed=seed, budget=600)
        fails, healthy = ([rate(c.mixture) for c in found.claims if c.fails is side] for side in (True, False))
        wrong += any(
            rate(c.mixture) <= max(healthy) if c.fails else rate(c.mixture) >= min(fails)
            for c in found.claims
            if c.holds
        )
        exact += protects or (found.confirmed and sets(found.sufficient) == {"".join(sorted(c)) for c in causes})
    assert wrong <= 3
    assert exact >= 54


def test_an_experiment_that_is_stopped_at_any_time_claims_nothing_wrong_and_goes_on() -> None:
    whole, outcomes = run(of(5), planted(["a", "bc"], 0.9, 0.1), seed=3)
    assert whole.confirmed
    again: dict[Job, bool | None] = {}
    for job, failed in outcomes.items():
        found = explain(of(5), again)
        assert job in found.needed
        assert all(planted(["a", "bc"])(claim.mixture) == claim.fails for claim in found.claims if claim.holds)
        again[job] = failed
    assert explain(of(5), again) == whole


def test_with_a_budget_of_three_nothing_is_claimed() -> None:
    found, _ = run(of(4), planted(["a"]), budget=3)
    assert found.needed
    assert found.stage == "sides"
    assert {role_of(name, found).kind for name in "abcd"} == {"undecided"}


@pytest.mark.parametrize(
    ("high", "low", "problem"),
    [
        (0, 0, "FAILED does not fail again: FAILED failed in 0 of 8 trials, and HEALTHY in 0 of 4."),
        (1, 1, "HEALTHY fails too: FAILED failed in 4 of 4 trials, and HEALTHY in 8 of 8."),
        (0.5, 0.5, "The two fail about as often"),
    ],
)
def test_two_that_do_not_differ_in_their_outcome_are_told_after_the_first_seeds(
    high: float, low: float, problem: str
) -> None:
    found, outcomes = run(of(4), planted(["a"], high, low), seed=1)
    assert found.problem.startswith(problem)
    assert len(outcomes) <= 48
    assert not found.claims


def test_two_that_were_given_the_wrong_way_round_are_not_said_to_fail_as_often() -> None:
    found, _ = run(of(4), lambda mixture: 0.3 if mixture.failed else 0.7, seed=3)
    failed, healthy = (int(text) for text in re.findall(r"in (\d+) of", found.problem))
    assert found.problem.startswith("HEALTHY fails more often than FAILED: FAILED failed in ")
    assert failed < healthy


def test_crashes_are_no_failures() -> None:
    def rate(mixture: Mixture) -> float | None:
        return None if mixture.failed == {"a", "b"} else planted(["ab"])(mixture)

    found, outcomes = run(of(4), rate)  # the one sufficient set cannot be trained
    assert not found.complete
    assert not found.confirmed
    assert sets(found.sufficient) == set()
    assert sets(found.cures) == {"a", "b"}
    assert sum(failed is None for failed in outcomes.values()) == 3
    crashed, _ = run(of(4), lambda mixture: None if mixture.failed else 0)
    assert crashed.problem == "FAILED crashed in 4 of 4 trials."


def test_an_invalid_mixture_is_passed_over() -> None:
    without_a = Mixture(frozenset("bcd"))
    found, outcomes = run(of(4), planted(["b"]), invalid=[without_a, Mixture(frozenset("a"))])
    assert {job.mixture for job in outcomes}.isdisjoint([without_a, Mixture(frozenset("a"))])
    assert sets(found.sufficient) == {"b"}
    assert found.confirmed


def test_a_number_flips_between_two_values() -> None:
    rate = Difference("rate", 1.0, 1e-4, "g")
    noise = Difference("noise", 0.0, 8, "g")
    layers = Difference("layers", 9, 2, "h")

    def fails(mixture: Mixture) -> float:
        values = {d.name: d.failed if d.name in mixture.failed else d.healthy for d in (rate, noise, layers)}
        values |= dict([mixture.between] if mixture.between else [])
        return float(values["rate"] > 0.02 and values["noise"] < 3 and values["layers"] >= 5)

    found, _ = run([rate, noise, layers], fails)
    assert found.confirmed
    assert role_of("rate", found).others == (frozenset({"noise", "layers"}),)
    by_name = {flip.name: flip for flip in found.flips}
    assert by_name["rate"].healthy < 0.02 < by_name["rate"].fails <= 2 * by_name["rate"].healthy
    assert by_name["noise"].fails < 3 < by_name["noise"].healthy <= 2 * by_name["noise"].fails
    assert by_name["layers"] == Flip("layers", frozenset({"rate", "noise"}), 4, 5, holds=True)
    assert all(flip.holds for flip in found.flips)


def test_an_infinite_value_has_no_values_between() -> None:
    found, _ = run([Difference("a", math.inf, 0.1, "a")], planted(["a"]))
    assert found.confirmed
    assert sets(found.sufficient) == {"a"}
    assert not found.flips


def test_a_number_near_whose_flip_failures_come_by_chance_is_bracketed_by_values_that_are_sure() -> None:
    rate = Difference("rate", 1.0, 1e-4, "g")

    def fails(mixture: Mixture) -> float:
        value = mixture.between[1] if mixture.between else 1.0 if mixture.failed else 1e-4
        return float(np.clip(0.5 + np.log10(value / 0.01), 0, 1))  # from never to always within a decade

    confirmed = 0
    for seed in range(8):
        found, _ = run([rate], fails, seed=seed)
        (flip,) = found.flips
        confirmed += flip.holds
        assert flip.healthy < 0.01 < flip.fails < 30 * flip.healthy
    assert confirmed >= 6


def test_bets_at_the_worst_rates_never_pay_if_both_fail_as_often() -> None:
    """The expected wealth is at most 1 whatever the common rate, and Ville's inequality holds at every look."""
    like = Counts(6, 2), Counts(0, 8)
    hits = np.arange(9)
    for rate in (0.05, 0.3, 0.5, 0.9):
        chances = np.array([math.comb(8, h) for h in hits]) * rate**hits * (1 - rate) ** (8 - hits)
        wealth = np.array([[e_value(Counts(a, 8 - a), Counts(b, 8 - b), *like) for b in range(9)] for a in range(9)])
        assert chances @ wealth @ chances <= 1
        lower = np.array([math.comb(8, h) for h in hits]) * (rate / 2) ** hits * (1 - rate / 2) ** (8 - hits)
        assert lower @ wealth @ chances <= 1, "nor if the first one fails less often"
    rng, crossed = np.random.default_rng(0), 0
    for _ in range(400):
        first, second = (rng.random((2, 40)) < 0.3).cumsum(1)
        pairs = enumerate(zip(map(int, first), map(int, second), strict=True), 1)
        looks = [(Counts(a, n - a), Counts(b, n - b)) for n, (a, b) in pairs]
        crossed += any(e_value(*look, *like) >= 20 for look in looks)
    assert crossed / 400 <= 0.05


def test_bets_on_the_truth_pay_and_are_what_their_formula_says() -> None:
    """The chance of what was seen under the earlier trials' beta distribution, over that at the best common rate."""
    rates = np.linspace(0, 1, 200_001)[1:-1]

    def predicted(failed: int, healthy: int, a: float, b: float) -> float:
        density = rates ** (a - 1) * (1 - rates) ** (b - 1)
        return float((rates**failed * (1 - rates) ** healthy * density).sum() / density.sum())

    e = e_value(Counts(5, 2), Counts(1, 7), Counts(6, 2), Counts(1, 9))
    common = (rates**6 * (1 - rates) ** 9).max()
    assert e == pytest.approx(predicted(5, 2, 7, 2.25) * predicted(1, 7, 1.25, 10) / common, rel=1e-3)
    assert e_value(Counts(1, 7), Counts(5, 2), Counts(6, 2), Counts(1, 9)) < 1
    assert e_value(Counts(0, 0), Counts(0, 0), Counts(8, 0), Counts(0, 8)) == pytest.approx(1)
    assert e_value(Counts(3, 0), Counts(0, 3), Counts(8, 0), Counts(0, 8)) > 1 / level_of(0, 0.05)
    assert sum(level_of(look, 0.05) for look in range(50)) == pytest.approx(0.05)


def test_what_fails_and_what_is_healthy_are_tested_on_different_seeds_that_the_search_did_not_use() -> None:
    found, outcomes = run(of(6), planted(["a", "bc"], 0.8, 0.1), seed=2)
    assert found.confirmed
    last = max(job.seed for job in outcomes) // 1000 * 1000
    seeds = {
        fails: {job.seed for job in outcomes for c in found.claims if c.fails is fails and job.mixture == c.mixture}
        for fails in (True, False)
    }
    fresh = {fails: {seed for seed in own if seed >= last} for fails, own in seeds.items()}
    assert fresh[True]
    assert fresh[False]
    assert not fresh[True] & fresh[False]


def test_claims_are_made_together_as_closed_testing_makes_them() -> None:
    def slowly(e_values: Sequence[float], alpha: float) -> list[bool]:
        places = range(len(e_values))
        groups = [group for size in places for group in combinations(places, size + 1)]
        means = {group: float(np.mean([e_values[i] for i in group])) for group in groups}
        return [all(mean >= 1 / alpha for group, mean in means.items() if i in group) for i in places]

    rng = np.random.default_rng(1)
    for _ in range(200):
        e_values = [float(e) for e in rng.choice([0, 1, 15, 21, 30, 45, 90], 5)]
        assert claims_made(e_values, 0.05) == slowly(e_values, 0.05)
    assert claims_made([20, 20, 20], 0.05) == [True] * 3
    assert claims_made([], 0.05) == []


def test_the_smallest_sets_that_hit_all_others_are_those_of_a_brute_force_and_are_limited() -> None:
    rng = random.Random(0)
    for _ in range(50):
        sets = [frozenset(rng.sample("abcdefg", rng.randint(1, 4))) for _ in range(rng.randint(1, 5))]
        subsets = [frozenset(names) for count in range(8) for names in combinations("abcdefg", count)]
        hitting = [names for names in subsets if all(names & other for other in sets)]
        smallest = {names for names in hitting if not any(other < names for other in hitting)}
        assert {*_hitting_sets(sets)} == smallest
    pairs = [frozenset({f"a{i}", f"b{i}"}) for i in range(30)]  # 2 ** 30 of them
    assert len(_hitting_sets(pairs)) == 500
