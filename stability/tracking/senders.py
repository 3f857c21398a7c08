"""Send the folder of a trial or of a study as an MLflow run.

Both senders continue a run that exists, and can be killed at any moment: `tracking.json` tells the next one what is
left to send.
"""

import json
import math
import os
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from urllib.parse import quote, urlencode
from uuid import uuid4
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from omegaconf import OmegaConf

from stability.config.hydra import read_config
from stability.config.names import flatten_dict, short_name
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, ERROR, FIGURE, SIGNALS_FILE, TRACKING, VALIDATION_FILE, VERDICT, short_path
from stability.core.passwords import hide_passwords
from stability.core.stopping import stop_requested
from stability.diagnosis.finding import Outcome
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import read_verdict
from stability.tracking.state import Mark, State, read_state, write_state
from stability.tracking.store import (
    attempt,
    import_mlflow,
    is_own_store,
    is_sqlite,
    mlflow_uri,
    open_store,
    quiet,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SHORTEST_PAUSE = 5.0  # seconds between two sendings of a trial that is being trained
LONGEST_PAUSE = 60.0
_SHARE = 0.02  # of a process's time that sending all its trials may take, as far as the two pauses allow

# For how many times the duration of a failure its store is left alone: see `attempt`. A trial that ends has no later
# chance, so it tries again sooner. It does not try at once, because all trials of a stack may end at the same moment.
_REST = 30.0
_REST_AT_END = 3.0

# For how many seconds sending may hold up a training, its beginning and its end, and its end after Ctrl-C or SIGTERM.
# By default Slurm kills a job 30 seconds after SIGTERM.
_LIMIT = 20.0
_LIMIT_AT_END = 60.0
_LIMIT_AFTER_SIGNAL = 10.0

_POINTS = 320  # of a metric: MLflow's pages draw no more; `signals.csv` has all
_METRICS_PER_BATCH = 1000  # this and the next two: MLflow's limits
_PARAMETERS_PER_BATCH = 100
_PARAMETER_LENGTH = 6000

_TRIAL_FILES = (CONFIG, SIGNALS_FILE, VALIDATION_FILE, VERDICT, FIGURE)
_VERDICT_TAGS = ("outcome", "cause", "confidence", "onset_step", "detected_step")
_NOT_PARAMETERS = ("tracking", "outputs", "fresh")  # settings that do not describe the trial

_NOTE = "mlflow.note.content"  # the tag with the description on a run's page
_PARENT = "mlflow.parentRunId"
_KEY = "stability.key"  # the tag by which a run is found that was made just before a kill
_VIEW = "mlflow.sharedViewState."  # with an id behind it: the tag of an experiment that is one of its pages' "Views"
_COLUMNS = (
    *(f"tags.`{name}`" for name in ("outcome", "cause")),
    "metrics.`validation/per`",
    *(f"params.`{name}`" for name in ("epsilon", "lr", "noise", "batch", "loss", "seed")),
)
_SORTED = {"orderByKey": "metrics.`validation/per`", "orderByAsc": "true"}
_WORKFLOW = "workflowType=machine_learning"  # in a link: the page gets the menus of training runs, not of chat traces

_open: "WeakSet[TrialSender]" = WeakSet()  # the trials that this process is sending


class _OpenRun(NamedTuple):
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
        self._state = known if known and known.is_for(new.uri, new.experiment) else new
        _check_inside(folder, (*_TRIAL_FILES, *self._state.attachments))
        self._run: _OpenRun | None = None
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
        store = () if is_own_store(self._state.uri, self._folder) else ("--uri", self._state.uri)
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

    def _connect(self) -> _OpenRun:
        """Open the store and the run in it. The run is made if the store has none."""
        if self._run is None:
            client, experiment_id = open_store(self._state.uri, self._state.experiment)
            parent = self._parent_id()
            run = self._find_run(client, experiment_id) or self._create_run(client, experiment_id, parent)
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            if parent and parent != run.data.tags.get(_PARENT):
                client.set_tag(run.info.run_id, _PARENT, parent)
            self._state.parent = parent
            self._describe(_OpenRun(client, run.info.run_id), run)
            self._run = _OpenRun(client, run.info.run_id)
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
        tags = self._state.tags | ({_PARENT: parent} if parent else {})
        run = client.create_run(experiment_id, self._start_time(), tags, self._folder.name)
        self._adopt(run)
        return run

    def _adopt(self, run: "Run") -> None:
        """Note a run that has nothing yet as the one of this folder."""
        state = self._state
        state.run_id, state.marks = run.info.run_id, {}
        state.page = f"#/experiments/{run.info.experiment_id}/runs/{state.run_id}?{_WORKFLOW}"
        self._save_state()

    def _save_state(self) -> None:
        write_state(self._folder, self._state)

    def _parent_id(self) -> str | None:
        """The id of the run that this one is part of."""
        return None

    @abstractmethod
    def _start_time(self) -> int:
        """When the work began, in ms since 1970."""

    @abstractmethod
    def _describe(self, run: _OpenRun, found: "Run") -> None:
        """Send what describes the run from its beginning. `found` may have a part of it already."""

    @abstractmethod
    def _final_status(self) -> str:
        """The status of a run whose work has ended."""

    @abstractmethod
    def _send_all(self) -> None:
        """Send everything, and close the run."""


class TrialSender(Sender):
    """Sends a trial. It locks out other processes until the trial has ended, or this object is deleted.

    Raises:
        StabilityError: Another process trains or sends the trial.
    """

    def __init__(self, folder: Path, new: State) -> None:
        self._lock = _lock(folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StabilityError(f"Another process trains or sends {folder}. Wait for its end.") from None
        super().__init__(folder, new)
        self._config = read_plain_config(folder)
        steps = self._config.get("steps")
        if not isinstance(steps, int):
            raise StabilityError(f"{folder / CONFIG} is not a trial's configuration: it has no number of steps.")
        self._stride = math.ceil(steps / _POINTS)
        self._next = 0.0  # time.monotonic() of the next sending
        _open.add(self)

    def update(self) -> None:
        """Send the new rows, unless the last sending was a moment ago."""
        begun = time.monotonic()
        if begun >= self._next:
            self._attempt(self.send_rows, _REST, _LIMIT)
            ended = time.monotonic()
            # All open trials together may take `_SHARE` of the time, so each waits longer the more there are.
            pause = len(_open) * (ended - begun) / _SHARE
            self._next = ended + max(SHORTEST_PAUSE, min(LONGEST_PAUSE, pause))

    def finish(self) -> None:
        """Send the rest of a trial that has its verdict, and close its run."""
        self._close("FINISHED")

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Send the rest of a trial that an error or an interrupt ended, and close its run."""
        self._close(status)

    def send_rows(self) -> None:
        """Send the new rows of the trial's tables. MLflow's errors are raised as they are."""
        run = self._connect()
        self._send_table(run, SIGNALS_FILE, "", self._stride)
        self._send_table(run, VALIDATION_FILE, "validation/", 1)

    def send_rest(self) -> None:
        """Send what is missing of a trial that has ended, its place below its study included."""
        study = self._study_state()
        if study and study.run_id != self._state.parent:
            self._state.finished = False
        super().send_rest()
        self._release()

    def _close(self, status: str) -> None:
        super()._close(status)
        self._release()

    def _release(self) -> None:
        self._lock.release()
        _open.discard(self)

    def _start_time(self) -> int:
        return _modification_time(self._folder / CONFIG)

    def _final_status(self) -> str:
        if (self._folder / VERDICT).exists():
            return "FINISHED"
        return "KILLED" if self._state.status == "RUNNING" else self._state.status

    def _describe(self, run: _OpenRun, found: "Run") -> None:
        from mlflow.entities import Param

        # MLflow refuses to change a parameter.
        missing = [Param(name, value) for name, value in _parameters(self._config) if name not in found.data.params]
        for some in _batches(missing, _PARAMETERS_PER_BATCH):
            run.client.log_batch(run.id, params=some)

    def _parent_id(self) -> str | None:
        study = self._study_state()
        if study is not None and study.run_id is None:  # the store did not answer when the study was opened
            with study_lock(self._folder.parent):
                return StudySender(self._folder.parent, study).connect()
        return study.run_id if study else None

    def _study_state(self) -> State | None:
        """The state of the study that the trial is part of, if it is sent to the same place."""
        study = read_state(self._folder.parent)
        return study if study and study.is_for(self._state.uri, self._state.experiment) else None

    def _send_table(self, run: _OpenRun, name: str, prefix: str, stride: int, *, to_the_end: bool = False) -> None:
        """Send the new points of a table of signals.

        Args:
            run: The run.
            name: The table's file.
            prefix: What the names of the metrics begin with.
            stride: One point of each signal is sent for every `stride` steps.
            to_the_end: The table is complete, so its last row is sent too.
        """
        from mlflow.entities import Metric

        path = self._folder / name
        mark = self._state.marks.setdefault(name, Mark())
        # Read from the beginning of a span of steps: which row of it is sent depends on all its rows.
        table = read_table(path, after=(mark.sent + 1) // stride * stride - 1)
        chosen = _first_of_each_span(table, stride)
        if to_the_end:
            chosen[-1:] = table.measured[-1:]
        elif stride > 1:
            chosen = chosen[:-1]  # this row waits: it may be the last one, and of the last row all signals are sent
        steps = table.steps[: len(chosen)]
        # Rows announced before a kill go first, as a part of their own: they keep the time they were announced with.
        for part in (steps <= mark.announced, steps > mark.announced):
            rows = np.flatnonzero(part & (steps > mark.sent))
            if not len(rows):
                continue
            last = int(steps[rows[-1]])
            if last > mark.announced:  # announce, and only then send: see `Mark`
                mark.announced, mark.time = last, _modification_time(path)
                self._save_state()
            metrics = [
                # Converted by way of its text, a float32 becomes 0.005 and not 0.004999999888.
                Metric(prefix + table.names[at], float(str(table.values[row, at])), mark.time, int(steps[row]))
                for row in rows
                for at in np.flatnonzero(chosen[row])
            ]
            for some in _batches(metrics, _METRICS_PER_BATCH):
                run.client.log_batch(run.id, some)
            mark.sent = last
            self._save_state()

    def _send_all(self) -> None:
        from mlflow.entities import Metric, RunTag

        run = self._connect()
        self._send_table(run, SIGNALS_FILE, "", self._stride, to_the_end=True)
        self._send_table(run, VALIDATION_FILE, "validation/", 1, to_the_end=True)
        path = self._folder / VERDICT
        ended = _now()
        if path.exists():
            verdict = read_verdict(path)
            tags = {name: getattr(verdict, name) for name in _VERDICT_TAGS} | {_NOTE: verdict.advice}
            ended = _modification_time(path)
            saved = verdict.evidence.get("steps saved")
            run.client.log_batch(
                run.id,
                metrics=[Metric("steps_saved", saved, ended, 0)] if isinstance(saved, int | float) else [],
                tags=[RunTag(n, str(v)) for n, v in tags.items() if v is not None],
            )
        run.client.set_terminated(run.id, self._state.status, ended)
        # Earlier versions kept passwords in the configuration.
        run.client.log_text(run.id, hide_passwords((self._folder / CONFIG).read_text()), CONFIG)
        for name in (VERDICT, FIGURE):
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save_state()


class StudySender(Sender):
    """Sends a study: its results and links to its trials, which are runs of their own.

    Use an object for one call, while you hold the `study_lock` of its folder.
    """

    def finish(self, attachments: Sequence[Path], note: str, *, stopped: bool) -> None:
        """Send the results, and close the run.

        Args:
            attachments: Files that become artifacts.
            note: Markdown for the description.
            stopped: Whether Ctrl-C or SIGTERM ended the study.
        """
        self._state.note = note
        self._state.attachments = [os.path.relpath(path, self._folder) for path in attachments]
        self._close("KILLED" if stopped else self._final_status())

    def abort(self) -> None:
        """Close the run of a study that Ctrl-C or SIGTERM ended, unless it is closed already."""
        if not self._state.finished:
            self._close("KILLED")

    def connect(self) -> str:
        """Open the run, make it if the store has none, and return its id. MLflow's errors are raised as they are."""
        return self._connect().id

    def _start_time(self) -> int:
        return _now()

    def _final_status(self) -> str:
        if any(self._folder.glob(f"*/{ERROR}")):
            return "FAILED"
        begun = [path.parent for path in self._folder.glob(f"*/{CONFIG}")]
        return "FINISHED" if begun and all((folder / VERDICT).exists() for folder in begun) else "KILLED"

    def _describe(self, run: _OpenRun, found: "Run") -> None:
        """Send a view of the trials, and a description that links to it.

        Without a sorted view, MLflow's table hides runs below their parent, and its charts leave them out. The view has
        the format in which MLflow 3.17 saves views.
        """
        now = _now()
        name = f"{self._folder.name}: trials"
        chosen = {"searchFilter": _children_of(run.id), **_SORTED, "selectedColumns": _COLUMNS}
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(chosen)}
        run.client.set_experiment_tag(found.info.experiment_id, _VIEW + run.id, json.dumps(view))
        run.client.set_tag(run.id, _NOTE, self._description(run.id))

    def _send_all(self) -> None:
        from mlflow.entities import Metric

        run = self._connect()
        if self._state.status != "KILLED":  # the counts are logged once, when all trials have ended
            counts, last = self._outcome_counts(), max(map(_modification_time, self._verdicts()), default=0)
            # Logged again under the same time, as after a kill just here, they are for MLflow the same points.
            metrics = [Metric(f"outcome.{outcome}", counts[outcome], last, 0) for outcome in get_args(Outcome)]
            run.client.log_batch(run.id, metrics)
        run.client.set_terminated(run.id, self._state.status, _now())
        for name in self._state.attachments:
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save_state()

    def _verdicts(self) -> Iterator[Path]:
        return self._folder.glob(f"*/{VERDICT}")

    def _outcome_counts(self) -> Counter[str]:
        counts = Counter[str]()
        for path in self._verdicts():
            with suppress(OSError, StabilityError):  # the report lists verdicts that are damaged
                counts[read_verdict(path).outcome] += 1
        return counts

    def _description(self, run_id: str) -> str:
        """Links to the trials, and the note."""
        runs = self._state.page.partition("/runs/")[0] + f"/runs?{_WORKFLOW}"
        links = [f"[all]({runs}&viewStateShareKey={run_id})"]
        for outcome, number in self._outcome_counts().most_common():
            query = {"searchFilter": f"{_children_of(run_id)} and tags.outcome = '{outcome}'", **_SORTED}
            links.append(f"[{number} {outcome}]({runs}&{urlencode(query, quote_via=quote)})")
        # The links come first, because MLflow shows only the beginning of a long description.
        return "\n\n".join(filter(None, (f"Trials: {', '.join(links)}.", self._state.note)))


def study_lock(folder: Path) -> FileLock:
    """Return the lock of a study's `tracking.json`, which the trials' processes may write too."""
    return _lock(folder)


def read_plain_config(folder: Path) -> dict[str, Any]:
    """Read a trial's `config.yaml` as nested dictionaries.

    Interpolations stay as they are written: somebody else's could name a variable of the user's environment.
    """
    config = OmegaConf.to_container(read_config(folder / CONFIG), resolve=False)
    assert isinstance(config, dict)
    return {str(name): value for name, value in config.items()}


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


def _lock(folder: Path) -> FileLock:
    path = folder / f"{TRACKING}.lock"
    _check_inside(folder, [path.name])  # locking a file empties it
    return FileLock(path)


def _children_of(run_id: str) -> str:
    """MLflow's filter for the runs with this parent."""
    return f"tags.{_PARENT} = '{run_id}'"


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _first_of_each_span(table: Table, stride: int) -> NDArray[np.bool_]:
    """Choose each signal's first measured value in every `stride` steps: bool `[rows, names]`.

    Spans begin at multiples of the stride, so the choice depends on the trial alone, and not on when it was sent.
    """
    chosen = np.zeros_like(table.measured)
    span = table.steps // stride
    for column in range(len(table.names)):
        rows = np.flatnonzero(table.measured[:, column])
        chosen[rows[np.unique(span[rows], return_index=True)[1]], column] = True
    return chosen


def _parameters(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The values of a configuration under their short names, as text."""
    for name, value in flatten_dict(config).items():
        if name.partition(".")[0] not in _NOT_PARAMETERS:
            text = value if isinstance(value, str) else json.dumps(value)
            yield short_name(name), text[:_PARAMETER_LENGTH]


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _modification_time(path: Path) -> int:
    """When a file was last written, in ms since 1970."""
    return path.stat().st_mtime_ns // 1_000_000


def _python_command(module: str, *arguments: str) -> str:
    """The command line that runs a module with the Python that runs this process."""
    return shlex.join((short_path(Path(sys.executable)), "-m", module, *arguments))
