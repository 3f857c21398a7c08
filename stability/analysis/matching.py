"""Match trials that have the same seed and differ only in the factors that are compared."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def match(trials: Sequence[Trial], cells: Sequence[Cell]) -> Matched:
    """Match trials, one of each cell, that agree in their seed and in every factor that the cells do not name.

    A factor is tied if it belongs to the group (`schedule.…`) of a compared factor and has one value in each cell: an
    option of the group sets them together. Tied factors may differ within a match.

    Trials whose seed is not known are matched in their order: the first of each cell, the second of each cell, …
    """
    inside = [[t for t in trials if all(t.factors.get(k) == v for k, v in cell.items())] for cell in cells]
    named = {name for cell in cells for name in cell}
    groups = {name.split(".")[0] for name in named}
    names = dict.fromkeys(name for cell in inside for trial in cell for name in trial.factors)
    varying: list[str] = []
    tied: list[str] = []
    for name in names:
        values = [{trial.factors.get(name) for trial in cell} for cell in inside]
        if name in named or len(set[Level]().union(*values)) < 2:
            continue
        together = name.split(".")[0] in groups and all(len(v) == 1 for v in values)
        (tied if together else varying).append(name)
    by_rest: dict[tuple[Level, ...], list[list[Trial]]] = defaultdict(lambda: [[] for _ in cells])
    for place, cell in enumerate(inside):
        for trial in cell:
            by_rest[(trial.seed, *(trial.factors.get(name) for name in varying))][place].append(trial)
    matches = [
        (rest[0], own)
        for rest, found in by_rest.items()
        for own in list(zip(*found, strict=False))[: 1 if rest[0] is not None else None]
    ]
    return Matched(tuple(matches), tuple(tied))


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
