"""How often does an explanation claim something false? `python -m experiments.explain.honesty [EXPERIMENTS]`

Each experiment is simulated, with 6 differences, and looked at whenever it needs more trials. A claim says that a
mixture fails more often than each that is said to be healthy, or less often than each that is said to fail; it is false
if that is not so of the true rates. A part is false if `role_of` says it of a difference that has another. At most 5 %
of the experiments may ever claim anything false.
"""

import random
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stability.analysis.beliefs import Claim, Difference, Job
from stability.analysis.explanation import explain, role_of

Cause = frozenset[str]

_NAMES = ("a", "b", "c", "d", "e", "f")
_DIFFERENCES = [Difference(name, "failed", "healthy", f"group {i // 2}") for i, name in enumerate(_NAMES)]
_MOST = 1500  # trials of an experiment
_A_OR_BC: tuple[set[str], ...] = ({"a"}, {"b", "c"})


class _World(NamedTuple):
    """Trainings whose rate of failure is known.

    Attributes:
        name: What sets it apart.
        rate: The rate of failure of a mixture.
        parts: The part of each difference; None where no kind of part fits.
        shared: Whether a seed is as hard for all mixtures.
    """

    name: str
    rate: Callable[[Cause], float]
    parts: dict[str, str] | None
    shared: bool = False


def _has(failed: Cause) -> bool:
    return any(cause <= failed for cause in _A_OR_BC)


_PARTS = {"a": "alone", "b": "together", "c": "together", "d": "none", "e": "none", "f": "none"}
_WORLDS = (
    _World("always", lambda failed: float(_has(failed)), _PARTS),
    _World("9 of 10 against 1 of 10", lambda failed: 0.9 if _has(failed) else 0.1, _PARTS),
    _World("6 of 10 against 1 of 20", lambda failed: 0.6 if _has(failed) else 0.05, _PARTS),
    _World("7 of 10 against 1 of 30, by seed", lambda failed: 0.7 if _has(failed) else 0.03, _PARTS, shared=True),
    _World("the two are alike", lambda failed: 0.3, dict.fromkeys(_NAMES, "none")),
    _World("the two are alike, half fail", lambda failed: 0.5, dict.fromkeys(_NAMES, "none")),
    _World("each value adds a little", lambda failed: 0.05 + 0.15 * len(failed), None),
    _World("one value protects", lambda failed: float(_has(failed) and ("d" not in failed or len(failed) > 4)), None),
)


def is_false(claim: Claim, claims: Sequence[Claim], rate: Callable[[Cause], float]) -> bool:
    """Say whether the true rates of failure are not in the order that a claim states."""
    own, others = rate(claim.mixture.failed), [rate(c.mixture.failed) for c in claims if c.fails != claim.fails]
    return own <= max(others) if claim.fails else own >= min(others)


def errors(world: _World, seed: int) -> tuple[bool, bool, bool, int]:
    """Run an experiment. Return whether it ever claimed, or told a part, wrongly; whether it was confirmed; trials."""
    outcomes: dict[Job, bool | None] = {}
    wrong_claim = wrong_part = False
    while True:
        found = explain(_DIFFERENCES, outcomes)
        made = [claim for claim in found.claims if claim.holds]
        wrong_claim |= any(is_false(claim, found.claims, world.rate) for claim in made)
        if world.parts:
            told = {name: role_of(name, found).kind for name in _NAMES}
            wrong_part |= any(kind not in ("undecided", world.parts[name]) for name, kind in told.items())
        if not found.needed or len(outcomes) >= _MOST:
            return wrong_claim, wrong_part, found.confirmed, len(outcomes)
        for job in found.needed:
            own = "" if world.shared else sorted(job.mixture.failed)
            chance = random.Random(f"{world.name} {seed} {own} {job.seed}").random()
            outcomes[job] = chance < world.rate(job.mixture.failed)


def main(experiments: str = "200") -> None:
    """Print a table with a row for each kind of training."""
    print("| trainings fail | experiments | confirmed | ever a false claim | ever a false part | trials, mean |")
    print("|---|---|---|---|---|---|")
    for world in _WORLDS:
        results = [errors(world, seed) for seed in range(int(experiments))]
        claims, parts, confirmed, trials = (sum(column) for column in zip(*results, strict=True))
        part = parts if world.parts else "–"
        print(f"| {world.name} | {len(results)} | {confirmed} | {claims} | {part} | {trials / len(results):.0f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
