"""The largest learning rate at which training is healthy, and its uncertainty, from a search's trials or a grid's.

A seed's boundary lies in a bracket: between the largest healthy rate below the smallest rate that is too high, and
that rate. Too high is a rate whose trial exploded, was not finite or collapsed to a few phonemes. One that has learned
nothing yet (undecided, blank collapse) may be too low as well, and counts as too high only above a healthy rate.

Over seeds, `lr` is the geometric mean of the brackets' geometric middles. Its interval is Student's t on their
logarithms, with a variance that is the sum of the seeds' own and of what the brackets hide: the boundary is equally
likely anywhere in a bracket of logarithmic width w, which has the variance w² / 12. It is never narrower than the mean
bracket: all seeds of a search can end in the same one, and then only the bracket tells how far off it may be.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stability.analysis.trials import Level, Trials, ordered
from stability.config.names import short_name

LR = "schedule.lr_max"
HEALTHY = ("stable", "slow")

_TOO_HIGH = ("exploded", "non_finite", "mode_collapse")
_LEVEL = 0.95


@dataclass(frozen=True)
class Bracket:
    """Where a seed's boundary lies: healthy at the rate `low`, and the smallest that is too high is `high`.

    `low` is 0 if no rate below `high` was healthy, `high` inf if none was too high. `again` are healthy rates above
    `high`: the boundary is not the only one.
    """

    seed: int
    low: float
    high: float
    again: tuple[float, ...]


@dataclass(frozen=True)
class Boundary:
    """The largest healthy learning rate in one cell of the other factors, {dotted name: level} of those that vary.

    `lr` is the mean over seeds and `low` to `high` its interval at 95 %. If a seed's bracket is open, no rate being
    healthy or none too high, `lr` is NaN. Then, and with one seed, `low` and `high` are the outermost ends of the
    brackets, 0 and inf where open, and no interval.
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
        """What the numbers do not say."""
        counts = {
            "healthy up to the largest rate tried": sum(b.high == math.inf and b.low > 0 for b in self.brackets),
            "no healthy rate": sum(b.low == 0 for b in self.brackets),
            "healthy again above": sum(bool(b.again) for b in self.brackets),
        }
        one = ("one seed, no interval",) if self.seeds == 1 else ()
        return (*(f"{what} in {n} of {self.seeds} seeds" for what, n in counts.items() if n), *one)


def boundaries(trials: Trials) -> list[Boundary]:
    """The boundary in every cell in which more than one learning rate was tried, in the order of the cells' levels."""
    lr = [trial.factors.get(LR) for trial in trials.trials]
    # The day layers' rate follows the others', and is no factor of its own then.
    names = [name for name in trials.factors if [trial.factors.get(name) for trial in trials.trials] != lr]
    cells: dict[tuple[Level, ...], dict[int, dict[float, str]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials.trials:
        if trial.outcome != "bad_data":  # not the rate's fault
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
    """The smallest learning rate that is too high, of {rate: outcome}; inf if none is."""
    healthy = min((rate for rate, outcome in outcomes.items() if outcome in HEALTHY), default=math.inf)
    return min(
        (r for r, outcome in outcomes.items() if outcome in _TOO_HIGH or (outcome not in HEALTHY and r > healthy)),
        default=math.inf,
    )


def as_rows(found: Sequence[Boundary]) -> list[dict[str, str]]:
    """Boundaries as people read them: a row each, the factors under their short names."""
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
    """The mean boundary and its interval."""
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
