"""A sweep that can be depended on, with whatever launcher and sweeper Hydra has: `--multirun`.

A crashed trial does not stop the others; what is finished is passed over, what is not goes on; and at the end there is
a list of what is missing. Launchers may train in other processes: what became of a trial is told by its folder.
"""

import math
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stability import config
from stability.errors import Busy, StabilityError, Stop
from stability.files import ERROR, FIGURE, LOCK, VERDICT, short_path, write_atomically
from stability.studies.bisection import BisectionSweeper
from stability.studies.dry_run import show_plan, show_search
from stability.studies.plan import Plan, plan
from stability.studies.progress import CRASHED, SweepProgress, why
from stability.studies.search import ResumingSweeper, Search, look_up
from stability.studies.trials import read_trials
from stability.tracking import is_sent

if TYPE_CHECKING:  # PyTorch takes seconds
    from stability.data.t15 import Dataset
    from stability.training.together import Wish


class Sweep(Callback):
    """What Hydra calls at the start and at the end of a sweep."""

    def __init__(self) -> None:
        config.register()  # where a launcher's other process reads this, it has not composed yet
        self._progress: SweepProgress | None = None

    def __reduce__(self) -> tuple[type["Sweep"], tuple[()]]:
        return Sweep, ()  # only the process that began the sweep watches it

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what is for sweeps alone."""
        if config.sweep.dry_run:
            raise Stop(StabilityError("sweep.dry_run=true is for sweeps: give --multirun with it."))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the whole sweep before any of it is trained."""
        try:
            self._progress = _begin(config)
        except Exception as error:
            raise Stop(error) from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what became of the sweep, however it ended."""
        if self._progress is None:
            return
        try:
            self._progress.stop()
            missing = _missing(self._progress)
            if missing and sys.exc_info()[0] is None:  # what else ended the sweep is told instead
                raise StabilityError(missing)
        except Exception as error:
            raise Stop(error) from error


def run_in_sweep(cfg: DictConfig, folder: Path) -> float:
    """Train a sweep's trial in `folder`, and return what `live_in_sweep` does."""
    if _is_finished(cfg, folder):
        return _objective(folder)
    from stability.training.together import train_together  # late: PyTorch takes seconds

    (end,) = train_together([live_in_sweep(cfg, folder)], 1)
    if isinstance(end, BaseException):
        raise end
    return end


def live_in_sweep(
    cfg: DictConfig, folder: Path, data: "Callable[[config.Config], Dataset] | None" = None
) -> "Generator[Wish, Any, float]":
    """The life of a sweep's trial in `folder`, in any stack.

    It ends with what a search makes small: the trial's PER, and 1 if it is not stable. A trial that crashes, whatever
    the reason, leaves the file `error.txt` and ends with NaN, as does one that another process is training.
    """
    try:
        if not _is_finished(cfg, folder):
            from stability.training.trial import live  # late: PyTorch takes seconds

            yield from live(config.resolve(cfg), folder, quiet=True, data=data)
        return _objective(folder)
    except Busy:
        return math.nan
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, StabilityError):
            reason = f"{type(error).__name__}: {reason}"
        write_atomically(folder / ERROR, f"{traceback.format_exc()}\n{reason}\n".encode())
        return math.nan


def _objective(folder: Path) -> float:
    """What a search makes small."""
    (trial,) = read_trials([folder]).trials
    return trial.per if trial.outcome == "stable" else 1.0


def _begin(cfg: DictConfig) -> SweepProgress:
    """Check the sweep, and show it from now on. A dry run ends here."""
    study = Path(cfg.hydra.sweep.dir)
    if cfg.sweep.claims is not None:
        from stability.studies.claims import find_claims, read_claims  # late: SciPy takes a while

        read_claims(find_claims(Path(cfg.sweep.claims)))  # what is wrong in it is said now, and not after hours
    from stability.studies.launcher import StackedLauncher  # late: it trains as a sweep does

    for plugin in (ResumingSweeper, BisectionSweeper, StackedLauncher):
        Plugins.instance().register(plugin)
    planned, searched = plan(cfg), look_up(cfg)
    if cfg.sweep.dry_run:
        show_plan(planned) if planned else show_search(searched, study)
        sys.exit()
    for note in _notes(planned, searched):
        print(note)
    progress = SweepProgress(study, planned, searched)
    progress.start()
    return progress


def _notes(planned: Plan | None, searched: Search | None) -> list[str]:
    notes = []
    if planned:
        if planned.repeated:
            notes.append(f"{planned.repeated} trials are the same as others, and are trained once.")
        if planned.factors and len({trial.config.seed for trial in planned.trials}) == 1:
            notes.append("With one seed nothing can be ruled on: give several, as in 'seed=range(3)'.")
    if searched and searched.done >= searched.total:
        notes.append(f"The search has all of its {searched.total} trials: hydra.sweeper.n_trials=MORE goes on with it.")
    return notes


def _is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether nothing is left to do for the trial, as far as its folder tells."""
    if not all((folder / name).exists() for name in (VERDICT, FIGURE)) or (folder / ERROR).exists():
        return False
    settings = config.resolve(cfg)
    return not settings.fresh and is_sent(settings.tracking, folder, outputs=Path(settings.outputs))


def _missing(progress: SweepProgress) -> str:
    """The trials that have no verdict, each with the reason."""
    crashed = [folder for folder, outcome in progress.outcomes.items() if outcome == CRASHED]
    reasons = {folder: f"{why(folder)} ({short_path(folder / ERROR)})" for folder in crashed}
    for folder in progress.folders():
        if folder in progress.outcomes:
            continue
        if _is_busy(folder):
            reasons[folder] = "another process is training it"
        elif progress.plan:
            reasons[folder] = "it was not trained, or its process was killed"
    if not reasons:
        return ""
    lines = [f"  {progress.describe(folder)}: {reason}" for folder, reason in reasons.items()]
    return "\n".join(
        [f"no verdict on {len(reasons)} of the trials. The same command goes on with what is missing.", *lines]
    )


def _is_busy(folder: Path) -> bool:
    """Whether a process is training the trial."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
