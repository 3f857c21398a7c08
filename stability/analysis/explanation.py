"""Why one configuration fails and another does not: the smallest cause, found by adaptive experiment.

The two configurations have *differences*. A *mixture* has the failed configuration's values of some of them, and the
healthy one's of the others. Failures may come by chance, so *fails* and *is healthy* are said of a mixture in
comparison: each mixture that is said to fail does so in more of the seeds than each that is said to be healthy. Wanted
are

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

**Belief.** While it searches, a mixture counts as failing or healthy as soon as one is 15 times likelier than the
other, by its own trials, by those of smaller ones that failed, and by those of larger ones that were healthy. That
takes one seed where all trials of each mixture end alike, and one to three where failures come by chance. What
is found, a sufficient set or a cure, has to be 200 times likelier: all later steps follow from it, and a wrong one
would lead to many others.

**Confirmation.** A belief was used to choose, so it proves nothing. What was found is stated as claims: with every
sufficient set the healthy configuration fails more often than the failed one does with any of the cures. By the
assumption the failed configuration itself fails no less often than the former, and the healthy one no more often than
the latter, so these two need no claims. The claims are tested on fresh seeds by e-values (see `bets`). No rate has to
be known for that, and no threshold to be set: that is what makes it cheap. If a claim is refuted, the search goes on
with all that is known, and with fresh seeds again. The chance that any claim is made wrongly is at most 5 %, whenever
the experiment is stopped.

Everything here is a function of the results so far. So an experiment that was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from stability.analysis.beliefs import SEEDS_APART, Beliefs, Claim, Difference, Job, Mixture, Needed, Outcomes
from stability.analysis.bets import claims_made, level_of
from stability.analysis.levels import is_number

ALPHA = 0.05  # the chance that any claim is made wrongly

_MOST_FRESH = 60  # seeds of a claim in the first test; then the rates are estimated again, and each test has twice more
_MOST_LOOKS = 4  # explanations that are tested one after another
_MOST_SETS = 500  # that are looked at in a search
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
        sufficient: The sufficient sets found so far, the smallest first.
        cures: The cures found so far, the smallest first.
        complete: Whether the search has found all of them.
        claims: The claims that are tested, with their evidence; empty during a search.
        flips: For numbers with a part, between which values they flip.
    """

    needed: tuple[Job, ...] = ()
    stage: str = "sides"
    problem: str = ""
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
        claims, jobs = _test(
            _claims(names, found.sufficient, found.cures), beliefs, _MOST_FRESH * 2**look, beliefs.is_doubtful
        )
        found = replace(found, stage="claims", claims=claims, needed=jobs)
        if found.needed or found.confirmed:
            break
    if found.needed or not found.confirmed:
        return found
    for later in range(look + 1, look + 7):  # near a flip failures may come by chance, which shows in the test
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
    to_try = _hitting_sets(cures)
    jobs: tuple[Job, ...] = ()

    def is_cure(names: frozenset[str]) -> bool:
        return beliefs.fails(Mixture(everything - names)) is False

    try:
        while left := {*to_try} - {*sufficient, *untrainable}:
            names = min(left, key=_order)
            fails = beliefs.fails(Mixture(names))
            if fails is None:
                untrainable.append(names)
            elif fails:
                beliefs.make_sure(Mixture(names))
                sufficient.append(names)
            else:
                groups = _smallest(_related([d for d in differences if d.name not in names]), is_cure)
                alone = [frozenset({name}) for group in groups for name in sorted(group)]
                cure = frozenset[str]().union(*_smallest(alone, is_cure))
                beliefs.make_sure(Mixture(everything - cure))
                cures = [other for other in cures if not cure <= other] + [cure]
                to_try = _hitting_sets(cures)
    except Needed as needed:
        jobs = needed.jobs
    return Explanation(
        needed=jobs,
        stage="search",
        sufficient=tuple(sorted(sufficient, key=_order)),
        cures=tuple(sorted(cures, key=_order)),
        complete=not jobs and not untrainable and len(to_try) < _MOST_SETS,
    )


def _order(names: frozenset[str]) -> tuple[int, list[str]]:
    return len(names), sorted(names)


def _hitting_sets(sets: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """All smallest sets that share something with each of these (Berge's algorithm); of very many the shortest."""
    found = [frozenset[str]()]
    for names in sets:
        hit = [one for one in found if one & names]
        longer = [one | {name} for one in found if not one & names for name in names]
        found = hit + [one for one in longer if not any(other < one for other in hit)]
        if len(found) > _MOST_SETS:  # with many differences they would be too many to go through
            found = sorted(found, key=_order)[:_MOST_SETS]
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
        if len(parts) <= 1:
            return [*parts]
        left, right = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        of_right = narrow(kept.union(*left), True, right)
        return narrow(kept.union(*of_right), bool(of_right), left) + of_right

    return narrow(frozenset(), False, parts)


def _claims(
    names: frozenset[str], sufficient: Sequence[frozenset[str]], cures: Sequence[frozenset[str]]
) -> tuple[Claim, ...]:
    """The claims that together are the explanation. There is always one that fails, and one that is healthy."""
    fail = [*sufficient] or [names]
    healthy = [names - cure for cure in cures] or [frozenset()]
    return (*(Claim(Mixture(own), True) for own in fail), *(Claim(Mixture(own), False) for own in healthy))


def _test(
    claims: Sequence[Claim], beliefs: Beliefs, most: int, is_doubtful: Callable[[Claim], bool]
) -> tuple[tuple[Claim, ...], tuple[Job, ...]]:
    """Test claims on fresh seeds. All that are open get the next seeds together.

    Seeds are taken in their order, and no claim looks ahead, because trials with the same seed are alike. For the same
    reason what fails and what is healthy have different seeds: the two are compared as if by chance alone.

    Args:
        claims: The claims.
        beliefs: What was known before.
        most: The seeds of a claim, at most.
        is_doubtful: Whether the test of a claim need not go on.

    Returns:
        The claims with their evidence, and the trials that are needed next.
    """
    alpha, tested, tried = level_of(beliefs.look, ALPHA), [*claims], 0
    jobs: list[Job] = []
    while not jobs and tried < most and not any(map(is_doubtful, tested)):
        still_open = [place for place, claim in enumerate(tested) if claim.e < 1 / alpha]
        if not still_open:
            break
        tried = min(tried + _seeds_left(tested, still_open, beliefs, 1 / alpha), most)
        rounds = [[_fresh_job(tested[place], beliefs, number) for place in still_open] for number in range(tried)]
        jobs = [job for one in rounds for job in one if job not in beliefs.outcomes]
        for place, own in zip(still_open, zip(*rounds, strict=True), strict=True):
            results = [*map(beliefs.outcomes.get, own)]
            failures, trials = results.count(True), len(results) - results.count(None)
            tested[place] = replace(tested[place], failures=failures, trials=trials)
        tested = _weighed(tested, still_open, beliefs)
    made = claims_made([claim.e for claim in tested], alpha)
    return tuple(replace(claim, holds=holds) for claim, holds in zip(tested, made, strict=True)), tuple(jobs)


def _fresh_job(claim: Claim, beliefs: Beliefs, number: int) -> Job:
    """The trial of a claim with this fresh seed."""
    return Job(claim.mixture, beliefs.first_fresh + number + (0 if claim.fails else SEEDS_APART // 2))


def _weighed(claims: Sequence[Claim], places: Sequence[int], beliefs: Beliefs) -> list[Claim]:
    """The claims; those in these places with their e-values: the smallest against what they are compared with."""
    weighed = [*claims]
    for place in places:
        claim = claims[place]
        pairs = [(claim, other) if claim.fails else (other, claim) for other in claims if other.fails != claim.fails]
        weighed[place] = replace(claim, e=min(beliefs.e_value(fails.fresh, less.fresh) for fails, less in pairs))
    return weighed


def _seeds_left(claims: Sequence[Claim], still_open: Sequence[int], beliefs: Beliefs, bound: float) -> int:
    """How many more seeds the open claims need until one of them may hold: if all their trials speak for them."""
    more, best = 0, [*claims]
    while all(best[place].e < bound for place in still_open):
        more += 1
        for place in still_open:
            own = best[place]
            best[place] = replace(own, failures=own.failures + own.fails, trials=own.trials + 1)
        best = _weighed(best, still_open, beliefs)
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
    by_name = {difference.name: difference for difference in differences}
    ends = [_ends(flip, by_name[flip.name]) for flip in flips]

    def is_unclear(claim: Claim) -> bool:
        return claim.trials > 0 and not beliefs.are_clear(claim.fresh, claim.fails)

    own = [*dict.fromkeys(claim for pair in ends for claim in pair)]
    claims, needed = _test(own, beliefs, _MOST_FRESH, lambda claim: is_unclear(claim) or beliefs.is_doubtful(claim))
    made = {(claim.mixture, claim.fails) for claim in claims if claim.holds and not is_unclear(claim)}
    holds = [all((claim.mixture, claim.fails) in made for claim in pair) for pair in ends]
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


def _ends(flip: Flip, difference: Difference) -> tuple[Claim, Claim]:
    """The claims on a flip's two values."""

    def at(value: float) -> Mixture:
        if value == difference.failed:
            return Mixture(flip.others | {flip.name})
        return Mixture(flip.others, None if value == difference.healthy else (flip.name, value))

    return Claim(at(flip.fails), True), Claim(at(flip.healthy), False)
