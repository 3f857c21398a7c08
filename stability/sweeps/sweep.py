"""Starts and ends a sweep (`--multirun`), with any of Hydra's launchers and sweepers.

A trial that crashes does not stop the others, a finished trial is not trained again, and one that was interrupted is
continued. At the end the trials without a verdict are listed. A launcher may train in other processes, so the outcome
of a trial is read from its folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stability.config.hydra import register_schema, resolve_config
from stability.config.placeholders import uses_seed
from stability.config.schema import Config
from stability.core.errors import CallbackError, StabilityError
from stability.core.files import LOCK
from stability.core.locks import lock_alone
from stability.core.text import counted
from stability.sweeps.bisection import BisectionSweeper
from stability.sweeps.closing import list_missing, report_explanation, report_repair, report_study
from stability.sweeps.dry_run import show_plan, show_search
from stability.sweeps.explain import ExplainSweeper, question_of, show_question
from stability.sweeps.hydra_internals import job_error
from stability.sweeps.jobs import InvalidJob, describe_job, list_invalid
from stability.sweeps.launcher import StackedLauncher, is_stacked
from stability.sweeps.plan import GridSweeper, Plan, make_plan
from stability.sweeps.progress import CRASHED, SweepProgress
from stability.sweeps.repair import RepairSweeper, patient_of, show_patient
from stability.sweeps.search import ResumingSweeper, Search, find_search
from stability.sweeps.sweep_trial import is_finished
from stability.sweeps.until_ruled import note_on_seeds, record_claims, spared_trials, stops_when_ruled
from stability.tracking.api import abort_study, is_sent, open_study


class Sweep(Callback):
    """Hydra's callback for sweeps: it checks a sweep, shows its progress, and reports on it at the end.

    An error is raised as CallbackError, because Hydra would turn an `Exception` of a callback into a warning.
    """

    def __init__(self) -> None:
        register_schema()  # in a launcher's other process nothing has registered it before
        self._progress: SweepProgress | None = None
        self._tracked = False
        self._invalid: list[InvalidJob] = []
        self._failed: dict[Path, str] = {}  # why a trial could not be trained, by its folder
        self._lock: IO[str] | None = None  # of an explanation's or a repair's folder, in which one process may write

    def __reduce__(self) -> tuple[type["Sweep"], tuple[()]]:
        return Sweep, ()  # a copy in another process does not watch the sweep

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a dry run of a single trial."""
        if config.sweep.dry_run:
            raise CallbackError(StabilityError("sweep.dry_run=true needs --multirun: give both, or neither."))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the whole sweep before any of it is trained, and start to show its progress. A dry run exits here."""
        try:
            self._progress, self._tracked, self._lock = _start(config)
        except Exception as error:
            raise CallbackError(error) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep what StackedLauncher reports of a job that is invalid or could not be trained."""
        error, composed = job_error(job_return), job_return.hydra_cfg
        if self._progress is None or not isinstance(error, StabilityError):
            return
        if composed is not None:
            self._failed[Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)] = str(error)
        else:
            self._invalid.append(InvalidJob(describe_job(config, job_return.overrides or ()), str(error)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the study's report and raise an error that lists what is missing, however the sweep ended."""
        if self._progress is None:
            return
        ended_by = sys.exc_info()[1]  # Hydra calls this while it handles the exception that ends the sweep
        try:
            self._progress.spare(spared_trials(Path(config.hydra.sweep.dir)))
            self._progress.stop()
            planned = self._progress.plan.invalid if isinstance(self._progress.plan, Plan) else ()
            problems = [list_missing(self._progress, self._failed), _list_all_invalid([*planned, *self._invalid])]
            study, stopped = Path(config.hydra.sweep.dir), isinstance(ended_by, KeyboardInterrupt)
            try:
                if _is_sweeper(config, ExplainSweeper):
                    report_explanation(study, tracked=self._tracked, stopped=stopped)
                elif _is_sweeper(config, RepairSweeper):
                    report_repair(study, tracked=self._tracked, stopped=stopped)
                else:
                    report_study(study, config.sweep.claims, self._progress, tracked=self._tracked, stopped=stopped)
            except StabilityError as error:
                problems.append(str(error))
            if message := "\n".join(filter(None, self._add_cause(self._progress, ended_by, problems))):
                raise StabilityError(message)
        except Exception as error:
            raise CallbackError(error) from error
        except KeyboardInterrupt:
            if self._tracked:
                abort_study(Path(config.hydra.sweep.dir))
            raise
        finally:
            if self._lock is not None:
                self._lock.close()

    def _add_cause(self, progress: SweepProgress, ended_by: BaseException | None, problems: list[str]) -> list[str]:
        """Return the problems to raise when `ended_by` ended the sweep. If there are none, Hydra raises `ended_by`."""
        if ended_by is None:
            return problems
        some_failed = self._failed or self._invalid or CRASHED in progress.outcomes.values()
        if some_failed and isinstance(ended_by, StabilityError):
            return [str(ended_by), *problems]
        if some_failed and isinstance(ended_by, ValueError):
            return problems  # a sweeper, such as Optuna's, met the NaN of a failed trial: the problems say why
        return []


def _start(cfg: DictConfig) -> tuple[SweepProgress, bool, IO[str] | None]:
    """Check the sweep and start to show it.

    Returns:
        What shows it, whether there is anything to send to the tracker, and the lock of its folder if it needs one.
    """
    study = Path(cfg.hydra.sweep.dir)
    if cfg.sweep.claims is not None:
        from stability.analysis.claims import find_claims, read_claims  # late: SciPy takes a while

        read_claims(find_claims(cfg.sweep.claims))  # an error in the file has to show now, not after hours of training
    for plugin in (GridSweeper, ResumingSweeper, BisectionSweeper, ExplainSweeper, RepairSweeper, StackedLauncher):
        Plugins.instance().register(plugin)
    plan, search, until_ruled = make_plan(cfg), find_search(cfg), stops_when_ruled(cfg)
    if until_ruled and not plan:
        raise StabilityError("sweep.until=ruled is for grids: leave it out, or give hydra/sweeper=basic.")
    if plan:
        _report_invalid(plan, is_stacked(cfg.hydra.launcher), cfg.sweep.dry_run)
    question = question_of(cfg) if _is_sweeper(cfg, ExplainSweeper) else None
    patient = patient_of(cfg) if _is_sweeper(cfg, RepairSweeper) else None
    if cfg.sweep.dry_run:
        if question:
            show_question(question)
        elif patient:
            show_patient(patient)
        else:
            show_plan(plan, cfg.hydra.launcher) if plan else show_search(search, study)
            for note in note_on_seeds(plan.trials) if plan and until_ruled else ():
                print(note)
        sys.exit(1 if plan and plan.invalid else 0)
    settings = plan.trials[0].config if plan else resolve_config(cfg, searched=True)
    notes = _notes(plan, search, settings)
    if until_ruled and plan:
        record_claims(cfg)
        notes += note_on_seeds(plan.trials)
    for note in notes:
        print(note)
    lock = None
    if question or patient:  # each round writes what is known so far
        study.mkdir(parents=True, exist_ok=True)
        lock = lock_alone(study / LOCK)
    total, done = (search.total, search.done) if search else (None, 0)
    progress = SweepProgress(study, plan, total, done, None if plan else settings.budget)
    tracking, outputs = settings.tracking, Path(settings.outputs)
    finished = plan is not None and all(is_finished(trial.config, trial.folder) for trial in plan.trials)
    is_closed = finished and is_sent(tracking, study, outputs=outputs)  # a kill may have come after the last trial
    if not is_closed:
        open_study(tracking, study, outputs=outputs, factors=plan.levels if plan else {})
    progress.start()
    return progress, not is_closed, lock


def _is_sweeper(cfg: DictConfig, kind: type) -> bool:
    return str(cfg.hydra.sweeper._target_).endswith(f".{kind.__name__}")


def _report_invalid(plan: Plan, stacked: bool, dry_run: bool) -> None:
    """Print the invalid jobs of a grid, or raise if no other job can be trained.

    Only StackedLauncher goes on to the valid ones: Hydra's launchers stop at the first invalid job.
    """
    if not plan.invalid:
        return
    count = len(plan.invalid)
    summary = f"{count} of {counted(plan.jobs, 'configuration')} {_are(count)} invalid"
    if not stacked or not plan.trials:
        raise StabilityError(f"{summary}; no trial was started:\n{list_invalid(plan.invalid)}")
    others = "one" if plan.jobs - count == 1 else plan.jobs - count
    action = "a sweep would train" if dry_run else "training"
    print(f"{summary}; {action} the other {others}.", list_invalid(plan.invalid), sep="\n")


def _notes(plan: Plan | None, search: Search | None, settings: Config) -> list[str]:
    """Return what a user should know before the sweep starts."""
    notes = []
    if plan and plan.duplicates:
        verb = "repeats" if plan.duplicates == 1 else "repeat"
        notes.append(f"{counted(plan.duplicates, 'configuration')} {verb} an earlier one; each trial is trained once.")
    if plan and plan.factors and len({trial.config.seed for trial in plan.trials}) == 1:
        notes.append("One seed does not show whether an effect is chance: give several, as in 'seed=range(3)'.")
    elif settings.runs_command and settings.trainer.command and not uses_seed(settings):
        notes.append(
            "The program is not told the seed, so it chooses its random numbers itself. To tell it, write {seed} into "
            "trainer.command."
        )
    if search and search.done >= search.total:
        notes.append(f"The search already has {search.done} trials: to go on, give hydra.sweeper.n_trials=MORE.")
    return notes


def _list_all_invalid(jobs: Sequence[InvalidJob]) -> str:
    """List the invalid jobs of the whole sweep, each once; empty if there are none."""
    different = dict.fromkeys(jobs)
    if not different:
        return ""
    return f"{counted(len(different), 'configuration')} {_are(len(different))} invalid:\n{list_invalid(different)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
