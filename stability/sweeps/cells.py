"""The cells of a sweep: its trials by the levels of the factors that vary, whoever trains them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from stability.analysis.levels import level_text, ordered
from stability.config.names import SHORT_NAMES, short_name

Cell = tuple[tuple[str, Any], ...]  # the level of every factor, as (dotted name, level)


class Planned(Protocol):
    """What is known of a trial before it is trained."""

    @property
    def folder(self) -> Path:
        """The folder that it is trained in."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """{dotted name: value} of the seed and of all settings that may be factors."""

    @property
    def steps(self) -> int | None:
        """The number of its training steps; None if that is not known."""

    @property
    def fresh(self) -> bool:
        """Whether it is trained from the start, whatever its folder holds."""


@dataclass(frozen=True)
class Cells:
    """The trials of a sweep.

    Attributes:
        trials: The trials in the order of the sweep, each once.
    """

    trials: tuple[Planned, ...]

    @property
    def seed(self) -> str | None:
        """The dotted name of the seed; None if there is none."""
        return "seed"

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """The dotted names of the settings that vary, without the seed.

        If several settings vary together, only one of them is listed, preferably one that has a short name.
        """
        values = [trial.settings for trial in self.trials]
        usual_first = dict.fromkeys([*SHORT_NAMES, *(name for own in values for name in own)])
        factors: dict[tuple[int, ...], str] = {}
        for name in usual_first:
            if name == self.seed:
                continue
            pattern = _pattern(_level(own.get(name)) for own in values)
            if any(pattern):
                factors.setdefault(pattern, name)
        return tuple(factors.values())

    @cached_property
    def levels(self) -> dict[str, list[str]]:
        """{short name: levels, as they are typed} of the factors, and of the seed if there are several."""
        found = {
            name: ordered(_level(trial.settings.get(name)) for trial in self.trials)
            for name in (*self.factors, self.seed)
            if name is not None
        }
        return {
            short_name(name): [level_text(level) for level in levels]
            for name, levels in found.items()
            if name != self.seed or len(levels) > 1
        }

    @cached_property
    def cells(self) -> dict[Cell, list[Planned]]:
        """The trials by the levels of the factors. The trials of a cell differ in the seed."""
        cells: dict[Cell, list[Planned]] = {}
        for trial in self.trials:
            cell = tuple((name, _level(trial.settings.get(name))) for name in self.factors)
            cells.setdefault(cell, []).append(trial)
        return cells

    def describe(self, trial: Planned) -> str:
        """Return the trial's factors and seed, as `epsilon 0.1  seed 0`."""
        names = (*self.factors, *([] if self.seed is None else [self.seed]))
        levels = {name: _level(trial.settings.get(name)) for name in names}
        return "  ".join(f"{short_name(name)} {level_text(level)}" for name, level in levels.items())


def _pattern(levels: Iterable[Any]) -> tuple[int, ...]:
    """Number the levels as they appear. Settings that vary together have the same numbers; all 0: it does not vary."""
    numbers: dict[Any, int] = {}
    return tuple(numbers.setdefault(level, len(numbers)) for level in levels)


def _level(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
