"""What the trials of an experiment make likely, while it looks for the cause of a failure (see `explanation`)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from stability.analysis.bets import Counts, e_value
from stability.analysis.levels import Level

SEEDS_APART = 1000  # between the first seeds of two stages

_LIKELIER = math.log(15)  # how much likelier one side has to be for a belief
_SURE = math.log(200)  # and for a belief from which much else follows
_FIRST, _ENOUGH, _MOST = 4, 8, 24  # seeds of the two sides: at first; if they tell the two apart; at most
_ALIKE = 0.35  # rates that are closer need all seeds
_TOO_ALIKE = 0.2  # rates that are even closer need too many trials
_MOST_PROBES = 24  # seeds of a mixture in one search; then the likelier side counts
_CLEAR = 0.85  # of the way from the rate of one side to that of the other
_CRASHES = 3  # a mixture that crashes so often, and in more than half of its trials, cannot be trained


class Difference(NamedTuple):
    """A setting in which the two configurations differ.

    Attributes:
        name: Its dotted name.
        failed: Its value in the failed configuration.
        healthy: Its value in the healthy one.
        group: Differences of the same group belong together.
    """

    name: str
    failed: Level
    healthy: Level
    group: str


class Mixture(NamedTuple):
    """A configuration between the two.

    Attributes:
        failed: The names of the differences that have the failed configuration's value.
        between: A difference with a value of its own, and that value; None if there is none.
    """

    failed: frozenset[str]
    between: tuple[str, float] | None = None


class Job(NamedTuple):
    """A trial that is needed: a mixture with a seed."""

    mixture: Mixture
    seed: int


Outcomes = Mapping[Job, bool | None]  # whether the trial failed; None if it crashed


@dataclass(frozen=True)
class Claim:
    """A claim and its evidence.

    Attributes:
        mixture: What it is about.
        fails: Whether it says that the mixture fails, which is: more often than each of those that are said to be
            healthy; or that it is healthy, which is: less often than each of those that are said to fail.
        failures: In how many of the fresh trials it failed.
        trials: How many fresh trials there were.
        e: The e-value against the opposite.
        holds: Whether the claim is made.
    """

    mixture: Mixture
    fails: bool
    failures: int = 0
    trials: int = 0
    e: float = 1.0
    holds: bool = False

    @property
    def fresh(self) -> Counts:
        """Its fresh trials."""
        return Counts(self.failures, self.trials - self.failures)


class Needed(Exception):
    """Nothing more is known without these trials."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self.jobs = tuple(jobs)


class Beliefs:
    """What the trials before some stage make likely.

    Args:
        names: The names of all differences.
        outcomes: The results so far. Those of later stages are not looked at.
        invalid: Mixtures that are no valid configuration.
        look: How many explanations were tested before. Each search and each test has seeds of its own.
    """

    def __init__(self, names: frozenset[str], outcomes: Outcomes, invalid: Collection[Mixture], look: int) -> None:
        self.sides = Mixture(names), Mixture(frozenset())
        self.look, self.outcomes = look, outcomes
        self.first_fresh = (2 * look + 1) * SEEDS_APART
        self._first_seed, self._invalid = 2 * look * SEEDS_APART, invalid
        self._results: dict[Mixture, list[bool | None]] = {}
        for (mixture, seed), failed in outcomes.items():
            if seed < self.first_fresh:
                self._results.setdefault(mixture, []).append(failed)

    @property
    def always(self) -> bool:
        """Whether all trials of a mixture have ended alike so far."""
        return not any({True, False} <= {*results} for results in self._results.values())

    @cached_property
    def alike(self) -> tuple[Counts, Counts]:
        """The trials of FAILED and of what roughly fails as often, and those of HEALTHY, likewise."""
        found = [*map(self._counts, self.sides)]
        rates = self._sides_rates()
        for mixture in self._results.keys() - self.sides:
            ratio = _log_ratio(own := self._counts(mixture), rates)
            if mixture.between is None and abs(ratio) >= _LIKELIER:
                place = 0 if ratio > 0 else 1
                found[place] = Counts(found[place].failed + own.failed, found[place].healthy + own.healthy)
        return found[0], found[1]

    @cached_property
    def rates(self) -> tuple[float, float]:
        """The rates of failure of what fails, and of what is healthy."""
        return _rate(self.alike[0]), _rate(self.alike[1])

    @cached_property
    def _log_ratios(self) -> dict[Mixture, float]:
        """How much likelier the trials of each mixture are at the rate of what fails, as a logarithm."""
        return {mixture: _log_ratio(self._counts(mixture), self.rates) for mixture in self._results}

    def compare_sides(self) -> None:
        """Train the two sides with as many seeds as their rates of failure need."""
        for least in (_FIRST, _ENOUGH, _MOST):
            # A side that never did what it should is looked at again, alone.
            self._require({side: least - sum(self._counts(side)) for side in self._wrong() or self.sides})
            high, low = self._sides_rates()
            if least >= _ENOUGH and (self._wrong() or high - low >= _ALIKE):
                break

    def problem(self) -> str:
        """Return why there is nothing to explain; empty if there is."""
        names = dict(zip(self.sides, ("FAILED", "HEALTHY"), strict=True))
        for side, name in names.items():
            if self._cannot_train(side):
                results = self._results[side]
                return f"{name} crashed in {results.count(None)} of {len(results)} trials."
        (failed, lived), (broke, healthy) = map(self._counts, self.sides)
        counts = f"FAILED failed in {failed} of {failed + lived} trials, and HEALTHY in {broke} of {broke + healthy}."
        if wrong := [names[side] for side in self._wrong()]:
            does = {"FAILED": "FAILED does not fail again", "HEALTHY": "HEALTHY fails too"}
            return f"{' and '.join(does[name] for name in wrong)}: {counts}"
        high, low = self._sides_rates()
        if low - high >= _TOO_ALIKE:
            return f"HEALTHY fails more often than FAILED: {counts}"
        return "" if high - low >= _TOO_ALIKE else f"The two fail about as often: {counts}"

    def fails(self, mixture: Mixture) -> bool | None:
        """Return whether a mixture fails, as is believed; None if it cannot be trained.

        Raises:
            Needed: Its trials do not tell yet.
        """
        return self._believe(mixture, _LIKELIER)

    def make_sure(self, mixture: Mixture) -> None:
        """Ask for strong evidence of what is believed of a mixture.

        Raises:
            Needed: Its trials do not tell so surely yet.
        """
        self._believe(mixture, _SURE)

    def clearly(self, mixture: Mixture) -> bool | None:
        """Return whether a mixture fails, if it does about as often as one of the sides; else None.

        Raises:
            Needed: Its trials do not tell yet.
        """
        fails = self.fails(mixture)
        return fails if fails is not None and self.are_clear(self._counts(mixture), fails) else None

    def are_clear(self, counts: Counts, fails: bool) -> bool:
        """Return whether trials fail about as often as one of the sides."""
        if not sum(counts):
            return False
        high, low = self.rates
        place = (counts.failed / sum(counts) - low) / (high - low)
        return place >= _CLEAR if fails else place <= 1 - _CLEAR

    def is_doubtful(self, claim: Claim) -> bool:
        """Return whether the fresh trials speak against a claim, or show chance where none was known."""
        belief = self._belief(claim.mixture) + _log_ratio(claim.fresh, self.rates)
        refuted = (-belief if claim.fails else belief) >= _LIKELIER
        return refuted or (self.always and all(claim.fresh))

    def e_value(self, failing: Counts, healthy: Counts) -> float:
        """Return the e-value of fresh trials against the hypothesis that the first fails no more often."""
        return e_value(failing, healthy, *self.alike)

    def _believe(self, mixture: Mixture, least: float) -> bool | None:
        """Whether a mixture fails, if one is likelier than the other by `least`, a logarithm; None as in `fails`."""
        for_failing, for_healthy = (abs(_log_ratio(one, self.rates)) for one in (Counts(1, 0), Counts(0, 1)))
        while not self._cannot_train(mixture):
            belief = self._belief(mixture)
            made = sum(self._counts(mixture))
            if abs(belief) >= least or made >= _MOST_PROBES:
                return belief > 0
            toward = for_failing if belief > 0 or (not made and for_failing > for_healthy) else for_healthy
            self._require({mixture: math.ceil((least - abs(belief)) / toward)})
        return None

    def _wrong(self) -> list[Mixture]:
        """The sides that never did what they should."""
        failed, healthy = self._counts(self.sides[0])[0], self._counts(self.sides[1])[1]
        return [side for side, count in zip(self.sides, (failed, healthy), strict=True) if not count]

    def _cannot_train(self, mixture: Mixture) -> bool:
        results = self._results.get(mixture, [])
        crashes = results.count(None)
        return mixture in self._invalid or (crashes >= _CRASHES and 2 * crashes > len(results))

    def _counts(self, mixture: Mixture) -> Counts:
        """The trials of a mixture so far."""
        results = self._results.get(mixture, [])
        return Counts(results.count(True), results.count(False))

    def _sides_rates(self) -> tuple[float, float]:
        high, low = map(_rate, map(self._counts, self.sides))
        return high, low

    def _belief(self, mixture: Mixture) -> float:
        """How much likelier the trials are if a mixture fails than if it is healthy, as a logarithm.

        If it is healthy, so is each with fewer of FAILED's values; if it fails, so does each with more.
        """
        belief = self._log_ratios.get(mixture, 0.0)
        for other, ratio in self._log_ratios.items():
            if other.between == mixture.between:
                smaller, larger = (other, mixture) if ratio > 0 else (mixture, other)
                belief += ratio if smaller.failed < larger.failed else 0
        return belief

    def _require(self, more: Mapping[Mixture, int]) -> None:
        """Raise `Needed` if some mixtures need more trials. The seeds of crashed trials are not tried again."""
        jobs = []
        for mixture, count in more.items():
            if count > 0 and not self._cannot_train(mixture):
                seed = self._first_seed
                while count > 0:
                    if Job(mixture, seed) not in self.outcomes:
                        jobs.append(Job(mixture, seed))
                        count -= 1
                    seed += 1
        if jobs:
            raise Needed(sorted(jobs, key=lambda job: job.seed))  # one of each side first


def _rate(counts: Counts) -> float:
    """A rate of failure, a little nearer to a half than what was seen."""
    return (counts.failed + 0.5) / (sum(counts) + 1)


def _log_ratio(counts: Counts, rates: tuple[float, float]) -> float:
    """How much likelier trials are at the first rate of failure than at the second, as a logarithm."""
    high, low = rates
    return counts.failed * math.log(high / low) + counts.healthy * math.log((1 - high) / (1 - low))
