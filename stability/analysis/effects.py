"""Effects of factors and of pairs of factors, from trials that are matched by their seed.

Trials are matched that have the same seed and differ only in the factor: pairs, or quadruples for two factors. Matches
within a seed share its initialisation, batches and noise, and are not independent of each other. The seed is therefore
the unit: differences are averaged within each seed first, and what follows sees one number a seed.

| response | difference | interval, 95 % |
|---|---|---|
| `healthy` | of shares, 0 or 1 a trial | Bonett and Price's for few pairs (below) |
| `per` | of final error rates | Student's t over seeds |
| `steps` | of logarithms, given as a ratio | Student's t over seeds |
| `norm_spike` | of logarithms, given as a ratio; what is over a millionfold or not finite counts as that | the same |

`steps`: of a match with censored trials, the difference is what is certain. Where a trial that had not left by step 500
is compared with one that left at 50, that is tenfold; where the order cannot be told, since the censored one was seen
for less time than the other took, or both are, no difference. So no match is dropped, none has the wrong sign, and the
ratio errs towards 1 where many are censored.

Bonett and Price (2012) add one pair in favour and one against, which keeps an interval from shrinking to a point when
all of a few pairs agree. Here those are two seeds, of the size that the mean of a seed's matches would have by chance.

The p values need no distribution: if a factor has no effect, every seed's mean difference might as well have had the
other sign. All combinations of signs are tried, which for pairs of a binary response is McNemar's exact test. With n
seeds, p is never below 2 / 2^n. Intervals trust Student's t, so with few seeds they can exclude what p does not.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stability.analysis.trials import Level, Trial, Trials, is_number

Response = Literal["healthy", "per", "steps", "norm_spike"]
Alternative = Literal["two-sided", "less", "greater"]
Cell = Mapping[str, Level]

RESPONSES: tuple[Response, ...] = ("healthy", "per", "steps", "norm_spike")
RATIOS: tuple[Response, ...] = ("steps", "norm_spike")  # compared by their logarithms

_CAP = math.log(1e6)  # of a spike
_LEVEL = 0.95
_EXACT = 1 << 13  # combinations of signs that are all tried; of more, that many are drawn
MOST_LEVELS = 12  # of a factor of a grid; a search draws a level a trial, of which no two trials can be matched


@dataclass(frozen=True)
class Effect:
    """What changing a factor does to a response, or how much two together do beyond each alone.

    `kind` is a difference between the two `levels` of one factor, a trend per unit or decade of it, or an interaction
    of two: the difference that the one makes at the second level of the other less that at its first. `tied` are names
    of the same group that change along. `effect` and its interval `low` to `high` are differences, or ratios for
    `steps` and `norm_spike`; NaN without a match. `bounded` of the `matches` have a censored trial. `p` is two-sided.
    """

    kind: Literal["difference", "trend per decade", "trend per unit", "interaction"]
    factors: tuple[str, ...]
    levels: tuple[tuple[Level, Level], ...]
    tied: tuple[str, ...]
    response: Response
    effect: float
    low: float
    high: float
    seeds: int
    matches: int
    bounded: int
    test: str
    p: float


@dataclass(frozen=True)
class Matched:
    """Trials that differ only in their cell: for each match its seed, and a trial a cell. `tied` changes along."""

    matches: tuple[tuple[int, tuple[Trial, ...]], ...]
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """Mean differences, float64 `[seeds]`, in logarithms for ratios, and how they came about.

    `limit` is the largest difference that there can be, `chance` the size of a seed's mean by chance if it is binary.
    """

    response: Response
    means: NDArray[np.float64]
    matches: int
    bounded: int
    limit: float
    chance: float


def effects(trials: Trials) -> list[Effect]:
    """Main effects and two-way interactions of every factor on every response.

    Each level is compared with the factor's first, numbers by size; three or more numbers have a trend besides. An
    effect that no trials can tell is in the list with no matches, a NaN effect and p = 1. Factors with more than 12
    levels, as a search has them, are left out.
    """
    factors = {name: levels for name, levels in main_factors(trials).items() if len(levels) <= MOST_LEVELS}
    slim = _slim(trials)
    found = []
    for name, levels in factors.items():
        for level in levels[1:]:
            found += _difference_between(slim, name, levels[0], level)
        if len(levels) > 2 and all(is_number(level) for level in levels):
            decades = levels[0] > 0
            x = np.array([math.log10(level) if decades else float(level) for level in levels])
            x -= x.mean()
            kind: Literal["trend per decade", "trend per unit"] = "trend per decade" if decades else "trend per unit"
            slope = (x / (x @ x)).tolist()
            ends, cells = ((levels[0], levels[-1]),), [{name: level} for level in levels]
            found += _effects(slim, kind, (name,), ends, cells, slope)
    for (a, a_levels), (b, b_levels) in combinations(factors.items(), 2):
        for to_a, to_b in product(a_levels[1:], b_levels[1:]):
            pairs = (a_levels[0], to_a), (b_levels[0], to_b)
            four, signs = interaction(a, pairs[0], b, pairs[1])
            found += _effects(slim, "interaction", (a, b), pairs, four, signs)
    return found


def difference_between(trials: Trials, factor: str, first: Level, second: Level) -> list[Effect]:
    """The main effect of one level of a factor against another on every response, as in `effects`."""
    return _difference_between(_slim(trials), factor, first, second)


def main_factors(trials: Trials) -> dict[str, tuple[Level, ...]]:
    """{dotted name: its levels} of a study's factors; of those that an option of a group sets together, the first."""
    kept: dict[str, tuple[Level, ...]] = {}
    for name, levels in trials.factors.items():
        group = name.split(".")[0]
        if not any(group == other.split(".")[0] and _one_to_one(trials, name, other) for other in kept):
            kept[name] = levels
    return kept


def cells_of(trials: Trials) -> dict[tuple[Level, ...], list[Trial]]:
    """The trials of each cell by seed, under its levels of the `main_factors`; the cells in the order of these."""
    factors = main_factors(trials)
    cells: dict[tuple[Level, ...], list[Trial]] = defaultdict(list)
    for trial in sorted(trials.trials, key=lambda trial: trial.seed):
        cells[tuple(trial.factors.get(name) for name in factors)].append(trial)
    ranks = [{level: place for place, level in enumerate(levels)} for levels in factors.values()]
    return dict(sorted(cells.items(), key=lambda item: [rank[x] for rank, x in zip(ranks, item[0], strict=True)]))


def interaction(
    a: str, a_levels: tuple[Level, Level], b: str, b_levels: tuple[Level, Level]
) -> tuple[list[Cell], tuple[int, ...]]:
    """The four cells of two factors, and their signs in the difference of differences."""
    return [{a: x, b: y} for x in reversed(a_levels) for y in reversed(b_levels)], (1, -1, -1, 1)


def match(trials: Sequence[Trial], cells: Sequence[Cell]) -> Matched:
    """Match trials, one of each cell, that agree in their seed and in everything that the cells do not name.

    Names that change along are those of a group (`schedule.…`) of which a cell names one, if they have one value in
    each cell: an option of a group sets them together.
    """
    inside = [[t for t in trials if all(t.factors.get(k) == v for k, v in cell.items())] for cell in cells]
    named = {name for cell in cells for name in cell}
    groups = {name.split(".")[0] for name in named}
    names = dict.fromkeys(name for cell in inside for trial in cell for name in trial.factors)
    varying: list[str] = []
    tied: list[str] = []
    for name in names:
        values = [{trial.factors.get(name) for trial in cell} for cell in inside]
        if name in named or len(set[Level]().union(*values)) < 2:
            continue
        along = name.split(".")[0] in groups and all(len(v) == 1 for v in values)
        (tied if along else varying).append(name)
    by_rest: dict[tuple[Level, ...], dict[int, Trial]] = defaultdict(dict)
    for place, cell in enumerate(inside):
        for trial in cell:
            by_rest[(trial.seed, *(trial.factors.get(name) for name in varying))].setdefault(place, trial)
    matches = [
        (rest[0], tuple(found[place] for place in range(len(cells))))
        for rest, found in by_rest.items()
        if len(found) == len(cells)
    ]
    return Matched(tuple(matches), tuple(tied))


def differences(matched: Matched, weights: Sequence[float], response: Response) -> Sample:
    """The weighted sum of every match's responses, averaged within each seed."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for seed, trials in matched.matches:
        by_seed[seed].append(_difference(trials, weights, response))
    means = np.array([np.mean(values) for values in by_seed.values()])
    total, squares = sum(w for w in weights if w > 0), sum(w * w for w in weights)
    a_seed = len(matched.matches) / max(1, len(by_seed))
    return Sample(
        response=response,
        means=means,
        matches=len(matched.matches),
        bounded=sum(any(t.censored for t in trials) for _, trials in matched.matches) if response == "steps" else 0,
        limit=math.inf if response in RATIOS else total,
        chance=math.sqrt(squares / 2 / max(1.0, a_seed)),
    )


def interval(sample: Sample, level: float = _LEVEL) -> tuple[float, float]:
    """The interval of a sample's mean, in its own unit; all that is possible where nothing tells the spread."""
    means, n, limit = sample.means, len(sample.means), sample.limit
    if n < 2:
        return -limit, limit
    if sample.response == "healthy":
        with_two = np.append(means, (sample.chance, -sample.chance))
        center, half = with_two.mean(), stats.norm.ppf((1 + level) / 2) * with_two.std() / math.sqrt(n + 2)
    else:
        center, half = means.mean(), stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(means)
        if np.ptp(means) <= 1e-9 * np.abs(means).max():
            return -limit, limit
    return max(-limit, float(center - half)), min(limit, float(center + half))


def sign_flip(means: NDArray[np.float64], alternative: Alternative = "two-sided") -> float:
    """The p of the test that the mean of numbers, each of which might have either sign, is 0; 1 if there are none."""
    return _sign_flips(means[None], alternative)[0]


def named_test(seeds: int) -> str:
    """What `sign_flip` does with so many numbers."""
    return "none" if not seeds else "sign-flip, exact" if 2**seeds <= _EXACT else f"sign-flip, {_EXACT} drawn"


def _sign_flips(means: NDArray[np.float64], alternative: Alternative = "two-sided") -> list[float]:
    """`sign_flip` of every row of numbers, by the same combinations of signs."""
    if means.shape[1] < 2:  # which SciPy refuses
        told = {"two-sided": np.zeros(means.shape, bool), "less": means < 0, "greater": means > 0}[alternative]
        return [0.5 if row.any() else 1.0 for row in told]
    test = stats.permutation_test(
        (means,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_EXACT,
        alternative=alternative,
        axis=1,
        rng=np.random.default_rng(0),
    )
    return [min(1.0, float(p)) for p in test.pvalue]


def _difference(trials: Sequence[Trial], weights: Sequence[float], response: Response) -> float:
    """The weighted sum of a match's responses, or as much of it as is certain."""
    if response != "steps":
        values = [min(t.norm_spike, _CAP) if response == "norm_spike" else float(getattr(t, response)) for t in trials]
        return float(np.dot(weights, values))
    least = float(np.dot(weights, [math.log(t.steps) for t in trials]))
    above = any(t.censored and w > 0 for t, w in zip(trials, weights, strict=True))  # the truth may be above, or below
    below = any(t.censored and w < 0 for t, w in zip(trials, weights, strict=True))
    return 0.0 if (above and (below or least < 0)) or (below and least > 0) else least


def _slim(trials: Trials) -> list[Trial]:
    """The trials with only those of their factors that vary among them: matching looks at every one of them."""
    varying = trials.factors
    return [replace(t, factors={name: t.factors.get(name) for name in varying}) for t in trials.trials]


def _difference_between(trials: Sequence[Trial], factor: str, first: Level, second: Level) -> list[Effect]:
    cells: list[Cell] = [{factor: second}, {factor: first}]
    return _effects(trials, "difference", (factor,), ((first, second),), cells, (1, -1))


def _one_to_one(trials: Trials, a: str, b: str) -> bool:
    pairs = {(t.factors.get(a), t.factors.get(b)) for t in trials.trials}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _effects(
    trials: Sequence[Trial],
    kind: Literal["difference", "trend per decade", "trend per unit", "interaction"],
    factors: tuple[str, ...],
    levels: tuple[tuple[Level, Level], ...],
    cells: Sequence[Cell],
    weights: Sequence[float],
) -> list[Effect]:
    """The effect on every response."""
    matched = match(trials, cells)
    samples = [differences(matched, weights, response) for response in RESPONSES]
    found = []
    for sample, p in zip(samples, _sign_flips(np.stack([sample.means for sample in samples])), strict=True):
        seeds = len(sample.means)
        effect = float(sample.means.mean()) if seeds else math.nan
        low, high = interval(sample) if seeds else (math.nan, math.nan)
        effect, low, high = (in_unit(x, sample.response) for x in (effect, low, high))
        found.append(
            Effect(
                kind, factors, levels, matched.tied, sample.response, effect, low, high, seeds, sample.matches,
                sample.bounded, named_test(seeds), p,
            )
        )  # fmt: skip
    return found


def in_unit(difference: float, response: Response) -> float:
    """A difference as it is told: of logarithms, the ratio."""
    return math.exp(min(difference, 700.0)) if response in RATIOS and difference != math.inf else difference
