"""What the pages of `explain` and `repair` share: signs of the trials that were tried, commands, and the footer."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from stability import __version__
from stability.config.commandline import is_of_experiment
from stability.core.checkout import git_commit
from stability.core.text import counted
from stability.diagnosis.outcomes import MARKS, Mark
from stability.reporting.recorded import TRAIN, typed

_ABSENT = r"trainer\.\w+=null"  # what a folder says of its command and what is so anyway


def signs(trials: Iterable[Mapping[str, Any]], is_fresh: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return what a page shows of trials, for `seeds` in `tried.html.j2`.

    Args:
        trials: Trials as `explanation.json` and `repair.json` have them.
        is_fresh: Whether a trial's seed tests what others have found.
    """
    return [_sign(trial) | {"fresh": is_fresh(trial)} for trial in trials]


def _sign(trial: Mapping[str, Any]) -> dict[str, Any]:
    mark = MARKS.get(trial["outcome"])
    cause = f", {trial['cause']}" if trial["cause"] else ""
    return {
        "sign": mark.sign if mark else "✕",
        "colour": mark.colour if mark else "var(--soft)",
        "title": f"seed {trial['seed']}: {trial['outcome']}{cause}, {counted(trial['steps'], 'step')}",
        "folder": trial["folder"],
    }


def marks_of(trials: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mark]]:
    """Return the outcomes of trials with their marks, in the order in which all pages have them."""
    outcomes = {trial["outcome"] for trial in trials}
    return [(name, mark) for name, mark in MARKS.items() if name in outcomes]


def train_command(overrides: Sequence[str], *more: str) -> str:
    """Return the command that makes a training of an experiment.

    Args:
        overrides: The overrides of the trial, which may have some of the whole experiment.
        more: What to add.
    """
    own = (w for w in overrides if not is_of_experiment(w) and not re.fullmatch(_ABSENT, w))
    return shlex.join([*TRAIN, *typed([*own, *more])])


def made_with() -> dict[str, str]:
    """Return when and with what a page is made, for its footer."""
    return {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": f"stability {__version__}",
        "commit": (git_commit() or "")[:7],
    }
