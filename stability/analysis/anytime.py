"""Tests over seeds that may be looked at after every seed, and stopped by what is seen.

A test with a fixed number of seeds is wrong more often than it says if somebody looks after each seed and stops when it
is significant. These tests bet instead. If a factor has no effect, the sign of each seed's difference is a fair coin.
Somebody who bets on that coin can be expected to win nothing, so by Ville's inequality the chance that a wealth of 1
ever grows to 1 / p is at most p, however often one looks (Ramdas, Grünwald, Vovk and Shafer, *Statistical Science* 38,
2023). The stake grows with the size of the difference: for a difference d the wealth is multiplied by
exp(b d) / cosh(b d), as in de la Peña's inequality for symmetric variables (*Annals of Probability* 27, 1999). The size
counts relative to the largest so far. The wealth is divided among several b, since the best is not known.

A fixed test needs 6 seeds of one sign to be significant at 5 %, and so does this one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BETS = np.array([0.5, 1.0, 2.0, 4.0])  # for a small effect the first, for seeds that all agree the last


def sign_flip_anytime(means: NDArray[np.float64]) -> float:
    """Test whether the mean of numbers is above 0. If it is 0, each might as well have had the other sign.

    Args:
        means: One number a seed, in the order in which the seeds were looked at, `[seeds]`.

    Returns:
        A p value that holds whenever one stops; NaN with fewer than two numbers.
    """
    if len(means) < 2:
        return float("nan")
    largest = np.maximum.accumulate(np.abs(means))
    stakes = np.outer(means / np.where(largest > 0, largest, 1), _BETS)  # [seeds, bets]
    wealth = np.exp(np.cumsum(stakes - np.log(np.cosh(stakes)), 0)).mean(1)
    return float(1 / max(1.0, wealth.max()))


def majority_anytime(good: Sequence[bool]) -> tuple[float, float]:
    """Return p values that hold whenever one stops: that a share is not above a half, and that it is not below.

    Args:
        good: Whether each seed counts for the share, in the order in which the seeds were looked at.
    """
    signs = np.where(np.array(good, bool), 1.0, -1.0)
    return sign_flip_anytime(signs), sign_flip_anytime(-signs)
