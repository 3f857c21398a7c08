"""Evidence that may be looked at after every trial: bets against a hypothesis, as in a fair game.

A test with a fixed sample is wrong more often than it says if one looks at it again and again, and stops when it is
significant. Here one may. Somebody bets on each trial, at odds that are fair if the hypothesis is true. Then the wealth
is expected never to grow, and Ville's inequality bounds the chance that it ever exceeds 1 / alpha by alpha, however
long one goes on and whenever one stops. The wealth is called the e-value (Ramdas, Grünwald, Vovk and Shafer,
*Game-Theoretic Statistics and Safe Anytime-Valid Inference*, Statistical Science 38, 2023).

The hypothesis here is that one training fails no more often than another. It does not say how often they fail. So the
bets are settled at the rates that are the worst for who bets: those that make what was seen the likeliest, among all
that agree with the hypothesis (Wasserman, Ramdas and Balakrishnan, *Universal Inference*, PNAS 117, 2020).

Several claims are made together by closed testing: a claim holds if the mean of the e-values exceeds 1 / alpha in every
group of claims that contains it. The mean of e-values is an e-value, however they depend on each other (Vovk and Wang,
*E-values: Calibration, Combination and Applications*, Annals of Statistics 49, 2021). So with probability 1 - alpha no
false claim is made; and if each e-value exceeds 1 / alpha, all claims are made, and their number costs nothing.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import exp, lgamma, log
from typing import NamedTuple

_SURE = 0.25  # how little is believed, before any trial, in the outcome that is not expected


class Counts(NamedTuple):
    """How many trials of a training failed, and how many were healthy."""

    failed: int
    healthy: int


@lru_cache(maxsize=10_000)  # an explanation asks for the same ones again after each trial
def e_value(more: Counts, less: Counts, like_more: Counts, like_less: Counts) -> float:
    """Compute the e-value against the hypothesis that one training fails no more often than another.

    Args:
        more: The trials of the one that is said to fail more often.
        less: The trials of the other one. No seed may be in both, since trials with the same seed are alike.
        like_more: Earlier trials that the first is expected to be like. The bets are better the truer this is, and fair
            in any case.
        like_less: Earlier trials that the other is expected to be like.

    Returns:
        The wealth of somebody who began with 1.
    """
    if more.failed * less.healthy > less.failed * more.healthy:
        worst = _best(Counts(more.failed + less.failed, more.healthy + less.healthy))
    else:  # what was seen agrees with the hypothesis
        worst = _best(more) + _best(less)
    first = _predicted(more, like_more.failed + 1, like_more.healthy + _SURE)
    second = _predicted(less, like_less.failed + _SURE, like_less.healthy + 1)
    return exp(first + second - worst)


def _predicted(seen: Counts, failed: float, healthy: float) -> float:
    """The logarithm of the chance of what was seen, in its order, if the rate has this beta distribution."""
    return _log_beta(seen.failed + failed, seen.healthy + healthy) - _log_beta(failed, healthy)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _best(seen: Counts) -> float:
    """The logarithm of the chance of what was seen, in its order, at the rate that makes it the likeliest."""
    return sum(count * log(count / sum(seen)) for count in seen if count)


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
