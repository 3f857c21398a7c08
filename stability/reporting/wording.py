"""Writes levels, cells, outcomes and effects in the same way in text, tables and figures."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from stability.analysis.effects import RATIOS, Effect
from stability.analysis.levels import Level, level_text
from stability.analysis.trial import Trial
from stability.config.names import short_name
from stability.core.text import first_of, listed
from stability.diagnosis.outcomes import MARKS

_MOST_NAMES = 6


def level_of(trial: Trial, name: str) -> Level:
    """Return a trial's level of a factor, or its seed."""
    return trial.seed if name == "seed" else trial.factors.get(name)


def override(name: str, level: Level) -> str:
    """Write a level as an override: `optimizer.epsilon=1e-8`."""
    return f"{name}={level_text(level)}"


def cell_text(cell: Mapping[str, Level]) -> str:
    """Write the levels of a cell: `epsilon 0.1, lr 0.005`."""
    return ", ".join(f"{short_name(name)} {level_text(level)}" for name, level in cell.items())


def names_text(names: Iterable[str]) -> str:
    """Write the short names of factors: `epsilon, lr and noise`. Of many, the first ones."""
    short = [short_name(name) for name in names]
    return listed(short) if len(short) <= _MOST_NAMES else first_of(short, _MOST_NAMES)


def counts_text(trials: Iterable[Trial]) -> str:
    """Count the outcomes of trials: `20 stable, 3 exploded`, in the order of `MARKS`."""
    counts = Counter(trial.outcome for trial in trials)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in MARKS if counts[outcome])


def changed_text(effect: Effect) -> str:
    """Write the change of an effect: `lr 0.002 → 0.005`, `lr, per decade`, `lr 0.002 → 0.005 × noise 0.25 → 1`."""
    if effect.kind.startswith("trend"):
        return f"{short_name(effect.factors[0])}, {effect.kind.removeprefix('trend ')}"
    parts = zip(effect.factors, effect.levels, strict=True)
    return " × ".join(f"{short_name(name)} {level_text(a)} → {level_text(b)}" for name, (a, b) in parts)


def effect_text(effect: Effect) -> str:
    """Write an effect with its interval: `+33 points [−10, +60]`, `×2.1 [1.8, 2.4]`. With one seed, without."""
    if not effect.matches:
        return ""
    ends = (effect.low, effect.high) if effect.seeds > 1 else None
    return size_text(effect.response, effect.effect, ends)


def size_text(response: str, effect: float, ends: tuple[float, float] | None) -> str:
    """Write a difference or a ratio, with the ends of its interval if there is one: `+0.012 [−0.003, +0.027]`."""
    if response in RATIOS:
        size, *bounds = (ratio_text(value) for value in (effect, *(ends or ())))
        size = f"×{size}"
    elif response == "healthy":
        size, *bounds = (_signed(100 * value, digits=0) for value in (effect, *(ends or ())))
        size = f"{size} points"
    else:
        size, *bounds = (_signed(value, digits=3) for value in (effect, *(ends or ())))
    return f"{size} [{', '.join(bounds)}]" if ends else size


def ratio_text(ratio: float) -> str:
    """Write a ratio with two digits: `0.25`, `2.1`, `1200`, `4e6`, `∞`."""
    if ratio == math.inf:
        return "∞"
    return level_text(float(f"{ratio:.2g}"))


def p_text(p: float) -> str:
    """Write a p value: `p = 0.03`, `p < 0.001`; `no p` without a test."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _signed(value: float, digits: int) -> str:
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞"
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else f"{'−' if value < 0 else '+'}{text}"
