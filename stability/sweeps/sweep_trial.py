"""A trial as a job of a sweep: whatever happens to it, the sweep continues."""

import math
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from stability.analysis.trials import read_trials
from stability.config.hydra import resolve_config
from stability.config.schema import Config
from stability.core.errors import StabilityError, TrialBusy
from stability.core.files import ERROR, FIGURE, LOCK, VERDICT, short_path, write_atomically
from stability.tracking.api import is_sent

if TYPE_CHECKING:  # PyTorch takes seconds
    from stability.data.records import Dataset
    from stability.trials.scheduler import Wish


def run_in_sweep(cfg: DictConfig, folder: Path) -> float:
    """Train a sweep's trial alone and return its objective, NaN if it crashes. A finished trial is only read.

    Raises:
        StabilityError: The trial's verdict cannot be read.
        Interrupted: Ctrl-C or SIGTERM came, and the trial has written its checkpoint.
    """
    if (folder / VERDICT).exists() and is_finished(resolve_config(cfg), folder):
        return objective(folder)
    from stability.trials.scheduler import train_together  # late: PyTorch takes seconds

    (end,) = train_together([live_in_sweep(cfg, folder)], 1)
    if isinstance(end, BaseException):
        raise end
    return end


def live_in_sweep(
    cfg: DictConfig, folder: Path, data: "Callable[[Config], Dataset] | None" = None
) -> "Generator[Wish, Any, float]":
    """The life of a sweep's trial in `folder`, in any stack.

    It ends with what a search makes small: the trial's PER, and 1 if it is not stable. A trial that crashes, whatever
    the reason, leaves the file `error.txt` and ends with NaN, as does one that another process is training.
    """
    try:
        settings = resolve_config(cfg)
        if not is_finished(settings, folder):
            from stability.trials.run import live  # late: PyTorch takes seconds

            yield from live(settings, folder, quiet=True, data=data)
        return objective(folder)
    except TrialBusy:
        return math.nan
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, StabilityError):
            reason = f"{type(error).__name__}: {reason}"
        write_atomically(folder / ERROR, f"{traceback.format_exc()}\n{reason}\n".encode())
        return math.nan


def objective(folder: Path) -> float:
    """Return what a search minimises: the PER of a stable trial, 1 for any other outcome.

    Raises:
        StabilityError: The trial in the folder cannot be read.
    """
    read = read_trials([folder])
    if not read.trials:
        raise StabilityError(
            f"{short_path(folder)}: {read.left_out[0][1]}. Delete its {VERDICT} and run the same command again: the "
            "trial continues from its checkpoint."
        )
    (trial,) = read.trials
    return trial.per if trial.outcome == "stable" else 1.0


def is_finished(settings: Config, folder: Path) -> bool:
    """Return whether the trial has its verdict and figure, no error, and has sent all to its tracker."""
    complete = all((folder / name).exists() for name in (VERDICT, FIGURE)) and not (folder / ERROR).exists()
    return complete and not settings.fresh and is_sent(settings.tracking, folder, outputs=Path(settings.outputs))


def is_busy(folder: Path) -> bool:
    """Return whether a process is training the trial."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
