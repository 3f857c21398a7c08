"""A search by Optuna that can be interrupted: `n_trials` is its total, and the same command continues it.

Hydra's own Optuna sweeper would train `n_trials` more after a restart, would forget the trial that it was training, and
would draw the first trials again.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stability.core.errors import StabilityError
from stability.sweeps.hydra_internals import call_when_drawn
from stability.sweeps.jobs import grid_jobs

_HEARTBEAT, _GRACE = 20, 60  # seconds: a trial whose last heartbeat is older than the second is drawn again


@dataclass(frozen=True)
class Search:
    """The number of trials that a search trains in all, and the number of those that are done."""

    total: int
    done: int


class ResumingSweeper(OptunaSweeper):
    """Optuna's sweeper with a study that is kept. `experiment=search` uses it.

    `hydra.sweeper.storage` is a sqlite file, which one process at a time searches, or a database such as PostgreSQL,
    which several processes search together. `hydra.sweeper.n_trials` is the number of finished trials to end with.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration that Hydra passes."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._whole, self._settings = config, config.hydra.sweeper

    def sweep(self, arguments: list[str]) -> None:
        """Search until `n_trials` trials are finished, those of earlier runs and of other processes included.

        Raises:
            StabilityError: The storage cannot be used, or another process is searching with the sqlite file.
        """
        # Optuna's sweeper warns about crashed trials. The sweep lists them at its end.
        logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
        file, folder = _file(self._settings), Path(self._whole.hydra.sweep.dir)
        with _explained(self._settings), _locked(file) if file else nullcontext(), _turn(folder) as turn:
            OmegaConf.save(self._whole, folder / "multirun.yaml")  # as Hydra's sweepers do
            self.sweeper.storage = _storage(self._settings)
            study = _open_study(self._settings, self.sweeper.storage)
            # Crashed trials count, too: to draw others in their place might never end.
            left = self._settings.n_trials - _count(study, "COMPLETE")
            if file:
                turn.release()  # nobody else searches; the others are refused
                # All these were trained by a process that was killed.
                _draw_again(study, [trial.number for trial in study.trials if trial.state.name == "RUNNING"])
                self._search(arguments, study, left, alone=True)
            else:
                self._search_with_others(arguments, study, left, turn)

    def _search_with_others(self, arguments: list[str], study: Any, left: int, turn: FileLock) -> None:
        """Draw and train `left` trials, or fewer if other processes draw them first."""
        while True:
            _fail_stale_trials(study)
            missing = self._settings.n_trials - _count(study, "COMPLETE", "RUNNING")
            batch = min(left, missing, self._settings.n_jobs)
            if batch <= 0:
                return
            left -= batch
            with _alive(self.sweeper, study, turn.release):
                self._search(arguments, study, batch, alone=False)
            turn.acquire()

    def _search(self, arguments: list[str], study: Any, trials: int, *, alone: bool) -> None:
        """Draw and train so many trials."""
        self.sweeper.n_trials = trials
        self.sweeper.sampler = _sampler(self._settings, drawn=len(study.trials), alone=alone)
        try:
            super().sweep(arguments)
        except ValueError as error:
            if str(error).startswith("Cannot tell"):  # this process slept, and others have drawn its trials again
                return
            # When no trial is finished, Optuna raises ValueError as it looks for the best one. The sweep lists why none
            # is. Some of OmegaConf's errors are ValueErrors too.
            if _count(study, "COMPLETE") or isinstance(error, OmegaConfBaseException):
                raise


def find_search(cfg: DictConfig) -> Search | None:
    """Look up how far the search of a sweep is.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Returns:
        The search, or None if Optuna is not the sweeper.

    Raises:
        StabilityError: `n_trials` is below 1, or a grid has more combinations than `n_trials`. Optuna would leave some
            out without a warning.
    """
    settings = cfg.hydra.sweeper
    if "n_trials" not in settings:
        return None
    if settings.n_trials < 1:
        raise StabilityError(f"hydra.sweeper.n_trials={settings.n_trials}: give 1 or more.")
    if settings.sampler._target_.endswith(".GridSampler") and (size := len(grid_jobs(cfg))) > settings.n_trials:
        raise StabilityError(
            f"hydra.sweeper.n_trials={settings.n_trials}, but the grid has {size} combinations, and GridSampler would "
            f"leave out {size - settings.n_trials}: give hydra.sweeper.n_trials={size}."
        )
    if not settings._target_.endswith(f".{ResumingSweeper.__name__}") or (
        (file := _file(settings)) and not file.exists()
    ):
        return Search(settings.n_trials, 0)
    with _explained(settings), _turn(Path(cfg.hydra.sweep.dir)):
        return Search(settings.n_trials, _count(_open_study(settings, _storage(settings)), "COMPLETE"))


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{database}.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise StabilityError(f"Another process is searching with {database}: wait until it has ended.") from None


@contextmanager
def _turn(folder: Path) -> Iterator[FileLock]:
    """Let one process at a time make the database's tables, or look what is missing and draw it.

    PostgreSQL fails if two make the tables at once, and together they would draw more trials than `n_trials`. The block
    may give its turn back early.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "search.lock")
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def _file(settings: DictConfig) -> Path | None:
    """Return the sqlite file of a search; None for a database, which several processes may use at once."""
    storage = str(settings.storage)
    if storage.startswith("sqlite:///"):
        return Path(storage.removeprefix("sqlite:///"))
    if "://" not in storage:
        raise StabilityError(
            f"hydra.sweeper.storage={storage}: give sqlite:///PATH, or for several processes at once "
            "postgresql+psycopg://HOST/DATABASE."
        )
    return None


def _storage(settings: DictConfig) -> Any:
    """Return what Optuna keeps the study in: the address of a file, or a database whose trials have heartbeats."""
    if _file(settings):
        return settings.storage
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            settings.storage,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=lambda study, trial: study.enqueue_trial(trial.params),
        )


def _open_study(settings: DictConfig, storage: Any) -> Any:
    import optuna  # late: it takes a while

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=settings.study_name,
        storage=storage,
        direction=getattr(settings.direction, "name", settings.direction),
        load_if_exists=True,
    )


@contextmanager
def _explained(settings: DictConfig) -> Iterator[None]:
    """Make one message of the errors of a database.

    Raises:
        StabilityError: The database does not answer, refuses, or needs a package that is not installed.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise StabilityError(
            f"hydra.sweeper.storage={settings.storage} needs a package that is not installed "
            f"({error.__cause__ or error}). For postgresql+psycopg://HOST/DATABASE run: pip install 'psycopg[binary]'"
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise StabilityError(
            f"hydra.sweeper.storage={settings.storage}: {reason}. Nothing is lost: the same command goes on from the "
            "trials' folders when the database answers."
        ) from error


def _draw_again(study: Any, numbers: Iterable[int]) -> None:
    """Let trials that nobody trains any more be the next ones that are drawn."""
    from optuna.trial import TrialState

    for number in numbers:
        study.enqueue_trial(study.trials[number].params)
        study.tell(number, state=TrialState.FAIL)


def _fail_stale_trials(study: Any) -> None:
    """Draw the trials again whose process was killed, according to their heartbeats."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import fail_stale_trials

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)


@contextmanager
def _alive(sweeper: Any, study: Any, when_drawn: Callable[[], None]) -> Iterator[None]:
    """Let the trials that a sweeper draws in the block have heartbeats. Optuna gives them only to its own loop's."""
    drawn: list[Any] = []
    ended = Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT):
            for trial in [*drawn]:
                with suppress(Exception):  # the database is away; perhaps it is back at the next one
                    sweeper.storage.record_heartbeat(trial._trial_id)

    def note(trials: Sequence[Any]) -> None:
        drawn.extend(trials)
        for trial in trials:
            sweeper.storage.record_heartbeat(trial._trial_id)
        when_drawn()

    Thread(target=beat, daemon=True).start()
    try:
        with call_when_drawn(sweeper, note), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with Study.optimize")
            yield
    except BaseException:
        with suppress(Exception):  # the database is away: the trials have no heartbeats any more
            _draw_again(study, [t.number for t in drawn if study.trials[t.number].state.name == "RUNNING"])
        raise
    finally:
        ended.set()


def _sampler(settings: DictConfig, *, drawn: int, alone: bool) -> Any:
    """The sampler for the rest of a search in which `drawn` trials have been drawn, by this process `alone` or not."""
    changes: dict[str, Any] = {}
    if settings.sampler.get("seed") is not None:
        # With the same seed it would draw the first trials again, or those that another process has drawn.
        changes["seed"] = settings.sampler.seed + drawn if alone else None
    if "constant_liar" in settings.sampler:  # TPE
        # Without it, trials drawn at once would be close to each other.
        changes["constant_liar"] = settings.n_jobs > 1 or not alone
    return instantiate(OmegaConf.merge(settings.sampler, changes), _execution_whitelist_="optuna.samplers.*")


def _count(study: Any, *states: str) -> int:
    return sum(trial.state.name in states for trial in study.trials)
