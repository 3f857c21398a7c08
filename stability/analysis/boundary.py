"""The largest learning rate at which training is healthy, with its uncertainty, from the trials of a search or a grid.

A rate is too high if its trial exploded, became non-finite or collapsed to a few phonemes. A trial that has learned
nothing yet (undecided, blank collapse) may have too low a rate as well as too high a one. Its rate counts as too high
only if it is above a healthy rate.

The boundary of one seed lies in a bracket. The upper end is the smallest rate that is too high. The lower end is the
largest healthy rate below it.

Over seeds, `lr` is the geometric mean of the brackets' geometric middles. Its interval is Student's t on their
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
from stability.analysis.trial import HEALTHY, Trials
from stability.config.names import short_name

LR = "schedule.lr_max"

_TOO_HIGH = ("exploded", "degraded", "non_finite", "mode_collapse")
_LEVEL = 0.95


@dataclass(frozen=True)
class Bracket:
    """The bracket of one seed's boundary.

    Attributes:
        seed: The seed.
        low: The largest healthy rate below `high`; 0 if there is none.
        high: The smallest rate that is too high; inf if there is none.
        again: The healthy rates above `high`: there is more than one boundary.
    """

    seed: int
    low: float
    high: float
    again: tuple[float, ...]


@dataclass(frozen=True)
class Boundary:
    """The largest healthy learning rate in one cell of the other factors.

    Attributes:
        cell: {dotted name: level} of the other factors that vary.
        lr: The mean over the seeds; NaN if the bracket of a seed is open at one end.
        low: The lower end of the 95 % interval. With one seed or an open bracket there is no interval; then this is
            the lowest end of the brackets, 0 if open.
        high: The upper end of the interval, or the highest end of the brackets, inf if open.
        brackets: The brackets of the seeds.
    """

    cell: dict[str, Level]
    lr: float
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
            "healthy up to the largest rate tried": sum(b.high == math.inf and b.low > 0 for b in self.brackets),
            "no healthy rate": sum(b.low == 0 for b in self.brackets),
            "healthy again above the boundary": sum(bool(b.again) for b in self.brackets),
        }
        one = ("one seed: no interval",) if self.seeds == 1 else ()
        return (*(f"{what} in {n} of {self.seeds} seeds" for what, n in counts.items() if n), *one)


def boundaries(trials: Trials) -> list[Boundary]:
    """Find the boundary in every cell with more than one learning rate, in the order of the cells' levels.

    Trials without a learning rate of that name, or without a seed, are ignored.
    """
    kept = tuple(t for t in trials.trials if t.seed is not None and is_number(t.factors.get(LR)))
    trials = replace(trials, trials=kept)
    lr = [trial.factors[LR] for trial in trials.trials]
    # If the learning rate of the day layers always equals the other, it is no factor of its own.
    names = [name for name in trials.factors if [trial.factors.get(name) for trial in trials.trials] != lr]
    cells: dict[tuple[Level, ...], dict[int, dict[float, str]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials.trials:
        if trial.seed is not None and trial.outcome != "bad_data":  # no learning rate causes that
            cells[tuple(trial.factors.get(n) for n in names)][trial.seed][trial.factors[LR]] = trial.outcome
    places = [{level: place for place, level in enumerate(ordered(trials.factors[name]))} for name in names]
    found = []
    for levels in sorted(cells, key=lambda levels: [place[x] for place, x in zip(places, levels, strict=True)]):
        seeds = cells[levels]
        if len({rate for outcomes in seeds.values() for rate in outcomes}) > 1:
            brackets = tuple(_bracket(seed, seeds[seed]) for seed in sorted(seeds))
            found.append(Boundary(dict(zip(names, levels, strict=True)), *_over_seeds(brackets), brackets))
    return found


def too_high(outcomes: Mapping[float, str]) -> float:
    """Return the smallest learning rate in {rate: outcome} that is too high; inf if there is none."""
    healthy = min((rate for rate, outcome in outcomes.items() if outcome in HEALTHY), default=math.inf)
    return min(
        (r for r, outcome in outcomes.items() if outcome in _TOO_HIGH or (outcome not in HEALTHY and r > healthy)),
        default=math.inf,
    )


def as_rows(found: Sequence[Boundary]) -> list[dict[str, str]]:
    """Format boundaries as the rows of a table, with the factors under their short names."""
    return [
        {
            **{short_name(name): str(level) for name, level in boundary.cell.items()},
            **{name: f"{getattr(boundary, name):.3g}" for name in ("lr", "low", "high")},
            "brackets": ", ".join(f"{b.low:g} to {b.high:g}" for b in boundary.brackets),
            "notes": "; ".join(boundary.notes),
        }
        for boundary in found
    ]


def _bracket(seed: int, outcomes: Mapping[float, str]) -> Bracket:
    high = too_high(outcomes)
    healthy = sorted(rate for rate, outcome in outcomes.items() if outcome in HEALTHY)
    below = [rate for rate in healthy if rate < high]
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
