"""Why one configuration fails and another does not: the smallest cause, found by adaptive experiment.

The two configurations have *differences*. A *mixture* has the failed configuration's values of some of them, and the
healthy one's of the others. A mixture fails if its rate of failure, over seeds, is above the *threshold*: the middle
between the rates of the two configurations. Wanted are

- the *sufficient sets*: the smallest sets of the failed configuration's values with which the healthy one fails;
- the *cures*: the smallest sets of the healthy configuration's values with which the failed one is healthy;
- for numbers that have a part, the two values between which they flip.

**Search.** Every sufficient set shares a difference with every cure, or the two would contradict each other. So the
next set to try is a smallest one that shares a difference with every cure found so far. If it fails, it is a sufficient
set. If it is healthy, it is enlarged to a largest healthy mixture, and what that lacks is a new cure. When nothing is
left to try, all sufficient sets and all cures are known (Gunopulos et al., *Discovering All Most Specific Sentences*,
ACM TODS 28, 2003; Reiter, *A Theory of Diagnosis from First Principles*, Artificial Intelligence 32, 1987; Liffiton et
al., *Fast, Flexible MUS Enumeration*, Constraints 21, 2016). A cure is narrowed by halves, as QuickXplain does (Junker,
AAAI 2004; it has its root in delta debugging, Zeller and Hildebrandt, IEEE TSE 28, 2002). Differences that belong
together are moved together first.

This relies on one assumption: more of the failed configuration's values make a training no healthier. What contradicts
it, the answer names.

**Belief.** While it searches, a mixture counts as failing or healthy as soon as one is much likelier than the other: 9
times, which takes one seed, as long as all trials of each mixture end alike; 80 times where failures come by chance.

**Confirmation.** A belief was used to choose, so it proves nothing. What was found is stated as claims: that the failed
configuration fails, that the healthy one does not, that every sufficient set fails, and that every cure helps. These
are tested on fresh seeds by e-values (see `bets`). If a claim is refuted, the search goes on with all that is known,
with fresh seeds again. The chance that any claim is made wrongly is at most 5 %, whenever the experiment is stopped.

Everything here is a function of the results so far. So an experiment that was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from stability.analysis.beliefs import Beliefs, Claim, Difference, Job, Mixture, Needed, Outcomes
from stability.analysis.bets import claims_made, level_of
from stability.analysis.levels import Level, is_number

ALPHA = 0.05  # the chance that any claim is made wrongly

_MOST_FRESH = 60  # seeds of a claim in the first test; then the rates are estimated again, and each test has twice more
_MOST_LOOKS = 4  # explanations that are tested one after another
_HALVINGS = 5  # of the interval between two values of a number, at most
_CLOSE = 2.0  # the ratio of two values at which a bisection on the logarithmic scale ends
_DIGITS = 3  # significant digits of a value between


@dataclass(frozen=True)
class Flip:
    """Two values of a number between which training flips.

    Attributes:
        name: The difference.
        others: The differences that have the failed configuration's value meanwhile.
        healthy: The value at which training is healthy.
        fails: The value at which it fails.
        holds: Whether both are confirmed.
    """

    name: str
    others: frozenset[str]
    healthy: float
    fails: float
    holds: bool = False


@dataclass(frozen=True)
class Explanation:
    """What is known so far.

    Attributes:
        needed: The trials that are needed next, in the order in which they help most; empty at the end.
        stage: What they are for: `sides`, `search`, `claims` or `values`.
        problem: Why there is nothing to explain; empty if there is.
        threshold: The rate of failure above which a mixture fails; NaN if it is not known yet.
        sufficient: The sufficient sets found so far, the smallest first.
        cures: The cures found so far, the smallest first.
        complete: Whether the search has found all of them.
        claims: The claims that are tested, with their evidence; empty during a search.
        flips: For numbers with a part, between which values they flip.
    """

    needed: tuple[Job, ...] = ()
    stage: str = "sides"
    problem: str = ""
    threshold: float = math.nan
    sufficient: tuple[frozenset[str], ...] = ()
    cures: tuple[frozenset[str], ...] = ()
    complete: bool = False
    claims: tuple[Claim, ...] = ()
    flips: tuple[Flip, ...] = ()

    @property
    def contradiction(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """A set that fails, within a larger one that is healthy (both as cures or sufficient sets); None without one.

        Then the assumption is wrong that more of the failed configuration's values make a training no healthier.
        """
        pairs = ((names, cure) for names in self.sufficient for cure in self.cures if not names & cure)
        return next(pairs, None)

    @property
    def confirmed(self) -> bool:
        """Whether the whole explanation holds."""
        whole = self.complete and bool(self.claims) and not self.contradiction
        return whole and all(claim.holds for claim in self.claims)


class Role(NamedTuple):
    """What a difference has to do with the failure.

    Attributes:
        kind: `alone`: it is enough. `together`: it is enough only together with others. `none`: it has no part.
            `undecided`: there is not enough evidence.
        others: The sets of differences that it is enough together with.
    """

    kind: Literal["alone", "together", "none", "undecided"]
    others: tuple[frozenset[str], ...] = ()


def role_of(name: str, found: Explanation) -> Role:
    """Return what a difference has to do with the failure, as far as that is confirmed."""
    made = {claim.mixture.failed for claim in found.claims if claim.holds and claim.fails}
    if frozenset({name}) in made:
        return Role("alone")
    if not found.confirmed:
        return Role("undecided")
    others = tuple(names - {name} for names in found.sufficient if name in names)
    return Role("together", others) if others else Role("none")


def explain(differences: Sequence[Difference], outcomes: Outcomes, invalid: Collection[Mixture] = ()) -> Explanation:
    """Say what is known of the cause, and which trials are needed to know more.

    Args:
        differences: All settings in which the two configurations differ.
        outcomes: The results so far.
        invalid: Mixtures that are no valid configuration.

    Returns:
        The explanation. It is final when it needs no more trials.
    """
    names = frozenset(difference.name for difference in differences)
    for look in range(_MOST_LOOKS):
        beliefs = Beliefs(names, outcomes, invalid, look)
        try:
            beliefs.compare_sides()
        except Needed as needed:
            return Explanation(needed=needed.jobs)
        if problem := beliefs.problem():
            return Explanation(problem=problem)
        found = _search(differences, beliefs)
        if found.needed:
            return found
        claims, jobs = _test(_claims(names, found), beliefs, _MOST_FRESH * 2**look)
        found = replace(found, stage="claims", claims=claims, needed=jobs)
        if found.needed or found.confirmed:
            break
    if found.needed or not found.confirmed:
        return found
    for later in range(look + 1, look + 4):  # near a flip failures may come by chance, which shows in the test
        found = _find_flips(differences, Beliefs(names, outcomes, invalid, later), found)
        if found.needed or all(flip.holds for flip in found.flips):
            break
    return found


def _search(differences: Sequence[Difference], beliefs: Beliefs) -> Explanation:
    """Find all sufficient sets and all cures, or as many as the results so far tell."""
    everything = frozenset(difference.name for difference in differences)
    sufficient: list[frozenset[str]] = []
    cures: list[frozenset[str]] = []
    untrainable: list[frozenset[str]] = []
    jobs: tuple[Job, ...] = ()

    def is_cure(names: frozenset[str]) -> bool:
        return beliefs.fails(Mixture(everything - names)) is False

    try:
        while left := [names for names in _hitting_sets(cures) if names not in (*sufficient, *untrainable)]:
            names = min(left, key=_order)
            fails = beliefs.fails(Mixture(names))
            if fails is None:
                untrainable.append(names)
            elif fails:
                sufficient.append(names)
            else:
                groups = _smallest(_related([d for d in differences if d.name not in names]), is_cure)
                alone = [frozenset({name}) for group in groups for name in sorted(group)]
                cure = frozenset[str]().union(*_smallest(alone, is_cure))
                cures = [other for other in cures if not cure <= other] + [cure]
    except Needed as needed:
        jobs = needed.jobs
    return Explanation(
        needed=jobs,
        stage="search",
        threshold=beliefs.threshold,
        sufficient=tuple(sorted(sufficient, key=_order)),
        cures=tuple(sorted(cures, key=_order)),
        complete=not jobs and not untrainable,
    )


def _order(names: frozenset[str]) -> tuple[int, list[str]]:
    return len(names), sorted(names)


def _hitting_sets(sets: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """All smallest sets that share something with each of these (Berge's algorithm)."""
    found = [frozenset[str]()]
    for names in sets:
        longer = {one if one & names else one | {name} for one in found for name in names}
        found = [one for one in longer if not any(other < one for other in longer)]
    return found


def _related(differences: Sequence[Difference]) -> list[frozenset[str]]:
    """The names of differences, in groups of those that belong together."""
    by_group = sorted(differences, key=lambda difference: difference.group)
    return [frozenset(d.name for d in group) for _, group in groupby(by_group, key=lambda d: d.group)]


def _smallest(parts: Sequence[frozenset[str]], holds: Callable[[frozenset[str]], bool]) -> list[frozenset[str]]:
    """Return a smallest choice of the parts that holds, given that all of them hold and none does not (QuickXplain)."""

    def narrow(kept: frozenset[str], is_new: bool, parts: Sequence[frozenset[str]]) -> list[frozenset[str]]:
        if is_new and holds(kept):
            return []
        if len(parts) == 1:
            return [*parts]
        left, right = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        of_right = narrow(kept.union(*left), True, right)
        return narrow(kept.union(*of_right), bool(of_right), left) + of_right

    return narrow(frozenset(), False, parts)


def _claims(names: frozenset[str], found: Explanation) -> tuple[Claim, ...]:
    """The claims that together are the explanation, each once."""
    fail = [names, *found.sufficient]
    healthy = [frozenset[str](), *(names - cure for cure in found.cures)]
    claims = [Claim(Mixture(own), True) for own in fail] + [Claim(Mixture(own), False) for own in healthy]
    return tuple(dict.fromkeys(claims))


def _test(claims: Sequence[Claim], beliefs: Beliefs, most: int) -> tuple[tuple[Claim, ...], tuple[Job, ...]]:
    """Test claims on fresh seeds. All that are open get the next seeds together.

    Seeds are taken in their order, and no claim looks ahead, because trials with the same seed are alike.

    Args:
        claims: The claims.
        beliefs: What was known before.
        most: The seeds of a claim, at most.

    Returns:
        The claims with their evidence, and the trials that are needed next.
    """
    alpha, tested, tried = level_of(beliefs.look, ALPHA), [*claims], 0
    jobs: list[Job] = []
    while not jobs and tried < most and not any(map(beliefs.is_doubtful, tested)):
        still_open = [number for number, claim in enumerate(tested) if claim.e < 1 / alpha]
        if not still_open:
            break
        more = min(_seeds_left(tested[number], beliefs, 1 / alpha) for number in still_open)
        tried = min(tried + more, most)
        seeds = range(beliefs.first_fresh, beliefs.first_fresh + tried)
        needed = [Job(tested[number].mixture, seed) for seed in seeds for number in still_open]
        jobs = [job for job in needed if job not in beliefs.outcomes]
        for number in still_open:
            tested[number] = _weighed(tested[number], beliefs, seeds)
    made = claims_made([claim.e for claim in tested], alpha)
    return tuple(replace(claim, holds=holds) for claim, holds in zip(tested, made, strict=True)), tuple(jobs)


def _weighed(claim: Claim, beliefs: Beliefs, seeds: Sequence[int]) -> Claim:
    """The claim with the evidence of these seeds, as far as they are trained."""
    results = [beliefs.outcomes.get(Job(claim.mixture, seed)) for seed in seeds]
    failures, healthy = results.count(True), results.count(False)
    return replace(claim, failures=failures, trials=failures + healthy, e=beliefs.e_value(claim, failures, healthy))


def _seeds_left(claim: Claim, beliefs: Beliefs, bound: float) -> int:
    """How many more trials a claim needs if all of them speak for it."""
    more, failures, healthy = 0, claim.failures, claim.trials - claim.failures
    while beliefs.e_value(claim, failures, healthy) < bound:
        more += 1
        failures, healthy = failures + claim.fails, healthy + (not claim.fails)
    return more


def _find_flips(differences: Sequence[Difference], beliefs: Beliefs, found: Explanation) -> Explanation:
    """Find for every number with a part between which values it flips, and test these values like an explanation."""
    flips: list[Flip] = []
    jobs: list[Job] = []
    for difference in differences:
        sets = [names for names in found.sufficient if difference.name in names]
        if sets and all(is_number(value) and math.isfinite(value) for value in (difference.failed, difference.healthy)):
            others = sets[0] - {difference.name}
            (healthy, first), (fails, second) = (_edge(difference, others, beliefs, side) for side in (False, True))
            flips.append(Flip(difference.name, others, healthy, fails))
            jobs += dict.fromkeys(first + second)
    found = replace(found, stage="values", flips=tuple(flips))
    if jobs:
        return replace(found, needed=tuple(jobs))
    ends = {difference.name: (difference.failed, difference.healthy) for difference in differences}
    claims, needed = _test([claim for flip in flips for claim in _ends(flip, ends[flip.name])], beliefs, _MOST_FRESH)
    made = {(claim.mixture, claim.fails) for claim in claims if claim.holds}
    holds = [all((c.mixture, c.fails) in made for c in _ends(flip, ends[flip.name])) for flip in flips]
    tested = [replace(flip, holds=held) for flip, held in zip(flips, holds, strict=True)]
    return replace(found, flips=tuple(tested), needed=needed)


def _edge(
    difference: Difference, others: frozenset[str], beliefs: Beliefs, fails: bool
) -> tuple[float, tuple[Job, ...]]:
    """Find by bisection the last value of a number at which all is as on one side, as far as the results tell.

    The edges of the two sides are looked for apart: between them, failures may come by chance. If they do not, both
    bisections try the same values.

    Returns:
        The value, and the trials that are needed to go on.
    """
    value, beyond = (difference.failed, difference.healthy) if fails else (difference.healthy, difference.failed)
    try:
        for _ in range(_HALVINGS):
            middle = _middle(value, beyond)
            if middle is None:
                break
            if beliefs.clearly(Mixture(others, (difference.name, middle))) is fails:
                value = middle
            else:
                beyond = middle
    except Needed as needed:
        return value, needed.jobs
    return value, ()


def _middle(a: float, b: float) -> float | None:
    """The value between two, on the logarithmic scale if both are above 0; None if they are close enough."""
    whole = isinstance(a, int) and isinstance(b, int)
    positive = a > 0 and b > 0
    if positive and not whole and max(a / b, b / a) <= _CLOSE:
        return None
    value = math.sqrt(a * b) if positive else (a + b) / 2
    value = round(value) if whole else float(f"{value:.{_DIGITS}g}")
    return None if value in (a, b) else value


def _ends(flip: Flip, known: Collection[Level]) -> list[Claim]:
    """The claims on a flip's two values, except for those that the two configurations have."""
    ends = ((flip.healthy, False), (flip.fails, True))
    return [Claim(Mixture(flip.others, (flip.name, value)), fails) for value, fails in ends if value not in known]
