"""Match trials that have the same seed and differ only in the factors that are compared."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stability.analysis.levels import Level
from stability.analysis.trial import Trial, Trials

Cell = Mapping[str, Level]  # {dotted name: level} of some factors


@dataclass(frozen=True)
class Matched:
    """Trials that differ only in their cell.

    Attributes:
        matches: For each match its seed, and one trial of each cell. The seed is None if it is not known.
        tied: The other factors that change together with the compared ones.
    """

    matches: tuple[tuple[int | None, tuple[Trial, ...]], ...]
    tied: tuple[str, ...]


def match(trials: Trials, cells: Sequence[Cell]) -> Matched:
    """Match trials, one of each cell, that agree in their seed and in every factor that the cells do not name.

    A factor is tied if it belongs to the group (`schedule.…`) of a compared factor and has one value in each cell: an
    option of the group sets them together. Tied factors may differ within a match.

    Trials whose seed is not known are matched in their order: the first of each cell, the second of each cell, …
    """
    return matcher(trials)(cells)


def matcher(trials: Trials) -> Callable[[Sequence[Cell]], Matched]:
    """Return the function that matches these trials, as `match` does, for many comparisons: it reads them only once."""
    numbers = {name: {level: number for number, level in enumerate(levels)} for name, levels in trials.factors.items()}
    seeds = {seed: number for number, seed in enumerate({trial.seed for trial in trials.trials})}
    codes = [
        [*(own[trial.factors.get(name)] for name, own in numbers.items()), seeds[trial.seed]] for trial in trials.trials
    ]
    return partial(_match, trials.trials, numbers, np.array(codes, np.int32))


def _match(
    trials: Sequence[Trial], numbers: Mapping[str, Mapping[Level, int]], codes: NDArray[np.int32], cells: Sequence[Cell]
) -> Matched:
    """Match trials by the numbers of their levels: a row for each trial, a column for each factor and for the seed."""
    columns = {name: codes[:, place] for place, name in enumerate(numbers)}

    def have(name: str, level: Level) -> NDArray[np.bool_]:
        if name not in columns:  # the same for all trials
            return np.array([trial.factors.get(name) == level for trial in trials], bool)
        return np.equal(columns[name], numbers[name].get(level, -1))

    inside = [np.flatnonzero(np.all([have(*item) for item in cell.items()], axis=0)) for cell in cells]
    if not all(map(len, inside)):
        return Matched((), ())
    lows, highs = (np.array([end(codes[cell], axis=0) for cell in inside]) for end in (np.min, np.max))
    differs = lows.min(axis=0) < highs.max(axis=0)
    one_each = (lows == highs).all(axis=0)
    named = {name for cell in cells for name in cell}
    groups = {name.split(".")[0] for name in named}
    others = [(place, name) for place, name in enumerate(numbers) if differs[place] and name not in named]
    tied = {place: name for place, name in others if one_each[place] and name.split(".")[0] in groups}
    varying = [place for place, _ in others if place not in tied]
    by_rest = [defaultdict[bytes, list[Trial]](list) for _ in cells]
    for cell, found in zip(inside, by_rest, strict=True):
        for place, rest in zip(cell.tolist(), codes[cell][:, [*varying, -1]], strict=True):
            found[rest.tobytes()].append(trials[place])
    matches = [
        (own[0].seed, own)
        for rest in by_rest[0]
        if all(rest in found for found in by_rest)
        for own in _zipped([found[rest] for found in by_rest])
    ]
    return Matched(tuple(matches), tuple(tied.values()))


def _zipped(groups: Sequence[Sequence[Trial]]) -> list[tuple[Trial, ...]]:
    """One match of the trials that agree; of those whose seed is not known, as many as there are in each cell."""
    return [*zip(*groups, strict=False)][: 1 if groups[0][0].seed is not None else None]


def interaction_cells(
    a: str, a_levels: tuple[Level, Level], b: str, b_levels: tuple[Level, Level]
) -> tuple[list[Cell], tuple[int, ...]]:
    """Return the four cells of two factors, and their signs in the difference of differences."""
    return [{a: x, b: y} for x in reversed(a_levels) for y in reversed(b_levels)], (1, -1, -1, 1)


def main_factors(trials: Trials) -> dict[str, tuple[Level, ...]]:
    """Return {dotted name: levels} of a study's factors.

    If an option of a group sets several factors together, only the first of them is included.
    """
    kept: dict[str, tuple[Level, ...]] = {}
    for name, levels in trials.factors.items():
        group = name.split(".")[0]
        if not any(group == other.split(".")[0] and _one_to_one(trials, name, other) for other in kept):
            kept[name] = levels
    return kept


def cells_of(trials: Trials) -> dict[tuple[Level, ...], list[Trial]]:
    """Group the trials by their levels of the `main_factors`.

    Returns:
        {levels: trials in the order of their seeds}, in the order of the levels.
    """
    factors = main_factors(trials)
    cells: dict[tuple[Level, ...], list[Trial]] = defaultdict(list)
    for trial in sorted(trials.trials, key=lambda trial: trial.place):
        cells[tuple(trial.factors.get(name) for name in factors)].append(trial)
    ranks = [{level: place for place, level in enumerate(levels)} for levels in factors.values()]
    return dict(sorted(cells.items(), key=lambda item: [rank[x] for rank, x in zip(ranks, item[0], strict=True)]))


def _one_to_one(trials: Trials, a: str, b: str) -> bool:
    pairs = {(t.factors.get(a), t.factors.get(b)) for t in trials.trials}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
