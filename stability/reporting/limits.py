"""What the runs of somebody else's program cannot tell, in sentences. Our own studies are planned, and lack nothing."""

import math
from collections import Counter
from collections.abc import Sequence

from stability.analysis.effects import Effect
from stability.analysis.matching import cells_of, main_factors
from stability.analysis.trial import Trials
from stability.core.text import counted, listed
from stability.reporting.wording import names_text

_MANY = 10**6  # combinations that nobody counts
_RECORDED = {
    "per": "an error rate",
    "norm_spike": "gradient norms",
    "steps": "the length of the plateau, which needs the frame information",
}


def limits(trials: Trials, found: Sequence[Effect]) -> list[str]:
    """Say what cannot be told from these trials, and why. Their notes come first.

    Args:
        trials: The trials.
        found: Their effects.
    """
    if not trials.trials or all(trial.ours for trial in trials.trials):
        return [*trials.notes]
    return [*trials.notes, *_balance(trials), *_never_alone(trials, found), *_not_recorded(trials)]


def _balance(trials: Trials) -> list[str]:
    """A sentence on cells that have one run, and one on cells that have none or more than others."""
    cells = cells_of(trials)
    sizes = Counter(map(len, cells.values()))
    possible = math.prod(map(len, main_factors(trials).values()))
    if len(cells) < 2:
        return []
    if {*sizes} == {1}:
        return ["Each combination of settings has one run, so nothing says what would differ by chance."]
    missing = possible - len(cells)
    if not missing and len(sizes) == 1:
        return []
    combinations = (
        f"{missing:,} of {counted(possible, 'combination')}" if possible < _MANY else "nearly all combinations"
    )
    parts = [f"{combinations} of settings {'has' if missing == 1 else 'have'} no run"] if missing else []
    if len(sizes) > 1:
        parts.append(f"a combination has from {min(sizes)} to {max(sizes)} runs")
    return [f"The runs are unbalanced: {' and '.join(parts)}. Effects compare only runs that differ in one factor."]


def _never_alone(trials: Trials, found: Sequence[Effect]) -> list[str]:
    """A sentence on factors of which no two runs differ in nothing else."""
    alone = {effect.factors[0] for effect in found if effect.matches and len(effect.factors) == 1}
    compared = {effect.factors[0] for effect in found if len(effect.factors) == 1}
    never = [name for name in main_factors(trials) if name in compared - alone]
    if not never:
        return []
    what = "changes" if len(never) == 1 else "change"
    return [
        f"{names_text(never)} never {what} alone, so what {'it does' if len(never) == 1 else 'they do'} is not known."
    ]


def _not_recorded(trials: Trials) -> list[str]:
    """A sentence on what was not recorded of any run, and on what this means for health."""
    lacking = [words for response, words in _RECORDED.items() if not trials.has(response)]
    found = [f"Not recorded, and so not compared: {listed(lacking)}."] if lacking else []
    if not trials.has("per"):
        found.append("Without an error rate, a run counts as healthy if nothing was seen to be wrong.")
    return found
