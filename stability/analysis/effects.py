"""Effects of factors, and of pairs of factors, on the responses of trials that are matched by their seed.

Trials are matched that have the same seed and differ only in the factor: pairs, or quadruples for two factors.
Differences are averaged within each seed first, and the tests and intervals of `inference.py` get one number a seed.

| response | difference | interval, 95 % |
|---|---|---|
| `healthy` | of shares, 0 or 1 a trial | Bonett and Price's, for few pairs |
| `per` | of final error rates | Student's t over seeds |
| `steps` | of logarithms, given as a ratio | Student's t over seeds |
| `norm_spike` | of logarithms, given as a ratio; at most a million, also where a norm is not finite | the same |

Some `steps` are censored: a trial ended before it left the plateau. The difference of a match with such a trial is what
is certain. If one trial had not left the plateau by step 500, and the other left at step 50, the ratio is at least ten:
it counts as ten. If it is not certain which of the two was longer on the plateau, the difference is 0. So no match is
dropped, no difference has the wrong sign, and ratios err towards 1 where many trials are censored.

A response that was not recorded of a trial is never taken for a number: matches with that trial do not count for it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stability.analysis.inference import mean_interval, name_of_test, share_interval, sign_flip, sign_flips
from stability.analysis.levels import MOST_LEVELS, Level, is_number
from stability.analysis.matching import Cell, Matched, interaction_cells, main_factors, match, matcher
from stability.analysis.trial import Trial, Trials

Response = Literal["healthy", "per", "steps", "norm_spike"]
Kind = Literal["difference", "trend per decade", "trend per unit", "interaction"]

RESPONSES: tuple[Response, ...] = ("healthy", "per", "steps", "norm_spike")
RATIOS: tuple[Response, ...] = ("steps", "norm_spike")  # compared by their logarithms

_LARGEST_SPIKE = math.log(1e6)


@dataclass(frozen=True)
class Contrast:
    """A comparison of the levels of one factor, or of a pair of factors.

    Attributes:
        kind: `difference` between two levels of one factor; `trend` per unit or per decade of it; `interaction` of two:
            the difference that the first makes at the second level of the other, less that at its first level.
        factors: The dotted names.
        levels: The first and the second level of each factor; of a trend, the smallest and the largest.
        cells: The cells whose trials are matched.
        weights: The weight of each cell in the difference.
    """

    kind: Kind
    factors: tuple[str, ...]
    levels: tuple[tuple[Level, Level], ...]
    cells: Sequence[Cell]
    weights: Sequence[float]


@dataclass(frozen=True)
class Effect:
    """The effect of a contrast on one response.

    Attributes:
        kind: As in `Contrast`.
        factors: As in `Contrast`.
        levels: As in `Contrast`.
        tied: The other factors that change together with these.
        response: The response that the factors have an effect on.
        effect: The difference, or for `steps` and `norm_spike` the ratio; NaN without a match.
        low: The lower end of the 95 % interval; NaN without a match.
        high: Its upper end.
        seeds: How many seeds have a match.
        matches: How many matches there are.
        bounded: How many of the matches have a censored trial.
        test: The name of the test.
        p: Its two-sided p value; NaN with fewer than two seeds.
    """

    kind: Kind
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
class Sample:
    """The mean difference of each seed, and how it was made.

    Attributes:
        response: The response whose differences these are.
        means: One mean a seed, `[seeds]`; of ratios, the logarithms.
        matches: How many matches there are.
        bounded: How many of them have a censored trial.
        limit: The largest difference that is possible.
        chance: For a binary response, the size of a seed's mean by chance.
    """

    response: Response
    means: NDArray[np.float64]
    matches: int
    bounded: int
    limit: float
    chance: float


def effects(trials: Trials) -> list[Effect]:
    """Measure the effects of every factor and of every pair of factors on every response.

    Each level is compared with the factor's first one; levels that are numbers are sorted by size. Three or more
    numbers also have a trend. Factors with more than 12 levels are left out.

    Returns:
        The effects. Without a match of trials, an effect is NaN, with no matches.
    """
    matches = matcher(trials)
    return [effect for one in _contrasts(trials) for effect in _effects(matches(one.cells), one, bound=trials.bound)]


def recorded_responses(found: Sequence[Effect]) -> list[Response]:
    """Return the responses that were recorded of matched trials, in their order; all if no trials are matched."""
    known = {effect.response for effect in found if effect.matches}
    return [response for response in RESPONSES if response in known] or [*RESPONSES]


def difference_between(trials: Trials, factor: str, first: Level, second: Level) -> list[Effect]:
    """Measure the effects of one level of a factor against another, on every response, as in `effects`."""
    contrast = _difference(factor, first, second)
    return _effects(match(trials, contrast.cells), contrast, bound=trials.bound)


def differences(matched: Matched, weights: Sequence[float], response: Response) -> Sample:
    """Compute the weighted sum of the responses of every match, averaged within each seed.

    Args:
        matched: The matches.
        weights: One weight a cell.
        response: The response to compare.
    """
    by_seed: dict[int | None, list[float]] = defaultdict(list)
    bounded = 0
    for seed, trials in matched.matches:
        if not math.isnan(difference := _certain_difference(trials, weights, response)):
            by_seed[seed].append(difference)
            bounded += response == "steps" and any(trial.censored for trial in trials)
    means = np.array([np.mean(values) for values in by_seed.values()])
    total, squares = sum(w for w in weights if w > 0), sum(w * w for w in weights)
    matches = sum(map(len, by_seed.values()))
    a_seed = matches / max(1, len(by_seed))
    return Sample(
        response=response,
        means=means,
        matches=matches,
        bounded=bounded,
        limit=math.inf if response in RATIOS else total,
        chance=math.sqrt(squares / 2 / max(1.0, a_seed)),
    )


def interval(sample: Sample) -> tuple[float, float]:
    """Return the 95 % interval of a sample's mean; of ratios, in logarithms."""
    if sample.response == "healthy":
        return share_interval(sample.means, sample.limit, sample.chance)
    return mean_interval(sample.means, sample.limit)


def in_unit(difference: float, response: Response) -> float:
    """Convert a difference to the unit in which it is reported: a difference of logarithms to a ratio."""
    return math.exp(min(difference, 700.0)) if response in RATIOS and difference != math.inf else difference


def _contrasts(trials: Trials) -> list[Contrast]:
    factors = {name: levels for name, levels in main_factors(trials).items() if len(levels) <= MOST_LEVELS}
    found = []
    for name, levels in factors.items():
        found += [_difference(name, levels[0], level) for level in levels[1:]]
        if len(levels) > 2 and all(is_number(level) for level in levels):
            found.append(_trend(name, levels))
    for (a, a_levels), (b, b_levels) in combinations(factors.items(), 2):
        for to_a, to_b in product(a_levels[1:], b_levels[1:]):
            pairs = (a_levels[0], to_a), (b_levels[0], to_b)
            cells, signs = interaction_cells(a, pairs[0], b, pairs[1])
            found.append(Contrast(kind="interaction", factors=(a, b), levels=pairs, cells=cells, weights=signs))
    return found


def _difference(factor: str, first: Level, second: Level) -> Contrast:
    return Contrast(
        kind="difference",
        factors=(factor,),
        levels=((first, second),),
        cells=[{factor: second}, {factor: first}],
        weights=(1, -1),
    )


def _trend(factor: str, levels: Sequence[Level]) -> Contrast:
    """The slope of a straight line through the levels; in decades, if all levels are above 0."""
    decades = levels[0] > 0
    x = np.array([math.log10(level) if decades else float(level) for level in levels])
    x -= x.mean()
    return Contrast(
        kind="trend per decade" if decades else "trend per unit",
        factors=(factor,),
        levels=((levels[0], levels[-1]),),
        cells=[{factor: level} for level in levels],
        weights=(x / (x @ x)).tolist(),
    )


def _effects(matched: Matched, contrast: Contrast, *, bound: Mapping[str, tuple[str, ...]]) -> list[Effect]:
    """The effect on every response."""
    tied = (*matched.tied, *(name for factor in contrast.factors for name in bound.get(factor, ())))
    samples = [differences(matched, contrast.weights, response) for response in RESPONSES]
    found = []
    for sample, p in zip(samples, _p_values(samples), strict=True):
        seeds = len(sample.means)
        effect = float(sample.means.mean()) if seeds else math.nan
        low, high = interval(sample) if seeds else (math.nan, math.nan)
        found.append(
            Effect(
                kind=contrast.kind,
                factors=contrast.factors,
                levels=contrast.levels,
                tied=tied,
                response=sample.response,
                effect=in_unit(effect, sample.response),
                low=in_unit(low, sample.response),
                high=in_unit(high, sample.response),
                seeds=seeds,
                matches=sample.matches,
                bounded=sample.bounded,
                test=name_of_test(seeds),
                p=p,
            )
        )
    return found


def _p_values(samples: Sequence[Sample]) -> list[float]:
    """The p value of each sample. Those with as many seeds as the first one are tested together, which is faster."""
    seeds = len(samples[0].means)
    together = iter(sign_flips(np.stack([sample.means for sample in samples if len(sample.means) == seeds])))
    return [next(together) if len(sample.means) == seeds else sign_flip(sample.means) for sample in samples]


def _certain_difference(trials: Sequence[Trial], weights: Sequence[float], response: Response) -> float:
    """The weighted sum of a match's responses, or as much of it as is certain; NaN if one was not recorded."""
    values = [trial.response(response) for trial in trials]
    if response == "norm_spike":
        values = [min(value, _LARGEST_SPIKE) for value in values]  # of NaN, NaN
    least = float(np.dot(weights, values))
    if response != "steps" or math.isnan(least):
        return least
    above = any(t.censored and w > 0 for t, w in zip(trials, weights, strict=True))  # the truth may be above `least`
    below = any(t.censored and w < 0 for t, w in zip(trials, weights, strict=True))  # or below
    return 0.0 if (above and (below or least < 0)) or (below and least > 0) else least
