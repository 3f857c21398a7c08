"""Hydra's callback that makes a study of an app's sweep, and gives each of its jobs a verdict."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode, TaskFunction
from hydra_plugins._stability_bisection import AppBisection
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stability.app.ending import clear, keep_results
from stability.app.launcher import EndsJobOnly, SkippingLauncher
from stability.app.sending import Sending
from stability.app.study import AppStudy
from stability.core.errors import Interrupted, StabilityError, keep_error
from stability.core.files import LOCK
from stability.core.locks import try_lock
from stability.core.stopping import STOPPED
from stability.sweeps.hydra_internals import BasicSweeper, job_error
from stability.watch.job import Job, begin_job, end_job, is_first_process

log = logging.getLogger(__name__)


class StabilityCallback(Callback):
    """Makes a study of every sweep (`--multirun`) of a Hydra app.

    Three lines in the app's configuration are enough:

        hydra:
          callbacks:
            stability: {_target_: stability.hydra.StabilityCallback}

    A job gets its verdict from the `Monitor` in its loop, or else from the logs in its folder. A job that is finished
    is not run again: the sweeper gets what it returned. A job that crashes does not stop a grid. At the end there are
    the report, the run of the study in MLflow, and the list of what is missing. Without `hydra.sweep.dir` the study is
    `multirun/APP`, and without `hydra.sweep.subdir` a job's folder is named by its settings.

    Args:
        dry_run: Whether the jobs are only listed, and which of them are finished. Nothing is run.
        claims: A file with claims to rule on.
        tracking: `mlflow`, or `none` if nothing is to be sent.
    """

    def __init__(self, dry_run: bool = False, claims: str | None = None, tracking: str = "mlflow") -> None:
        self._dry_run, self._claims, self._tracking = dry_run, claims, tracking
        self._job: Job | None = None
        self._lock: IO[str] | None = None

    def __reduce__(self) -> tuple[type["StabilityCallback"], tuple[bool, str | None, str]]:
        return StabilityCallback, (self._dry_run, self._claims, self._tracking)  # in the process of a job

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a dry run of a single job."""
        if self._dry_run:
            sys.exit("error: hydra.callbacks.stability.dry_run=true needs --multirun: give both, or neither.")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Plan the sweep before any job is run, and take the sweeper's place. A dry run exits here."""
        try:
            if not is_first_process():
                raise StabilityError(
                    "Each process of a distributed training would run the whole sweep: RANK, LOCAL_RANK or "
                    "SLURM_PROCID is above 0. Start the sweep in one process, and those of a training in its job."
                )
            Plugins.instance().register(AppBisection)
            study = AppStudy(config, self._claims, self._tracking)
            if self._dry_run:
                study.show()
                sys.exit()
            _take_over(study)
        except StabilityError as error:
            sys.exit(f"error: {error}")

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Lock the job's folder, and clear it of the results of an earlier run. Of several processes the first does."""
        if not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir)
        self._lock = try_lock(folder / LOCK)
        if self._lock is None:
            sys.exit(f"error: another process runs the job in {folder}. Wait for its end.")
        clear(folder)
        self._job = begin_job(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Give the job its verdict, or keep the error that ended it."""
        job, self._job = self._job, None
        end_job()
        if job is None or self._lock is None:
            return
        try:
            if (error := job_error(job_return)) is None:
                keep_results(job, job_return.return_value)
                if config.hydra.mode == RunMode.MULTIRUN:
                    Sending.of_study(job.folder.parent, self._tracking).send(job.folder)
            elif isinstance(error, Exception):  # not Ctrl-C
                keep_error(job.folder, error)
        except OSError as error:
            log.warning("The results of the job cannot be kept in %s: %s", job.folder, error.strerror or error)
        finally:
            self._lock.close()


def _take_over(study: AppStudy) -> None:
    """Let the sweeper that Hydra makes next run only what is not finished, and report at its end.

    Hydra has no public way to do this. The methods of its plugins that are replaced are put back at once: what is sent
    to other processes knows nothing of this.
    """
    plugins: Any = Plugins.instance()
    make_sweeper, make_launcher = plugins.instantiate_sweeper, plugins.instantiate_launcher

    def instantiate_sweeper(**kwargs: Any) -> Sweeper:
        del plugins.instantiate_sweeper
        is_grid = issubclass(plugins.class_name_to_class[kwargs["config"].hydra.sweeper._target_], BasicSweeper)

        def instantiate_launcher(*, task_function: TaskFunction, **kwargs: Any) -> Launcher:
            inner = make_launcher(task_function=EndsJobOnly(task_function), **kwargs)
            return SkippingLauncher(inner, study.jobs, goes_on=is_grid)

        plugins.instantiate_launcher = instantiate_launcher
        try:
            sweeper: Any = make_sweeper(**kwargs)
        except StabilityError as error:
            sys.exit(f"error: {error}")
        finally:
            del plugins.instantiate_launcher
        sweeper.sweep = _reported(study, sweeper.sweep)
        return sweeper  # type: ignore[no-any-return]

    plugins.instantiate_sweeper = instantiate_sweeper


def _reported(study: AppStudy, sweep: Callable[..., Any]) -> Callable[..., Any]:
    """Return the sweeper's function, with what comes before its first job and after its last."""

    def sweep_and_report(arguments: list[str]) -> Any:
        try:
            study.begin()
            returned, problems = None, ""
            try:
                returned = sweep(arguments)
            except KeyboardInterrupt:
                study.end(stopped=True)
                print(STOPPED, file=sys.stderr)
                sys.exit(Interrupted.exit_status)
            except StabilityError as error:
                problems = str(error)
            except (HydraException, OmegaConfBaseException, SystemExit):  # Hydra explains its own; a locked job exits
                print(study.end(stopped=False), file=sys.stderr)
                raise
            except Exception as error:
                if os.environ.get("HYDRA_FULL_ERROR"):
                    raise
                problems = f"The sweep ended early. {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            problems = "\n".join(filter(None, [problems, study.end(stopped=False)]))
        except StabilityError as error:
            problems = str(error)
        if problems:
            sys.exit(f"error: {problems}")
        return returned

    return sweep_and_report
