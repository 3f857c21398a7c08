"""What the trials of an experiment make likely, while it looks for the cause of a failure (see `explanation`)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stability.analysis.bets import e_value
from stability.analysis.levels import Level

SEEDS_APART = 1000  # between the first seeds of two stages

_LIKELIER, _LIKELIER_IF_ALWAYS = math.log(80), math.log(9)  # how much likelier one side has to be for a belief
_FIRST, _WRONG, _BY_CHANCE, _MOST = 4, 8, 16, 24  # seeds of the two sides: at first; if one of them does not do what
# it should; if they do not always end alike; at most
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
        fails: Whether it says that the mixture fails, or that it is healthy.
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

    @property
    def rates(self) -> tuple[float, float]:
        """The rates of failure of the two sides, a little nearer to a half than what was seen."""
        high, low = ((f + 0.5) / (f + h + 1) for f, h in map(self._counts, self.sides))
        return high, low

    @property
    def threshold(self) -> float:
        """The middle between the rates of failure of the two sides."""
        return sum(self.rates) / 2

    def compare_sides(self) -> None:
        """Train the two sides with as many seeds as their rates of failure need."""
        for least in (_FIRST, _WRONG, _BY_CHANCE, _MOST):
            # A side that never did what it should is looked at again, alone.
            self._require({side: least - sum(self._counts(side)) for side in self._wrong() or self.sides})
            high, low = self.rates
            if high - low >= _ALIKE and (self.always or least >= _BY_CHANCE):
                break
            if self._wrong() and least >= _WRONG:
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
        high, low = self.rates
        return "" if high - low >= _TOO_ALIKE else f"The two fail about as often: {counts}"

    def fails(self, mixture: Mixture) -> bool | None:
        """Return whether a mixture fails, as is believed; None if it cannot be trained.

        Raises:
            Needed: Its trials do not tell yet.
        """
        while not self._cannot_train(mixture):
            belief = self._log_ratio(mixture)
            made = sum(self._counts(mixture))
            enough = _LIKELIER_IF_ALWAYS if self.always else _LIKELIER
            if abs(belief) >= enough - 1e-9 or made >= _MOST_PROBES:
                return belief > 0
            for_failing, for_healthy = map(abs, self._weights())
            toward = for_failing if belief > 0 or (not made and for_failing > for_healthy) else for_healthy
            self._require({mixture: math.ceil((enough - abs(belief)) / toward - 1e-9)})
        return None

    def clearly(self, mixture: Mixture) -> bool | None:
        """Return whether a mixture fails, if it does about as often as one of the sides; else None.

        Raises:
            Needed: Its trials do not tell yet.
        """
        fails = self.fails(mixture)
        failures, healthy = self._counts(mixture)
        if fails is None or not failures + healthy:
            return None
        high, low = self.rates
        place = (failures / (failures + healthy) - low) / (high - low)
        return fails if (place >= _CLEAR if fails else place <= 1 - _CLEAR) else None

    def is_doubtful(self, claim: Claim) -> bool:
        """Return whether the fresh trials speak against a claim, or show chance where none was known."""
        healthy = claim.trials - claim.failures
        log_ratio = self._log_ratio(claim.mixture, claim.failures, healthy)
        refuted = (-log_ratio if claim.fails else log_ratio) >= _LIKELIER
        return refuted or (self.always and claim.failures > 0 and healthy > 0)

    def e_value(self, claim: Claim, failures: int, healthy: int) -> float:
        """Return the e-value of fresh trials against the opposite of a claim."""
        high, low = (1.0, 0.0) if self.always else self.rates
        if claim.fails:
            return e_value(failures, failures + healthy, self.threshold, high)
        return e_value(healthy, failures + healthy, 1 - self.threshold, 1 - low)

    def _wrong(self) -> list[Mixture]:
        """The sides that never did what they should."""
        failed, healthy = self._counts(self.sides[0])[0], self._counts(self.sides[1])[1]
        return [side for side, count in zip(self.sides, (failed, healthy), strict=True) if not count]

    def _cannot_train(self, mixture: Mixture) -> bool:
        results = self._results.get(mixture, [])
        crashes = results.count(None)
        return mixture in self._invalid or (crashes >= _CRASHES and 2 * crashes > len(results))

    def _counts(self, mixture: Mixture) -> tuple[int, int]:
        """How many of its trials failed, and how many were healthy."""
        results = self._results.get(mixture, [])
        return results.count(True), results.count(False)

    def _weights(self) -> tuple[float, float]:
        """By how much a failure and a healthy trial change the logarithm of the ratio."""
        high, low = self.rates
        return math.log(high / low), math.log((1 - high) / (1 - low))

    def _log_ratio(self, mixture: Mixture, failures: int = 0, healthy: int = 0) -> float:
        """How much likelier its trials, and so many more, are at the rate of failure of FAILED than of HEALTHY."""
        counts = self._counts(mixture)
        weights = self._weights()
        return (counts[0] + failures) * weights[0] + (counts[1] + healthy) * weights[1]

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
