"""A sweep that can be depended on, with whatever launcher and sweeper Hydra has: `--multirun`.

A crashed trial does not stop the others; what is finished is passed over, what is not goes on; and at the end there is
a list of what is missing. Launchers may train in other processes: what became of a trial is told by its folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stability.config.hydra import register_schema, resolve_config
from stability.core.errors import CallbackError, StabilityError
from stability.core.files import ERROR, VERDICT, short_path
from stability.sweeps.bisection import BisectionSweeper
from stability.sweeps.dry_run import show_plan, show_search
from stability.sweeps.launcher import StackedLauncher, is_stacked
from stability.sweeps.plan import GridSweeper, Plan, plan, reasons, swept
from stability.sweeps.progress import CRASHED, SweepProgress, why
from stability.sweeps.search import ResumingSweeper, Search, look_up
from stability.sweeps.sweep_trial import is_busy, is_finished
from stability.tracking.api import close_study, open_study


class Sweep(Callback):
    """What Hydra calls at the start and at the end of a sweep."""

    def __init__(self) -> None:
        register_schema()  # where a launcher's other process reads this, it has not composed yet
        self._progress: SweepProgress | None = None
        self._sends = False
        self._impossible: list[tuple[str, str]] = []  # jobs that cannot be, and why
        self._untrained: dict[Path, str] = {}  # trials that could not be trained, and why

    def __reduce__(self) -> tuple[type["Sweep"], tuple[()]]:
        return Sweep, ()  # only the process that began the sweep watches it

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what is for sweeps alone."""
        if config.sweep.dry_run:
            raise CallbackError(StabilityError("sweep.dry_run=true is for sweeps: give --multirun with it."))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the whole sweep before any of it is trained."""
        try:
            self._progress, self._sends = _begin(config)
        except Exception as error:
            raise CallbackError(error) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note what our own launcher tells of jobs that cannot be."""
        error, composed = job_return._return_value, job_return.hydra_cfg
        if self._progress is None or job_return.status is not JobStatus.FAILED or not isinstance(error, StabilityError):
            return
        if composed is not None:
            self._untrained[Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)] = str(error)
        else:
            self._impossible.append((swept(config, job_return.overrides or ()), str(error)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what became of the sweep, however it ended."""
        if self._progress is None:
            return
        try:
            self._progress.stop()
            trouble = [_missing(self._progress, self._untrained), _impossible(self._progress.plan, self._impossible)]
            try:
                _tell_and_send(config, self._progress, self._sends)
            except StabilityError as error:
                trouble.append(str(error))
            ended_by, noted = sys.exc_info()[1], self._untrained or self._impossible
            if noted and isinstance(ended_by, StabilityError):
                trouble = [str(ended_by), *trouble]
            elif ended_by is not None and not (noted and isinstance(ended_by, ValueError)):  # as Optuna's of no trial
                trouble = []  # what ended the sweep is told instead
            if told := list(filter(None, trouble)):
                raise StabilityError("\n".join(told))
        except Exception as error:
            raise CallbackError(error) from error


def _begin(cfg: DictConfig) -> tuple[SweepProgress, bool]:
    """Check the sweep, and show it from now on. A dry run ends here. Also whether there is anything to send."""
    study = Path(cfg.hydra.sweep.dir)
    if cfg.sweep.claims is not None:
        from stability.analysis.claims import find_claims, read_claims  # late: SciPy takes a while

        read_claims(find_claims(cfg.sweep.claims))  # what is wrong in it is said now, and not after hours
    for plugin in (GridSweeper, ResumingSweeper, BisectionSweeper, StackedLauncher):
        Plugins.instance().register(plugin)
    planned, searched = plan(cfg), look_up(cfg)
    if planned:
        _tell_impossible(planned, is_stacked(cfg.hydra.launcher))
    if cfg.sweep.dry_run:
        show_plan(planned, cfg.hydra.launcher) if planned else show_search(searched, study)
        sys.exit(bool(planned and planned.impossible))
    for note in _notes(planned, searched):
        print(note)
    done = planned is not None and all(is_finished(trial.config, trial.folder) for trial in planned.trials)
    if not done:
        settings = planned.trials[0].config if planned else resolve_config(cfg)
        open_study(settings.tracking, study, outputs=Path(settings.outputs))
    progress = SweepProgress(study, planned, searched)
    progress.start()
    return progress, not done


def _tell_and_send(cfg: DictConfig, progress: SweepProgress, sends: bool) -> None:
    """Write the report of the whole study, if any of its trials is finished, and tell and send what it says."""
    study, claims = Path(cfg.hydra.sweep.dir), cfg.sweep.claims
    if not any((folder / VERDICT).exists() for folder in progress.folders()):
        if sends:
            close_study(study, [], "")
        return
    from stability.analysis.claims import find_claims  # late: SciPy and matplotlib take a while
    from stability.reporting.page import write_report

    report = write_report([study], claims=None if claims is None else find_claims(claims))
    print("", *report.sentences, f"report    {short_path(report.page)}", sep="\n")
    if sends:
        print(close_study(study, [report.page, *report.files], " ".join(report.sentences)))


def _tell_impossible(planned: Plan, stacked: bool) -> None:
    """Say which jobs of a grid cannot be. Only our own launcher trains the others."""
    if planned.impossible:
        goes_on = stacked and planned.trials
        others = "are trained" if goes_on else "were not begun"
        count = f"{len(planned.impossible)} of {planned.jobs} trials cannot be, the others {others}:"
        if not goes_on:
            raise StabilityError(f"{count}\n{reasons(planned.impossible)}")
        print(count, reasons(planned.impossible), sep="\n")


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


def _impossible(planned: Plan | None, met: Sequence[tuple[str, str]]) -> str:
    """The jobs that cannot be, those of the plan and those that the launcher met, each with the reason."""
    jobs = [*dict.fromkeys([*(planned.impossible if planned else ()), *met])]
    return f"{len(jobs)} of the trials cannot be:\n{reasons(jobs)}" if jobs else ""


def _missing(progress: SweepProgress, untrained: dict[Path, str]) -> str:
    """The trials that have no verdict, each with the reason."""
    crashed = [folder for folder, outcome in progress.outcomes.items() if outcome == CRASHED]
    missing = {folder: f"{why(folder)} ({short_path(folder / ERROR)})" for folder in crashed} | untrained
    for folder in progress.folders():
        if folder in progress.outcomes or folder in missing:
            continue
        if is_busy(folder):
            missing[folder] = "another process is training it"
        elif progress.plan:
            missing[folder] = "it was not trained, or its process was killed"
    if not missing:
        return ""
    lines = [f"  {progress.describe(folder)}: {reason}" for folder, reason in missing.items()]
    return "\n".join(
        [f"no verdict on {len(missing)} of the trials. The same command goes on with what is missing.", *lines]
    )
