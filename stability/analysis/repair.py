"""The race of the changes that may mend a failed training: a function of the outcomes so far.

Changes are tried on a first seed, one at a time, in their order (see `remedies`), so a small one comes before a larger
one. If a small one has gone too far already, larger ones of its kind are ruled out. One that is healthy is
confirmed on fresh seeds, which were not used to choose it. If it fails on one of them, the race goes on. When all
changes of single roles are spent, the most promising ones of different roles are tried together.

Everything here is a function of the results so far, so a race that was stopped goes on where it was.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from stability.analysis.remedies import Change
from stability.analysis.tried import Tried
from stability.core.text import counted

_TOGETHER = 3  # roles of which the most promising changes are tried in pairs
# Failures from near to far; others are farther.
_ORDER = ("undecided", "degraded", "mode_collapse", "blank_collapse", "not_training")
_TOO_LARGE = ("exploded", "non_finite")  # outcomes of steps that are too large
UNCHANGED = Change((), (), "as it was given")  # FAILED itself
# Causes that are measured in the sizes of the updates, which differ little among seeds.
_OF_ALL_SEEDS = ("step_too_small", "no_update", "in_warmup", "precision")


class Job(NamedTuple):
    """A trial: FAILED with a change, and a seed."""

    change: Change
    seed: int


Results = Mapping[Job, Tried]


@dataclass(frozen=True)
class Race:
    """What is known so far.

    Attributes:
        needed: The trials that are needed next; empty at the end.
        confirming: The change that they are to confirm; None if they try changes for the first time.
        answer: The smallest change that was healthy on the first seed and on all fresh ones; None if there is none yet.
    """

    needed: tuple[Job, ...]
    confirming: Change | None = None
    answer: Change | None = None


def race(
    changes: Sequence[Change],
    results: Results,
    first: int,
    seeds: int,
    *,
    invalid: Collection[Change] = (),
) -> Race:
    """Say what is known, and which trials are needed next.

    Args:
        changes: The changes of single roles, in the order in which to try them.
        results: The trials that have ended.
        first: The seed on which changes are tried first.
        seeds: The number of fresh seeds on which one has to be healthy.
        invalid: Changes that are no valid configuration.
    """
    for change in _in_order(changes, results, first, invalid):
        if (tried := Job(change, first)) not in results:
            return Race((tried,))
        fresh = fresh_jobs(change, first, seeds)
        if any(results[job].failed is not False for job in (tried, *fresh) if job in results):
            continue
        if untried := tuple(job for job in fresh if job not in results):
            return Race(untried, confirming=change)
        return Race((), answer=change)
    return Race(())


def check_failed(results: Results, first: int) -> tuple[Job | None, str]:
    """Say whether FAILED fails again: in two of at most three seeds, or in one with a cause that all seeds have.

    A crash says nothing of the training: if only one trial has crashed, another seed takes its place.

    Returns:
        The trial that is needed next, if one is, and why there is nothing to repair; empty if there is.
    """
    tried = [results[job] for seed in range(first, first + 4) if (job := Job(UNCHANGED, seed)) in results]
    known = [result for result in tried if result.failed is not None]
    if (crashed := len(tried) - len(known)) == 2 or (crashed and not known):
        return None, f"FAILED crashed in {crashed} of {counted(len(tried), 'trial')}: mend what the error says first."
    healthy = sum(not result.failed for result in known)
    if healthy == 2:
        failed = f"and failed in {len(known) - healthy}" if len(known) > healthy else "and did not fail"
        return None, f"FAILED is healthy in {healthy} of {len(known)} seeds, {failed}: there is little to repair."
    sure = any(result.failed and result.cause in _OF_ALL_SEEDS for result in known)
    return (None, "") if sure or len(known) - healthy == 2 else (Job(UNCHANGED, first + len(tried)), "")


def fresh_jobs(change: Change, first: int, seeds: int) -> list[Job]:
    """Return the trials that confirm a change."""
    return [Job(change, first + 1 + number) for number in range(seeds)]


def next_best(answer: Change, results: Results, first: int) -> Change | None:
    """Return the other change with the lowest error rate that was healthy on the first seed; None if there is none."""
    others = {
        job.change: result.error_rate
        for job, result in results.items()
        if job.seed == first and job.change not in (answer, UNCHANGED) and result.failed is False
    }
    known = {change: rate for change, rate in others.items() if not math.isnan(rate)}
    return min(known, key=known.__getitem__) if known else None


def _in_order(changes: Sequence[Change], results: Results, first: int, invalid: Collection[Change]) -> Iterator[Change]:
    """The changes in the order in which they are tried. The last ones depend on the results of those before."""
    valid = [change for change in changes if change not in invalid]
    for place, change in enumerate(valid):
        if Job(change, first) in results or not _is_ruled_out(change, valid[:place], results, first):
            yield change
    known = ((change, results.get(Job(change, first))) for change in valid)
    ended = [change for change, tried in known if tried and tried.failed is not None]
    best: dict[tuple[str, ...], Change] = {}
    for change in sorted(ended, key=lambda change: _distance(results[Job(change, first)])):
        best.setdefault(change.roles, change)
    for one, other in combinations([*best.values()][:_TOGETHER], 2):
        if (both := _together(one, other)) not in invalid:
            yield both


def _is_ruled_out(change: Change, smaller: Sequence[Change], results: Results, first: int) -> bool:
    """Whether a smaller change of the same kind has already made the steps too large, or too small."""
    same = (one for one in smaller if (one.roles, one.larger) == (change.roles, change.larger))
    ended = [tried for one in same if (tried := results.get(Job(one, first)))]
    if change.larger:
        return any(tried.outcome in _TOO_LARGE for tried in ended)
    return change.larger is False and any(tried.cause == "step_too_small" for tried in ended)


def _distance(result: Tried) -> tuple[int, float, int]:
    """How far a trial was from being healthy, for sorting."""
    rank = 0 if not result.failed else _ORDER.index(result.outcome) + 1 if result.outcome in _ORDER else len(_ORDER) + 1
    return rank, 1.0 if math.isnan(result.error_rate) else result.error_rate, -result.steps


def _together(one: Change, other: Change) -> Change:
    return Change((*one.settings, *other.settings), (*one.roles, *other.roles), f"{one.reason}; {other.reason}")
