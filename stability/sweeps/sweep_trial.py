"""A trial as a job of a sweep: whatever happens to it, the sweep continues."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from stability.analysis.trials import read_trials
from stability.config.hydra import resolve_config
from stability.config.schema import Config
from stability.core.errors import StabilityError, TrialBusy, keep_error
from stability.core.files import ERROR, FIGURE, VERDICT, short_path
from stability.tracking.api import is_sent

if TYPE_CHECKING:  # PyTorch takes seconds
    from stability.trials.training import OpenData


def run_in_sweep(cfg: DictConfig, folder: Path) -> float:
    """Train a sweep's trial alone and return its objective, NaN if it crashes. A finished trial is only read.

    Raises:
        StabilityError: The trial's verdict cannot be read.
        Interrupted: Ctrl-C or SIGTERM came, and the trial has written its checkpoint.
    """
    if (folder / VERDICT).exists() and is_finished(resolve_config(cfg), folder):
        return objective(folder)
    from stability.trials.scheduler import train_together  # late: PyTorch takes seconds

    (result,) = train_together([trial_in_sweep(cfg, folder)], size=1)
    if isinstance(result, BaseException):
        raise result
    return result


async def trial_in_sweep(cfg: DictConfig, folder: Path, open_data: "OpenData | None" = None) -> float:
    """Run a sweep's trial, as a coroutine for the scheduler.

    A trial that crashes, for whatever reason, leaves the file `error.txt` in its folder.

    Args:
        cfg: What Hydra composed for the trial.
        folder: The trial's folder.
        open_data: Opens the data set; None: the trial opens its own.

    Returns:
        The trial's `objective`; NaN if it crashed, or if another process is training it.
    """
    try:
        settings = resolve_config(cfg)
        if not is_finished(settings, folder):
            from stability.trials import setup  # late: PyTorch takes seconds
            from stability.trials.run import trial

            await trial(settings, folder, quiet=True, open_data=open_data or setup.open_data)
        return objective(folder)
    except TrialBusy:
        return math.nan
    except Exception as error:
        keep_error(folder, error)
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
