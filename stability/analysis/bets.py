"""Evidence that may be looked at after every trial: bets against a hypothesis, as in a fair game.

A test with a fixed sample is wrong more often than it says if one looks at it again and again, and stops when it is
significant. Here one may. Somebody bets on each trial, at odds that are fair if the hypothesis is true. Then the wealth
is expected never to grow, and Ville's inequality bounds the chance that it ever exceeds 1 / alpha by alpha, however
long one goes on and whenever one stops. The wealth is called the e-value (Ramdas, Grünwald, Vovk and Shafer,
*Game-Theoretic Statistics and Safe Anytime-Valid Inference*, Statistical Science 38, 2023). The money is divided among
several bets, since the true rate is not known (Waudby-Smith and Ramdas, *Estimating Means of Bounded Random Variables
by Betting*, JRSS B 86, 2024).

Several claims are made together by closed testing: a claim holds if the mean of the e-values exceeds 1 / alpha in every
group of claims that contains it. The mean of e-values is an e-value, however they depend on each other (Vovk and Wang,
*E-values: Calibration, Combination and Applications*, Annals of Statistics 49, 2021). So with probability 1 - alpha no
false claim is made; and if each e-value exceeds 1 / alpha, all claims are made, and their number costs nothing.
"""

from collections.abc import Sequence
from itertools import accumulate

_BETS = 10


def e_value(hits: int, trials: int, at_most: float, likely: float) -> float:
    """Compute the e-value against the hypothesis that trials are hits at a rate of at most `at_most`.

    Args:
        hits: How many trials were hits.
        trials: How many trials there were.
        at_most: The rate, above 0 and below 1.
        likely: The rate, above `at_most`, that earlier trials make likely. Half of the money is bet on it.

    Returns:
        The wealth of somebody who began with 1.
    """
    rates = [at_most + (1 - at_most) * bet / _BETS for bet in range(1, _BETS + 1)]

    def wealth(rate: float) -> float:
        won: float = (rate / at_most) ** hits * ((1 - rate) / (1 - at_most)) ** (trials - hits)
        return won

    return (sum(map(wealth, rates)) / _BETS + wealth(likely)) / 2


def corrected(e_values: Sequence[float]) -> list[float]:
    """Return for each e-value the smallest mean e-value of all groups that it is in."""
    found = []
    for place, own in enumerate(e_values):
        others = sorted([*e_values[:place], *e_values[place + 1 :]])
        found.append(min((own + total) / (1 + count) for count, total in enumerate(accumulate(others, initial=0.0))))
    return found


def claims_made(e_values: Sequence[float], alpha: float) -> list[bool]:
    """Decide which claims hold, so that with probability 1 - alpha no false one is among them.

    Args:
        e_values: The e-value against the opposite of each claim.
        alpha: The chance of any false claim.

    Returns:
        Whether each claim holds.
    """
    return [e >= 1 / alpha for e in corrected(e_values)]


def level_of(look: int, alpha: float) -> float:
    """Return the share of alpha that is spent on the explanation that is tested as number `look`, from 0 on.

    The shares of all together are alpha. Most of it goes to the first, which is seldom refuted.
    """
    return 0.75 * alpha * 0.25**look
