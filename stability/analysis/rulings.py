"""Rule on claims: compare each with the trials of a study.

A claim is confirmed, or refuted, if an exact test over the seeds says so at 5 %, corrected for all claims of the list
(Holm). Else it is inconclusive. A higher response refutes `lower`, a response that is not 0.3 lower refutes
`{lower: 0.3}`. Among trials of several seeds a single one refutes `all`: it is a counterexample, and there is no p. A
margin is tested on the typical seed: a few seeds do not show what happens to one seed in twenty. One seed decides
nothing.

A trial that is `undecided` ended before there was evidence. It counts neither for nor against an outcome, unless the
claim names `undecided` itself.
"""

import difflib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stability.analysis.anytime import closed, majority_anytime, sign_flip_anytime
from stability.analysis.claims import Claim
from stability.analysis.effects import RESPONSES, Response, differences, in_unit, interval
from stability.analysis.inference import (
    MOST_SEEDS,
    binomial_interval,
    holm,
    majority_test,
    name_of_test,
    seeds_needed,
    sign_flip,
)
from stability.analysis.levels import Level, ordered
from stability.analysis.matching import Cell, match
from stability.analysis.trial import Trial, Trials
from stability.config.names import short_name
from stability.core.text import counted

ALPHA = 0.05  # the chance that any of the claims is ruled on wrongly


@dataclass(frozen=True)
class Ruling:
    """The ruling on a claim.

    Attributes:
        claim: The claim.
        ruling: The result.
        because: The reason in words.
        effect: The effect, as in `Effect`. For an order, the effect of the last cell against the first. For `all` and
            `most`, the share of the trials that are as expected.
        low: The lower end of its 95 % interval. For `all` and `most`, Clopper and Pearson's for the share of seeds.
        high: The upper end.
        seeds: How many seeds the test has; 0 if the claim is about trials that were not run.
        matches: How many matches of trials there are; for `all` and `most`, how many trials.
        test: The name of the test.
        p: Its two-sided p value; NaN if there was no test: with one seed, or with a counterexample.
        corrected: The same, corrected for the number of claims that were tested.
        seeds_needed: About how many seeds would decide an inconclusive claim, if they were like those so far; None if
            that is not known.
        tied: The other factors that change together with the compared ones.
        wealth: What the bets of an anytime test have made of 1: 1 / p, with p above 1 too. NaN without such a test.
    """

    claim: Claim
    ruling: Literal["confirmed", "refuted", "inconclusive"]
    because: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    matches: int = 0
    test: str = "none"
    p: float = math.nan
    corrected: float = math.nan
    seeds_needed: int | None = None
    tied: tuple[str, ...] = ()
    wealth: float = math.nan


def rule(claims: Sequence[Claim], trials: Trials, *, anytime: bool = False) -> list[Ruling]:
    """Rule on every claim.

    Claims about trials that were not run are inconclusive, and do not count in the correction.

    Args:
        claims: The claims.
        trials: The trials.
        anytime: Whether somebody has looked at the trials, seed after seed, to decide when to stop.
    """
    trials = replace(trials, trials=tuple(sorted(trials.trials, key=lambda trial: trial.place)))
    stated = [one for claim in claims for one in _at_each_scale(claim, trials)]
    found = [_evidence(claim, trials, _ANYTIME if anytime else _FIXED) for claim in stated]
    tested = [evidence.p for evidence in found if evidence.is_tested]
    corrected = iter(closed(tested) if anytime else holm([min(1.0, p) for p in tested]))
    return [
        _ruling(claim, evidence, next(corrected) if evidence.is_tested else math.nan, max(1, len(tested)), anytime)
        for claim, evidence in zip(stated, found, strict=True)
    ]


def at_scale(claim: Claim, trials: Trials) -> list[Trial]:
    """Return the trials of the budget and one of the scales that the claim states; all if it states none."""
    return [trial for trial in trials.trials if _is_at_scale(claim, trial.factors)]


def cells_with(claim: Claim, factors: Mapping[str, Level]) -> list[int]:
    """Return which of the claim's cells a trial with these factors is in; if it compares no cells, its only one, 0."""
    if not _is_at_scale(claim, factors):
        return []
    return [place for place, cell in enumerate(claim.cells or ({},)) if _is_in({**claim.where, **cell}, factors)]


class _Tests(NamedTuple):
    """The tests over seeds: p that a mean is not below 0; p that a share is not above a half, and not below it."""

    less: Callable[[NDArray[np.float64]], float]
    majority: Callable[[Sequence[bool]], tuple[float, float]]
    name: Callable[[int], str]
    name_of_majority: str


_FIXED = _Tests(
    less=lambda means: sign_flip(means, "less"),
    majority=lambda good: majority_test(sum(good), len(good)),
    name=name_of_test,
    name_of_majority="binomial, exact",
)
_ANYTIME = _Tests(
    less=lambda means: sign_flip_anytime(-means),
    majority=majority_anytime,
    name=lambda seeds: "bets on signs" if seeds > 1 else "none",
    name_of_majority="bets on signs",
)


@dataclass(frozen=True)
class _Evidence:
    """One-sided p values for and against a claim.

    `decisive` has one number a seed. Its mean is 0 where the claim just begins to hold. `trouble` says why there is no
    evidence, `note` what did not count. `counterexample`: a trial refutes the claim without a test.
    """

    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    matches: int = 0
    test: str = "none"
    supports: float = 1.0
    contradicts: float = 1.0
    decisive: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    trouble: str = ""
    note: str = ""
    counterexample: bool = False
    tied: tuple[str, ...] = ()
    seed_known: bool = True

    @property
    def is_tested(self) -> bool:
        return self.seeds > 1 and not self.counterexample

    @property
    def p(self) -> float:
        """Of the two sides together; above 1 if an anytime test speaks for neither."""
        return 2 * min(self.supports, self.contradicts) if self.is_tested else math.nan


def _at_each_scale(claim: Claim, trials: Trials) -> list[Claim]:
    """Return the claim once for each of its scales that has trials; as it is if that is one scale or none."""
    there = {words: cell for words, cell in claim.scales.items() if any(_is_in(cell, t.factors) for t in trials.trials)}
    if len(there) < 2:
        return [claim]
    return [replace(claim, id=f"{claim.id} ({words})", scales={words: cell}) for words, cell in there.items()]


def _is_at_scale(claim: Claim, factors: Mapping[str, Level]) -> bool:
    scales: Iterable[Cell] = claim.scales.values() or ({},)
    return any(_is_in(scale, factors) for scale in scales)


def _is_in(cell: Cell, factors: Mapping[str, Level]) -> bool:
    return all(name in factors and factors[name] == level for name, level in cell.items())


def _evidence(claim: Claim, trials: Trials, tests: _Tests) -> _Evidence:
    """Collect the evidence of the trials for and against the claim."""
    inside = at_scale(claim, trials)
    if trials.trials and not inside:
        stated = " or ".join(claim.scales)
        return _Evidence(trouble=f"No trial has its budget and scale: {stated}.{_left_out(trials)}")
    trials = replace(trials, trials=tuple(inside))
    for cell in claim.cells or ({},):
        if trouble := _not_run({**claim.where, **cell}, trials):
            return _Evidence(trouble=trouble)
    inside = [t for t in inside if all(t.factors.get(k) == v for k, v in claim.where.items())]
    if not claim.cells:
        return _all_or_most(claim, inside, tests)
    return _comparison(claim, replace(trials, trials=tuple(inside)), tests)


def _not_run(cell: Cell, trials: Trials) -> str:
    """Return the reason why no trial is in the cell; empty if there is one."""
    if any(all(t.factors.get(k) == v for k, v in cell.items()) for t in trials.trials):
        return ""
    known = list(dict.fromkeys(name for trial in trials.trials for name in trial.factors))
    lost = _left_out(trials)
    if not known:
        return "There is no trial." + lost
    for name, level in cell.items():
        if main := next((main for main, names in trials.bound.items() if name in names), ""):
            return f"{name} always changes with {main}, so its own effect is not known."
        if name not in known:
            dotted = {short_name(factor): factor for factor in known} | {factor: factor for factor in known}
            close = difflib.get_close_matches(name, dotted, 1, 0.0)
            return f"There is no factor {name}; the nearest is {dotted[close[0]]}."
        levels = ordered({trial.factors.get(name) for trial in trials.trials})
        if level not in levels:
            return f"No trial has {name}={level}; there are {', '.join(map(str, levels))}.{lost}"
    return f"No trial has {', '.join(f'{k}={v}' for k, v in cell.items())} together.{lost}"


def _left_out(trials: Trials) -> str:
    """Say how many folders were left out, with an example."""
    if not trials.left_out:
        return ""
    path, reason = trials.left_out[0]
    return f" Left out: {counted(len(trials.left_out), 'folder')}, such as {path.name} ({reason})."


def _comparison(claim: Claim, trials: Trials, tests: _Tests) -> _Evidence:
    response: Response = next(r for r in RESPONSES if r == claim.response)
    matched = match(trials, claim.cells)
    if not matched.matches:
        return _Evidence(trouble="No trials of the same seed differ only in what is compared.")
    last = len(claim.cells) - 1
    weights = claim.weights or (-1.0, *[0.0] * (last - 1), 1.0)
    sample = differences(matched, weights, response)
    if not sample.matches:
        return _Evidence(trouble=f"{response} was not recorded of the trials that differ only in what is compared.")
    low, high = interval(sample)
    effect, low, high = (in_unit(x, response) for x in (float(sample.means.mean()), low, high))
    seeds = len(sample.means)
    bound = (name for cell in claim.cells for factor in cell for name in trials.bound.get(factor, ()))
    known = _Evidence(
        effect=effect,
        low=low,
        high=high,
        seeds=seeds,
        matches=sample.matches,
        test=tests.name(seeds),
        tied=tuple(dict.fromkeys((*matched.tied, *bound))),
        seed_known=all(seed is not None for seed, _ in matched.matches),
    )
    m, less = claim.margin, tests.less
    if claim.verb == "same":
        below, above = sample.means - m, sample.means + m
        return replace(
            known,
            supports=max(less(below), less(-above)),
            contradicts=2 * min(less(-below), less(above)),
            decisive=below if below.mean() > -above.mean() else -above,
        )
    sign = 1.0 if claim.verb in ("lower", "falling") else -1.0
    if last == 1 or claim.weights:
        steps = [sign * sample.means + m]
    else:
        every = np.eye(last + 1)
        steps = [sign * differences(matched, every[i + 1] - every[i], response).means for i in range(last)]
    weakest = max(steps, key=lambda step: float(step.mean()))
    return replace(
        known,
        supports=max(map(less, steps)),
        contradicts=len(steps) * min(less(-step) for step in steps),
        decisive=weakest,
    )


def _all_or_most(claim: Claim, trials: Sequence[Trial], tests: _Tests) -> _Evidence:
    """Collect the evidence on a claim about all or most trials. A seed supports it if most of its trials do."""
    if lacking := [t.name for t in trials if claim.response != "outcome" and math.isnan(t.response(claim.response))]:
        return _Evidence(
            trouble=f"{counted(len(lacking), 'trial')} did not record {claim.response}, such as {lacking[0]}."
        )
    by_seed: dict[int | None, list[bool]] = defaultdict(list)
    silent = claim.response == "outcome" and "undecided" not in claim.accepted
    decided = [trial for trial in trials if not (silent and trial.outcome == "undecided")]
    undecided = len(trials) - len(decided)
    if not decided:
        every = f"all {undecided} trials" if undecided > 1 else "its only trial"
        return _Evidence(trouble=f"No evidence: {every} ended undecided.")
    for trial in decided:
        value = getattr(trial, claim.response)
        if claim.response == "outcome":
            by_seed[trial.seed].append(value in claim.accepted)
        else:
            by_seed[trial.seed].append(claim.accepted[0] <= value <= claim.accepted[1])
    fits = [fit for seed in by_seed.values() for fit in seed]
    shares = np.array([np.mean(seed) for seed in by_seed.values()])
    n, good = len(shares), [bool(share > 0.5) for share in shares]
    low, high = binomial_interval(sum(good), n)
    supports, contradicts = tests.majority(good)
    counterexample = claim.verb == "all" and n > 1 and not all(fits)
    if claim.verb == "all" and undecided:
        supports = 1.0  # they may still turn out otherwise
    return _Evidence(
        effect=float(np.mean(fits)),
        low=low,
        high=high,
        seeds=n,
        matches=len(fits),
        test="counterexample" if counterexample else tests.name_of_majority if n > 1 else "none",
        supports=supports,
        contradicts=contradicts,
        decisive=0.5 - shares,
        note=f" {counted(undecided, 'undecided trial')} counted for neither side." if undecided else "",
        counterexample=counterexample,
        seed_known=all(trial.seed is not None for trial in decided),
    )


def _ruling(claim: Claim, evidence: _Evidence, corrected: float, claims: int, anytime: bool) -> Ruling:
    known = Ruling(
        claim=claim,
        ruling="inconclusive",
        because=evidence.trouble,
        effect=evidence.effect,
        low=evidence.low,
        high=evidence.high,
        seeds=evidence.seeds,
        matches=evidence.matches,
        test=evidence.test,
        p=evidence.p if math.isnan(evidence.p) else min(1.0, evidence.p),
        corrected=corrected,
        tied=evidence.tied,
        wealth=1 / evidence.p if anytime else math.nan,
    )
    if not evidence.seeds:
        return known
    if evidence.counterexample:
        return replace(
            known,
            ruling="refuted",
            because=f"{1 - evidence.effect:.0%} of the trials are not as expected.{evidence.note}",
        )
    if corrected <= ALPHA:
        if evidence.supports < evidence.contradicts:
            return replace(known, ruling="confirmed", because=f"The trials are as expected.{evidence.note}")
        return replace(known, ruling="refuted", because=f"The trials are not as expected.{evidence.note}")
    if not evidence.decisive.any():
        because = f"It makes no difference in any of {counted(evidence.seeds, 'seed')}."
        return replace(known, because=because + evidence.note)
    needed = seeds_needed(evidence.decisive, ALPHA / claims)
    because = f"{evidence.seeds} seeds do not decide this."
    about = "About"
    if not evidence.seed_known and evidence.seeds == 1:
        because = "The seed of these trials is not known, so an effect cannot be separated from chance."
        return replace(known, because=because + evidence.note)
    if evidence.seeds == 1:
        because, about = "One seed cannot separate an effect from chance.", "At least"
    if needed is None:
        because += f" More than {MOST_SEEDS} would be needed: these favour neither side."
    else:
        because += f" {about} {needed} would, if they were like these."
    return replace(known, because=because + evidence.note, seeds_needed=needed)
