"""Simulated pairs of configurations with known causes.

A pair has 4 to 24 differences. One to three of them are its causes: each alone, all together, or one alone and two
together. The others are harmless. A training that has a cause fails in all seeds, or at a rate; one without fails
never, or seldom.

Even numbers are the design half, on which the method was tuned. Odd numbers are the test half. Each time that
the method had been changed, it was tested again on new pairs, four times all combinations; the last time with many
differences, too.
"""

import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from stability.analysis.beliefs import Difference

_FEW, _MANY = (4, 6, 9, 12), (16, 24)  # differences
_CAUSES = ("one", "two alone", "three alone", "two together", "three together", "one alone, two together")
_RATES = {"always": (1.0, 0.0), "by rate": (0.7, 0.03)}  # of failure with a cause, and without


@dataclass(frozen=True)
class Pair:
    """A pair of configurations whose causes are known.

    Attributes:
        number: Its number, from which its random choices come.
        differences: The settings that differ.
        causes: The sufficient sets.
        kind: Which causes it has.
        chance: `always` or `by rate`.
    """

    number: int
    differences: tuple[Difference, ...]
    causes: frozenset[frozenset[str]]
    kind: str
    chance: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the differences."""
        return tuple(difference.name for difference in self.differences)

    @abstractmethod
    def train(self, jobs: Iterable[tuple[frozenset[str], int]]) -> None:
        """Train mixtures, each with a seed, if they are not trained yet."""

    @abstractmethod
    def fails(self, failed: frozenset[str], seed: int) -> bool:
        """Return whether a mixture fails with a seed. It is trained if it was not."""


@dataclass(frozen=True)
class SimulatedPair(Pair):
    """A pair of which nothing is trained. `rates`: of failure with a cause, and without."""

    rates: tuple[float, float]

    def train(self, jobs: Iterable[tuple[frozenset[str], int]]) -> None:
        """Train nothing."""

    def fails(self, failed: frozenset[str], seed: int) -> bool:
        """Draw whether a mixture fails with a seed."""
        has_cause = any(cause <= failed for cause in self.causes)
        chance = random.Random(f"{self.number} {sorted(failed)} {seed}").random()
        return chance < self.rates[0 if has_cause else 1]


def pairs(half: str) -> list[SimulatedPair]:
    """Return the pairs of a half (a key of the table below): all combinations of size, causes and chance."""
    first, times, sizes = {
        "design": (0, 2, _FEW),
        "test": (1, 2, _FEW),
        "second-test": (1001, 4, _FEW),
        "third-test": (2001, 4, _FEW),
        "many-test": (3001, 4, _MANY),
    }[half]
    cells = [*product(sizes, _CAUSES, _RATES)] * times
    return [_pair(2 * place + first, *cell) for place, cell in enumerate(cells)]


def _pair(number: int, count: int, kind: str, chance: str) -> SimulatedPair:
    rng = random.Random(f"pair {number}")
    # Two of a group belong together, as a learning rate and its warm-up do.
    differences = tuple(Difference(f"setting{i}", "failed", "healthy", f"group{i // 2}") for i in range(count))
    a, b, c = rng.sample([difference.name for difference in differences], 3)
    sets: Mapping[str, list[set[str]]] = {
        "one": [{a}],
        "two alone": [{a}, {b}],
        "three alone": [{a}, {b}, {c}],
        "two together": [{a, b}],
        "three together": [{a, b, c}],
        "one alone, two together": [{a}, {b, c}],
    }
    causes = frozenset(map(frozenset, sets[kind]))
    return SimulatedPair(number, differences, causes, kind, chance, _RATES[chance])
