"""The largest value of a setting at which training is healthy, with its uncertainty, from a search's or grid's trials.

The setting is the learning rate, or any other number. A value is too high if its trial exploded, became non-finite or
collapsed to a few phonemes. A trial that has learned nothing yet (undecided, blank collapse) may have too low a value
as well as too high a one. Its value counts as too high only if it is above a healthy value.

The boundary of one seed lies in a bracket. The upper end is the smallest value that is too high. The lower end is the
largest healthy value below it.

Over seeds, `value` is the geometric mean of the brackets' geometric middles. Its interval is Student's t on their
logarithms. The variance is the sum of two: the variance between the seeds, and the variance within a bracket. The
boundary is equally likely anywhere in a bracket of logarithmic width w, so this second variance is w² / 12. The
interval is never narrower than the mean bracket: all seeds can end in one bracket, and then only its width is known.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stability.analysis.levels import Level, is_number, ordered
from stability.analysis.trial import Trials
from stability.config.names import short_name
from stability.diagnosis.responses import HEALTHY

LR = "schedule.lr_max"

_TOO_HIGH = ("exploded", "degraded", "non_finite", "mode_collapse")
_LEVEL = 0.95


@dataclass(frozen=True)
class Bracket:
    """The bracket of one seed's boundary.

    Attributes:
        seed: The seed; None if it is not known.
        low: The largest healthy value below `high`; 0 if there is none.
        high: The smallest value that is too high; inf if there is none.
        again: The healthy values above `high`: there is more than one boundary.
    """

    seed: int | None
    low: float
    high: float
    again: tuple[float, ...]


@dataclass(frozen=True)
class Boundary:
    """The largest healthy value of a setting in one cell of the other factors.

    Attributes:
        cell: {dotted name: level} of the other factors that vary.
        value: The mean over the seeds; NaN if the bracket of a seed is open at one end.
        low: The lower end of the 95 % interval. With one seed or an open bracket there is no interval; then this is
            the lowest end of the brackets, 0 if open.
        high: The upper end of the interval, or the highest end of the brackets, inf if open.
        brackets: The brackets of the seeds.
    """

    cell: dict[str, Level]
    value: float
    low: float
    high: float
    brackets: tuple[Bracket, ...]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.brackets)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the reader of the numbers, such as a bracket that is open at one end."""
        counts = {
            "healthy up to the largest value tried": sum(b.high == math.inf and b.low > 0 for b in self.brackets),
            "no healthy value": sum(b.low == 0 for b in self.brackets),
            "healthy again above the boundary": sum(bool(b.again) for b in self.brackets),
        }
        one = ("one seed: no interval",) if self.seeds == 1 else ()
        return (*(f"{what} in {n} of {self.seeds} seeds" for what, n in counts.items() if n), *one)


def boundaries(trials: Trials, setting: str = LR) -> list[Boundary]:
    """Find the boundary in every cell with more than one value of a setting, in the order of the cells' levels.

    Args:
        trials: The trials. Those in which the setting is no number are ignored.
        setting: The dotted name of the setting.
    """
    kept = tuple(trial for trial in trials.trials if is_number(trial.factors.get(setting)))
    trials = replace(trials, trials=kept)
    column = [trial.factors[setting] for trial in trials.trials]
    # If the learning rate of the day layers always equals the other, it is no factor of its own.
    names = [name for name in trials.factors if [trial.factors.get(name) for trial in trials.trials] != column]
    cells: dict[tuple[Level, ...], dict[int | None, dict[float, str]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials.trials:
        if trial.outcome != "bad_data":  # no value causes that
            cells[tuple(trial.factors.get(n) for n in names)][trial.seed][trial.factors[setting]] = trial.outcome
    places = [{level: place for place, level in enumerate(ordered(trials.factors[name]))} for name in names]
    found = []
    for levels in sorted(cells, key=lambda levels: [place[x] for place, x in zip(places, levels, strict=True)]):
        seeds = cells[levels]
        if len({value for outcomes in seeds.values() for value in outcomes}) > 1:
            ordered_seeds = sorted(seeds, key=lambda seed: (seed is None, seed or 0))
            brackets = tuple(_bracket(seed, seeds[seed]) for seed in ordered_seeds)
            found.append(Boundary(dict(zip(names, levels, strict=True)), *_over_seeds(brackets), brackets))
    return found


def too_high(outcomes: Mapping[float, str]) -> float:
    """Return the smallest value in {value: outcome} that is too high; inf if there is none."""
    healthy = min((value for value, outcome in outcomes.items() if outcome in HEALTHY), default=math.inf)
    return min(
        (v for v, outcome in outcomes.items() if outcome in _TOO_HIGH or (outcome not in HEALTHY and v > healthy)),
        default=math.inf,
    )


def setting_text(setting: str) -> str:
    """Return the name of a setting in a sentence."""
    return "learning rate" if setting == LR else short_name(setting)


def as_rows(found: Sequence[Boundary], setting: str) -> list[dict[str, str]]:
    """Format the boundaries of a setting as the rows of a table, with the factors under their short names."""
    return [
        {
            **{short_name(name): str(level) for name, level in boundary.cell.items()},
            short_name(setting): f"{boundary.value:.3g}",
            **{name: f"{getattr(boundary, name):.3g}" for name in ("low", "high")},
            "brackets": ", ".join(f"{b.low:g} to {b.high:g}" for b in boundary.brackets),
            "notes": "; ".join(boundary.notes),
        }
        for boundary in found
    ]


def _bracket(seed: int | None, outcomes: Mapping[float, str]) -> Bracket:
    high = too_high(outcomes)
    healthy = sorted(value for value, outcome in outcomes.items() if outcome in HEALTHY)
    below = [value for value in healthy if value < high]
    return Bracket(seed, max(below, default=0.0), high, tuple(healthy[len(below) :]))


def _over_seeds(brackets: Sequence[Bracket]) -> tuple[float, float, float]:
    """Return the mean boundary and the ends of its interval."""
    from scipy import stats  # late: it takes a while, and every start of the program imports this

    lows, highs = (np.array([getattr(b, end) for b in brackets]) for end in ("low", "high"))
    if not (lows.all() and np.isfinite(highs).all()):
        return math.nan, float(lows.min()), float(highs.max())
    middles, widths, n = np.log(lows * highs) / 2, np.log(highs / lows), len(brackets)
    center, half = middles.mean(), widths.mean() / 2
    if n > 1:
        error = math.sqrt((middles.var(ddof=1) + (widths**2).mean() / 12) / n)
        half = max(half, stats.t.ppf((1 + _LEVEL) / 2, n - 1) * error)
    lr, low, high = np.exp([center, center - half, center + half]).tolist()
    return lr, low, high
