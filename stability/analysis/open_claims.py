"""Which trials the claims of a study still need, decided anew after every seed."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stability.analysis.claims import Claim
from stability.analysis.levels import Level
from stability.analysis.rulings import ALPHA, Ruling, cells_with, rule
from stability.analysis.trial import Trials

FEWEST = 6  # seeds with which a claim can be ruled on, if all of them agree and it is the only one

_AT_FIRST = 2.0  # p before the first seed, as there are two sides

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Planned:
    """A trial that a study may train.

    Attributes:
        seed: Its seed.
        factors: {dotted name: level} of its settings.
    """

    seed: int
    factors: Mapping[str, Level]


@dataclass(frozen=True)
class _Open(Generic[Key]):
    """A claim that may still be ruled on: its trials by seed, the seeds left, and its ruling so far."""

    trials: Mapping[int, Sequence[Key]]
    left: Sequence[int]
    ruling: Ruling


def needed_next(
    claims: Sequence[Claim], trials: Trials, planned: Mapping[Key, Planned], begun: Collection[Key]
) -> list[Key]:
    """Return the planned trials that the claims need next.

    A claim needs trials as long as it is not ruled on, and as the seeds that are left could rule on it if they all
    agreed. It needs its own cells only, and so many seeds as it takes at least.

    Args:
        claims: The claims that the study states.
        trials: The finished trials.
        planned: All trials of the study.
        begun: Those that were begun, finished or not.

    Returns:
        Their keys, in the order of the plan; none if the study is at its end.
    """
    found = [own for ruling in rule(claims, trials, anytime=True) if (own := _open(ruling, planned, begun))]
    needed = {key for claim in found for seed in claim.left[: _least_seeds(claim.ruling)] for key in claim.trials[seed]}
    return [key for key in planned if key in needed]


def _open(ruling: Ruling, planned: Mapping[Key, Planned], begun: Collection[Key]) -> _Open[Key] | None:
    claim = ruling.claim
    if ruling.ruling != "inconclusive":
        return None
    cells = {key: own for key, trial in planned.items() if (own := cells_with(claim, trial.factors))}
    if len({cell for own in cells.values() for cell in own}) < len(claim.cells or ({},)):
        return None  # the study does not have what it compares
    by_seed: dict[int, list[Key]] = {}
    for key in cells:
        by_seed.setdefault(planned[key].seed, []).append(key)
    left = [seed for seed in sorted(by_seed) if not all(key in begun for key in by_seed[seed])]
    can_refute = claim.verb == "all"  # one counterexample does
    p = _AT_FIRST if math.isnan(ruling.p) else ruling.p
    could_rule = p * 0.5 ** len(left) <= ALPHA or can_refute
    return _Open(by_seed, left, ruling) if left and could_rule else None


def _least_seeds(ruling: Ruling) -> int:
    """How many more seeds rule on a claim if all of them agree. A seed halves p, at best."""
    if ruling.claim.verb == "all":
        return max(1, 2 - ruling.seeds)
    p = _AT_FIRST if math.isnan(ruling.corrected) else ruling.corrected
    return max(1, math.ceil(math.log2(p / ALPHA) - 1e-9))
