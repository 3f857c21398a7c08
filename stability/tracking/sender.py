"""Sends a folder as an MLflow run: what trials and studies have in common.

A sender continues a run that exists, and can be killed at any moment: `tracking.json` tells the next one what is left
to send.
"""

import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from filelock import FileLock

from stability.core.errors import StabilityError
from stability.core.files import (
    CONFIG,
    DATA,
    FIGURE,
    HYDRA_CONFIG,
    SIGNALS_FILE,
    TRACKING,
    VALIDATION_FILE,
    VERDICT,
    short_path,
)
from stability.core.stopping import stop_requested
from stability.tracking.state import State, read_state, write_state
from stability.tracking.store import (
    attempt,
    import_mlflow,
    is_own_store,
    is_sqlite,
    mlflow_uri,
    open_store,
    quiet,
    sqlite_path,
    uri_from_environment,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# For how many seconds sending may hold up a training, its beginning and its end, and its end after Ctrl-C or SIGTERM.
# By default Slurm kills a job 30 seconds after SIGTERM.
LIMIT = 20.0
_LIMIT_AT_END = 60.0
_LIMIT_AFTER_SIGNAL = 10.0

# For how many times the duration of a failure its store is left alone: see `attempt`. A trial that ends has no later
# chance, so it tries again sooner. It does not try at once, because all trials of a stack may end at the same moment.
REST = 30.0
_REST_AT_END = 3.0

NOTE = "mlflow.note.content"  # the tag with the description on a run's page
PARENT = "mlflow.parentRunId"
WORKFLOW = "workflowType=machine_learning"  # in a link: the page gets the menus of training runs, not of chat traces
_KEY = "stability.key"  # the tag by which a run is found that was made just before a kill

_TRIAL_FILES = (CONFIG, str(HYDRA_CONFIG), DATA, SIGNALS_FILE, VALIDATION_FILE, VERDICT, FIGURE)


class OpenRun(NamedTuple):
    """A run in an open store."""

    client: "MlflowClient"
    id: str


class Sender(ABC):
    """Sends a folder as a run, and keeps the folder's `tracking.json`.

    Args:
        folder: The folder of the trial or study.
        new: The state to begin with. It is ignored if the folder was sent to the same place before.

    Raises:
        StabilityError: A file to send is outside the folder, or is no file.
    """

    def __init__(self, folder: Path, new: State) -> None:
        self._folder = folder
        known = read_state(folder)
        self._state = new
        if known and known.is_for(new.uri, new.experiment):
            known.tags |= new.tags
            self._state = known
        _check_inside(folder, (*_TRIAL_FILES, *self._state.attachments))
        self._run: OpenRun | None = None
        self._is_incomplete = False  # the last sending failed or was skipped

    @property
    def where(self) -> str:
        """Where to look at the run: a sentence, with the command to run if one is needed."""
        uri, page = self._state.uri, self._state.page
        if self._is_incomplete:
            return f"MLflow does not have everything yet. {self._how_to_send_later()}"
        if not is_sqlite(uri):
            return f"MLflow: {uri}/{page}"
        store = mlflow_uri(f"sqlite:///{short_path(sqlite_path(uri))}")
        command = _python_command("mlflow", "ui", "--backend-store-uri", store)
        return f"MLflow: run `{command}` and open http://127.0.0.1:5000/{page}"

    def start(self) -> None:
        """Open the run, or make it. A store that does not answer is a warning."""
        self._state.status, self._state.finished = "RUNNING", False
        self._save_state()
        import_mlflow()
        self._attempt(self._connect, _REST_AT_END, _LIMIT_AT_END)

    def send_rest(self) -> None:
        """Send what is missing of a trial or study that has ended. MLflow's errors are raised as they are."""
        import_mlflow()
        with quiet():
            if not (self._state.finished and self._is_in_store()):
                self._state.status = self._final_status()
                self._send_all()

    def _is_in_store(self) -> bool:
        """Return whether the store still has the run. Somebody may have deleted it, or the whole store."""
        client, experiment_id = open_store(self._state.uri, self._state.experiment)
        return self._find_run(client, experiment_id) is not None

    def _how_to_send_later(self) -> str:
        default = uri_from_environment() is None and is_own_store(self._state.uri, self._folder)
        store = () if default else ("--uri", self._state.uri)
        command = _python_command("stability.send", short_path(self._folder), *store)
        return f"The folder keeps everything; send it later: `{command}`"

    def _close(self, status: str) -> None:
        self._state.status = status
        if status == "KILLED" and self._state.run_id is None:  # there is no run, and a signal leaves little time
            return
        with suppress(OSError):  # the disk is full: the file keeps its last content
            self._save_state()
        limit = _LIMIT_AFTER_SIGNAL if stop_requested() else _LIMIT_AT_END
        self._attempt(self._send_all, _REST_AT_END, limit, _LIMIT_AFTER_SIGNAL)

    def _attempt(self, work: Callable[[], object], rest: float, limit: float, after_signal: float = 0) -> None:
        self._is_incomplete = not attempt(
            self._state.uri, work, rest=rest, hint=self._how_to_send_later, limit=limit, after_signal=after_signal
        )

    def _connect(self) -> OpenRun:
        """Open the store and the run in it. The run is made if the store has none."""
        from mlflow.entities import RunTag

        if self._run is None:
            client, experiment_id = open_store(self._state.uri, self._state.experiment)
            parent = self._parent_id()
            run = self._find_run(client, experiment_id) or self._create_run(client, experiment_id, parent)
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            wanted = self._tags(parent)
            changed = [RunTag(n, v) for n, v in wanted.items() if n != NOTE and run.data.tags.get(n) != v]
            if changed:
                client.log_batch(run.info.run_id, tags=changed)
            self._state.parent = parent
            self._describe(OpenRun(client, run.info.run_id), run)
            self._run = OpenRun(client, run.info.run_id)
        return self._run

    def _find_run(self, client: "MlflowClient", experiment_id: str) -> "Run | None":
        from mlflow.exceptions import MlflowException

        if self._state.run_id is None:
            if _KEY not in self._state.tags:
                return None
            # A process that was killed had announced a run. Perhaps it made it, too.
            found = client.search_runs([experiment_id], f"tags.`{_KEY}` = '{self._state.tags[_KEY]}'", max_results=1)
            if found:
                self._adopt(found[0])
            return found[0] if found else None
        try:
            run = client.get_run(self._state.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _create_run(self, client: "MlflowClient", experiment_id: str, parent: str | None) -> "Run":
        if _KEY not in self._state.tags:
            self._state.tags[_KEY] = uuid4().hex
            self._save_state()
        run = client.create_run(experiment_id, self._start_time(), self._tags(parent), self._run_name())
        self._adopt(run)
        return run

    def _tags(self, parent: str | None) -> dict[str, str]:
        return self._state.tags | ({PARENT: parent} if parent else {})

    def _run_name(self) -> str:
        """The folder's name. In a store for several folders of studies, also which of these it is in."""
        name = self._folder.name
        if is_own_store(self._state.uri, self._folder):
            return name
        return f"{name} in {'/'.join(self._outputs().parts[-2:])}"

    def _note(self, text: str) -> str:
        """The description of the run: the user's own, then another text."""
        return "\n\n".join(filter(None, (self._state.tags.get(NOTE), text)))

    def _adopt(self, run: "Run") -> None:
        """Note a run that has nothing yet as the one of this folder."""
        state = self._state
        state.run_id, state.marks = run.info.run_id, {}
        state.page = f"#/experiments/{run.info.experiment_id}/runs/{state.run_id}?{WORKFLOW}"
        self._save_state()

    def _save_state(self) -> None:
        write_state(self._folder, self._state)

    def _parent_id(self) -> str | None:
        """The id of the run that this one is part of."""
        return None

    @abstractmethod
    def _outputs(self) -> Path:
        """The folder of all studies."""

    @abstractmethod
    def _start_time(self) -> int:
        """When the work began, in ms since 1970."""

    @abstractmethod
    def _describe(self, run: OpenRun, found: "Run") -> None:
        """Send what describes the run from its beginning. `found` may have a part of it already."""

    @abstractmethod
    def _final_status(self) -> str:
        """The status of a run whose work has ended."""

    @abstractmethod
    def _send_all(self) -> None:
        """Send everything, and close the run."""


def _check_inside(folder: Path, names: Sequence[str]) -> None:
    """Refuse files that lie outside the folder, and links to such files: the folder may be somebody else's."""
    inside = folder.resolve()
    for name in names:
        path = (inside / name).resolve()
        if not path.is_relative_to(inside):
            raise StabilityError(
                f"{folder}: {name} is the file {path}, which is outside the folder. Only files in the folder are sent. "
                "Copy it into the folder if it belongs there, or delete the link."
            )
        if path.exists() and not path.is_file():
            raise StabilityError(f"{folder / name} is not a file. Delete it, or put the file there.")


def lock_of(folder: Path) -> FileLock:
    """Return the lock of the `tracking.json` of a folder. Several processes may write that of a study."""
    path = folder / f"{TRACKING}.lock"
    _check_inside(folder, [path.name])  # locking a file empties it
    return FileLock(path)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def modification_time(path: Path) -> int:
    """When a file was last written, in ms since 1970."""
    return path.stat().st_mtime_ns // 1_000_000


def _python_command(module: str, *arguments: str) -> str:
    """The command line that runs a module with the Python that runs this process."""
    return shlex.join((short_path(Path(sys.executable)), "-m", module, *arguments))
