"""Tests and intervals over seeds.

Trials of the same seed share its initialisation, batches and noise, and are not independent of each other. The seed is
therefore the unit: the functions here take one number a seed.

The sign-flip test needs no distribution (Fisher, *The Design of Experiments*, 1935). If a factor has no effect, every
seed's mean difference might as well have had the other sign. The test tries all combinations of signs. For pairs of a
binary response it is McNemar's exact test. With n seeds, p is never below 2 / 2^n.

Intervals rely on Student's t. With few seeds they can exclude a value that the exact test does not.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Alternative = Literal["two-sided", "less", "greater"]

_LEVEL = 0.95  # of intervals
_POWER = 0.8
_MOST_FLIPS = 1 << 13  # if there are at most so many combinations of signs, all are tried; else that many are drawn
MOST_SEEDS = 1000  # advice to run more seeds than this is of no use


def sign_flip(means: NDArray[np.float64], alternative: Alternative = "two-sided") -> float:
    """Test whether the mean of numbers is 0. If it is, each might as well have had the other sign.

    Args:
        means: One number a seed, `[seeds]`.
        alternative: The side on which the mean is expected.

    Returns:
        The p value; NaN with fewer than two numbers, which no test can tell from chance.
    """
    return sign_flips(means[None], alternative)[0]


def sign_flips(means: NDArray[np.float64], alternative: Alternative = "two-sided") -> list[float]:
    """Return the `sign_flip` of every row of `[responses, seeds]`, with the same combinations of signs for all rows."""
    if means.shape[1] < 2:
        return [math.nan] * len(means)
    test = stats.permutation_test(
        (means,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_MOST_FLIPS,
        alternative=alternative,
        axis=1,
        rng=np.random.default_rng(0),
    )
    return [min(1.0, float(p)) for p in test.pvalue]


def name_of_test(seeds: int) -> str:
    """Name what `sign_flip` does with so many seeds: it tries all combinations of signs, or draws some."""
    if seeds < 2:
        return "none"
    return "sign-flip, exact" if 2**seeds <= _MOST_FLIPS else f"sign-flip, {_MOST_FLIPS} drawn"


def mean_interval(means: NDArray[np.float64], limit: float, level: float = _LEVEL) -> tuple[float, float]:
    """Compute Student's t interval of a mean.

    Args:
        means: One number a seed, `[seeds]`.
        limit: The largest mean that is possible.
        level: The share of such intervals that hold the true mean.

    Returns:
        The ends of the interval; everything that is possible, if nothing is known of the spread: with one seed, or if
        all numbers are the same.
    """
    n = len(means)
    if n < 2 or np.ptp(means) <= 1e-9 * np.abs(means).max():
        return -limit, limit
    return _limited(means.mean(), stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(means), limit)


def share_interval(
    means: NDArray[np.float64], limit: float, chance: float, level: float = _LEVEL
) -> tuple[float, float]:
    """Compute Bonett and Price's interval of a difference of paired shares (*J. Educ. Behav. Stat.* 37, 2012).

    They add one pair in favour and one against. So the interval does not shrink to a point when all of a few pairs
    agree. Here, two seeds are added.

    Args:
        means: One mean difference a seed, `[seeds]`.
        limit: The largest mean that is possible.
        chance: The size of the two added seeds: that which a seed's mean would have by chance.
        level: The share of such intervals that hold the true mean.

    Returns:
        The ends of the interval; everything that is possible, with one seed.
    """
    n = len(means)
    if n < 2:
        return -limit, limit
    with_two = np.append(means, (chance, -chance))
    half = stats.norm.ppf((1 + level) / 2) * with_two.std() / math.sqrt(n + 2)
    return _limited(with_two.mean(), half, limit)


def binomial_interval(count: int, of: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of a share (Clopper and Pearson, *Biometrika* 26, 1934)."""
    found = stats.binomtest(count, of).proportion_ci(_LEVEL, "exact")
    return float(found.low), float(found.high)


def majority_test(count: int, of: int) -> tuple[float, float]:
    """Return the p values of the exact binomial tests that a share is above a half, and that it is below."""
    above, below = (float(stats.binomtest(count, of, alternative=side).pvalue) for side in ("greater", "less"))
    return above, below


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm, *Scandinavian Journal of Statistics* 6, 1979)."""
    order = np.argsort(p)
    corrected = np.array(p)[order] * np.arange(len(p), 0, -1)
    result = np.empty(len(p))
    result[order] = np.minimum(1.0, np.maximum.accumulate(corrected))
    return [float(x) for x in result]


def seeds_needed(means: NDArray[np.float64], alpha: float) -> int | None:
    """Estimate how many seeds a test needs to decide in four of five cases.

    The power is that of a t test, by the noncentral t distribution (Johnson and Welch, *Biometrika* 31, 1940), if the
    true mean and spread are those of the seeds so far.

    Args:
        means: One number a seed, `[seeds]`, whose true mean is tested against 0.
        alpha: The level of the test.

    Returns:
        More seeds than there are, and enough that the exact test's p can be below `alpha`; None if 1000 seeds are not
        enough.
    """
    n = len(means)
    least = max(n + 1, math.ceil(math.log2(2 / alpha)))  # with n seeds, p is at least 2 / 2^n
    mean = float(np.abs(means.mean()))
    spread = float(means.std(ddof=1)) if n > 1 else 0.0
    if spread <= 1e-9 * mean:
        return least if mean > 0 else None
    counts = np.arange(least, MOST_SEEDS + 1)
    noncentrality = mean / spread * np.sqrt(counts)
    power = stats.nct.sf(stats.t.isf(alpha / 2, counts - 1), counts - 1, noncentrality)
    (enough,) = np.nonzero(power >= _POWER)
    return int(counts[enough[0]]) if len(enough) else None


def _limited(center: float, half: float, limit: float) -> tuple[float, float]:
    return max(-limit, float(center - half)), min(limit, float(center + half))
