"""Which trials the claims of a study still need, decided anew after every seed."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stability.analysis.bets import corrected
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
class OpenClaim(Generic[Key]):
    """A claim that may still be ruled on.

    Attributes:
        ruling: The ruling on it so far.
        trials: The trials of the plan that it is about, by their seed.
        left: The seeds of which not all trials were begun.
    """

    ruling: Ruling
    trials: Mapping[int, Sequence[Key]]
    left: Sequence[int]

    @property
    def needed(self) -> set[Key]:
        """The trials that it needs next: as many seeds as it takes at least."""
        return {key for seed in self.left[: _least_seeds(self.ruling)] for key in self.trials[seed]}

    @property
    def _refutable_at_once(self) -> bool:
        return self.ruling.claim.verb == "all"  # one counterexample does

    @property
    def _most(self) -> float:
        """The wealth of its bets if all seeds left agree, none of which more than doubles it."""
        now = self.ruling.wealth
        return (2.0**self.ruling.seeds / _AT_FIRST if math.isnan(now) else now) * 2.0 ** len(self.left)

    def is_within_reach(self, others: Sequence["OpenClaim[Key]"]) -> bool:
        """Return whether it is ruled on if all seeds left agree, on it and on the others.

        They are corrected together. A claim that is not tested, or is not any more after a counterexample, takes no
        part in that.
        """
        tested = [
            one._most
            for one in others
            if one is not self and not one._refutable_at_once and not math.isnan(one.ruling.wealth)
        ]
        return self._refutable_at_once or corrected([self._most, *tested])[0] >= 1 / ALPHA


def needed_next(
    claims: Sequence[Claim], trials: Trials, planned: Mapping[Key, Planned], begun: Collection[Key]
) -> list[Key]:
    """Return the planned trials that the claims need next.

    Args:
        claims: The claims that the study states.
        trials: The finished trials.
        planned: All trials of the study.
        begun: Those that were begun, finished or not.

    Returns:
        Their keys, in the order of the plan; none if the study is at its end.
    """
    needed = {key for claim in open_claims(claims, trials, planned, begun) for key in claim.needed}
    return [key for key in planned if key in needed]


def open_claims(
    claims: Sequence[Claim], trials: Trials, planned: Mapping[Key, Planned], begun: Collection[Key]
) -> list[OpenClaim[Key]]:
    """Return the claims that are not ruled on, and that the seeds which are left could still rule on.

    The arguments are those of `needed_next`.
    """
    undecided, stated = _undecided(claims, trials, planned, begun)
    return [claim for claim in undecided if claim.is_within_reach(stated)]


def given_up(
    claims: Sequence[Claim], trials: Trials, planned: Mapping[Key, Planned], begun: Collection[Key]
) -> list[str]:
    """Return the ids of the claims that are not ruled on, and that the seeds which are left could not rule on.

    The arguments are those of `needed_next`.
    """
    undecided, stated = _undecided(claims, trials, planned, begun)
    return [claim.ruling.claim.id for claim in undecided if not claim.is_within_reach(stated)]


def _undecided(
    claims: Sequence[Claim], trials: Trials, planned: Mapping[Key, Planned], begun: Collection[Key]
) -> tuple[list[OpenClaim[Key]], list[OpenClaim[Key]]]:
    """The claims that are not ruled on and have seeds left; and all claims."""
    stated = [_seeds_of(ruling, planned, begun) for ruling in rule(claims, trials, anytime=True)]
    return [claim for claim in stated if claim.ruling.ruling == "inconclusive" and claim.left], stated


def _seeds_of(ruling: Ruling, planned: Mapping[Key, Planned], begun: Collection[Key]) -> OpenClaim[Key]:
    """The claim with its seeds; with none if the study does not have what it compares."""
    claim = ruling.claim
    cells = {key: own for key, trial in planned.items() if (own := cells_with(claim, trial.factors))}
    if len({cell for own in cells.values() for cell in own}) < len(claim.cells or ({},)):
        return OpenClaim(ruling, {}, ())
    by_seed: dict[int, list[Key]] = {}
    for key in cells:
        by_seed.setdefault(planned[key].seed, []).append(key)
    left = [seed for seed in sorted(by_seed) if not all(key in begun for key in by_seed[seed])]
    return OpenClaim(ruling, by_seed, left)


def _least_seeds(ruling: Ruling) -> int:
    """How many more seeds rule on a claim if all of them agree. A seed halves p, at best."""
    if ruling.claim.verb == "all":
        return max(1, 2 - ruling.seeds)
    p = _AT_FIRST if math.isnan(ruling.corrected) else ruling.corrected
    return max(1, math.ceil(math.log2(p / ALPHA) - 1e-9))
