"""Send trials and studies to MLflow, or nowhere.

A trial's folder is the truth, and the spool: the tracker sends what is in the folder and not yet in MLflow,
and notes in `tracking.json` what that was. Sending during the training, after a kill, and long after it are
one and the same; a row is logged once. A store that does not answer never stops a training.

A sweep is a run as well, the parent of its trials' runs, with a `tracking.json` of its own in the study's folder.
There the trials find it, in whatever process they are trained.

    python -m stability.tracking.api outputs/single          # send what has not been sent
"""

import argparse
import json
import logging
import math
import os
import shlex
import sqlite3
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from urllib.parse import quote, urlencode, urlsplit
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from omegaconf import OmegaConf

from stability.config.names import dotted, short_name
from stability.config.schema import Tracking
from stability.core.checkout import git_commit
from stability.core.errors import StabilityError, write_error
from stability.core.files import CONFIG, ERROR, FIGURE, TRACKING, VERDICT, short_path, write_atomically
from stability.diagnosis import table as signals
from stability.diagnosis.finding import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ARTIFACTS = (CONFIG, VERDICT, FIGURE)
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on chat traces, not runs
_NOTE = "mlflow.note.content"  # the description on a run's page
_PARENT = "mlflow.parentRunId"
_VIEW = "mlflow.sharedViewState."  # with an id behind it: an experiment's tag, one of the "Views" above its runs
_COLUMNS = (
    *(f"tags.`{name}`" for name in ("outcome", "cause")),
    "metrics.`validation/per`",
    *(f"params.`{name}`" for name in ("epsilon", "lr", "noise", "batch", "loss", "seed")),
)
_SORTED = {"orderByKey": "metrics.`validation/per`", "orderByAsc": "true"}
_WORKFLOW = "workflowType=machine_learning"  # in a link, for the menus of training runs instead of chat traces
_VERDICT_TAGS = ("outcome", "cause", "onset_step", "detected_step")
_NOT_PARAMETERS = ("tracking", "outputs", "fresh")  # they say nothing about the trial
_POINTS = 320  # a metric: as many as MLflow's pages draw; `signals.csv` has them all
_PAUSE, _LONGEST_PAUSE = 5.0, 60.0  # seconds between two sendings of a trial that is going on
_SHARE = 0.02  # of a process's time, that the sendings of all its trials take, if the pauses allow
_REST = 30.0  # a store that failed is left alone for this many times as long as it kept us waiting
_LAST_REST = 3.0  # the same at a trial's end: there is no later, but all trials of a stack may end now
_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMETERS_PER_BATCH = 100
_PARAMETER_LENGTH = 6000

# Read by MLflow; what the user has set stays. Left alone, MLflow waits for a server for a quarter of an hour.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}

_log = logging.getLogger(__name__)

# What this process knows of the stores, by URI: when one last failed, and after how many seconds
# (time.monotonic); the reasons that have been told; and the trials that are being sent.
_failures: dict[str, tuple[float, float]] = {}
_told: set[tuple[str, str]] = set()
_open: "WeakSet[_TrialSender]" = WeakSet()


class Tracker:
    """Sends a trial nowhere."""

    @property
    def where(self) -> str:
        """Where the trial can be looked at, in words, with the command if one is needed."""
        return "tracking=none: the trial is in its folder alone."

    def update(self) -> None:
        """Send what is new in the folder, unless that was done a moment ago. For every block of steps."""

    def finish(self) -> None:
        """Send the rest, the verdict and the files, and close the run. A diverged trial is finished, too."""

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Send the rest and close the run of a trial that an error or an interrupt ended."""


def open_tracker(settings: Tracking, folder: Path, *, outputs: Path, tags: Mapping[str, str] | None = None) -> Tracker:
    """Start, or go on with, sending the trial in `folder`; its `config.yaml` has to be there.

    The run is named after the folder, and its parameters are the leaves of `config.yaml`. `tags` are added to
    the run. Without a URI the store is `mlflow.db` under `outputs`. A wrong setting, or a folder that another
    process trains or sends, raises `StabilityError`; a store that does not answer is a warning.
    """
    state = _planned(settings, outputs)
    if state is None:
        return Tracker()
    state.tags.update(tags or {})
    tracker = _TrialSender(folder, state)
    tracker.start()
    return tracker


def open_study(settings: Tracking, folder: Path, *, outputs: Path) -> None:
    """Make the run that is the parent of the trials in `folder`, or go on with the one there is. Before any trial.

    Raises as `open_tracker` does. Any number of processes may have a study open, and be killed.
    """
    state = _planned(settings, outputs)
    if state is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _StudySender(folder, state).start()
    except OSError as error:
        raise write_error(folder, error) from error


def close_study(folder: Path, attachments: Sequence[Path], note: str) -> str:
    """Send what a study came to, and return where it can be looked at, in words.

    `note`, Markdown, becomes the description, after links to the trials of each outcome; `attachments` become
    artifacts. The run ends as FINISHED if every trial in `folder` has its verdict, FAILED if one crashed, else KILLED.
    """
    state = _read_state(folder)
    if state is None:
        return "tracking=none: the study is in its folder alone."
    with _locked(folder):
        study = _StudySender(folder, state)
        study.finish(attachments, note)
    return study.where


def is_sent(settings: Tracking, folder: Path, *, outputs: Path) -> bool:
    """Whether nothing of the trial in `folder` is left to send. It asks no store, and imports no MLflow."""
    if settings.backend == "none":
        return True
    state = _read_state(folder)
    to = (_resolve(settings.uri, outputs), settings.experiment)
    return state is not None and state.finished and (state.uri, state.experiment) == to


def read_run(run_id: str, uri: str) -> tuple[str, list[tuple[str, int, float]]]:
    """The name of anybody's run, and all that it logged in its order: (metric, step, value).

    StabilityError where that fails.
    """
    uri = _resolve(uri, Path("outputs"))
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite") and not database.exists():
        raise StabilityError(f"There is no MLflow store at {short_path(database)}: name the run's with --uri.")
    _import_mlflow()
    from mlflow import MlflowClient

    try:
        with _quiet():
            client = MlflowClient(tracking_uri=uri)
            run = client.get_run(run_id)
            logged = [m for name in run.data.metrics for m in client.get_metric_history(run_id, name)]
    except Exception as error:  # MLflow's, its database's, the network's
        raise StabilityError(f"The run {run_id} cannot be read from {uri}: {_reason(error)}.") from error
    logged.sort(key=lambda metric: (metric.timestamp, metric.step))
    return run.info.run_name or run_id, [(metric.key, metric.step, metric.value) for metric in logged]


@dataclass
class _Mark:
    """How far a file has been sent.

    `announced` is written down before the rows up to it are sent, with the `time` (ms) they are logged under:
    rows sent again after a kill are then the same to MLflow, which keeps one of them.
    """

    sent: int = -1
    announced: int = -1
    time: int = 0


@dataclass
class _State:
    """`tracking.json`: where the trial or study is sent, and what of it has been."""

    uri: str
    experiment: str
    tags: dict[str, str]
    run_id: str | None = None
    page: str = ""
    parent: str | None = None  # the study's run
    marks: dict[str, _Mark] = field(default_factory=dict)
    note: str = ""  # a study's, as are the attachments: paths, seen from its folder
    attachments: list[str] = field(default_factory=list)
    status: str = "RUNNING"
    finished: bool = False  # nothing is left to send


class _Run(NamedTuple):
    """A run in an open store."""

    client: "MlflowClient"
    id: str


class _Sender(ABC):
    """Sends a folder as a run, and keeps its `tracking.json`. A run that is there already is gone on with."""

    def __init__(self, folder: Path, planned: _State) -> None:
        self._folder = folder
        known = _read_state(folder)
        same = known is not None and (known.uri, known.experiment) == (planned.uri, planned.experiment)
        self._state = known if known and same else planned
        self._run: _Run | None = None
        self._behind = False  # the store lacks what it should have

    @property
    def where(self) -> str:
        uri, page = self._state.uri, self._state.page
        if self._behind:
            return f"MLflow does not have all of it yet. {self._send_later}"
        if not uri.startswith("sqlite"):
            return f"MLflow: {uri}/{page}"
        store = "sqlite:///" + short_path(Path(uri.removeprefix("sqlite:///")))
        command = _command("mlflow", "ui", "--backend-store-uri", store)
        return f"MLflow: run `{command}` and open http://127.0.0.1:5000/{page}"

    def start(self) -> None:
        self._state.status, self._state.finished = "RUNNING", False
        self._save()
        _import_mlflow()
        self._try(self._connect, _LAST_REST)

    def send_rest(self) -> None:
        """Send what has not been sent of what is not going on any more. Raises what MLflow raises."""
        if not self._state.finished:
            self._state.status = self._ended_as()
            _import_mlflow()
            with _quiet():
                self._send_all()

    @property
    def _send_later(self) -> str:
        command = _command("stability.tracking.api", short_path(self._folder))
        return f"Everything is kept in the folder; send it later: `{command}`"

    def _close(self, status: str) -> None:
        self._state.status = status
        with suppress(OSError):  # on a full disk, the folder tells what it told before
            self._save()
        self._try(self._send_all, _LAST_REST)

    def _try(self, work: Callable[[], object], rest: float) -> None:
        """Do `work`, unless the store is being left alone. What fails is told once; the training goes on."""
        uri = self._state.uri
        begun = time.monotonic()
        failed, waited = _failures.get(uri, (-math.inf, 0.0))
        if begun - failed < rest * waited:
            self._behind = True
            return
        try:
            with _quiet():
                work()
        except Exception as error:  # MLflow's, its database's, the network's or the disk's
            reason = _reason(error)
            if (uri, reason) not in _told:
                _log.warning("MLflow at %s cannot be used: %s. The training goes on. %s", uri, reason, self._send_later)
            _told.add((uri, reason))
            _failures[uri] = time.monotonic(), time.monotonic() - begun
            self._behind = True
        else:
            _failures.pop(uri, None)
            self._behind = False

    def _connect(self) -> _Run:
        """The run in the opened store: the one it has, or a new one."""
        if self._run is None:
            client, experiment_id = _open_store(self._state.uri, self._state.experiment)
            parent = self._parent()
            run = self._find_run(client) or self._create_run(client, experiment_id, parent)
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            if parent and parent != run.data.tags.get(_PARENT):
                client.set_tag(run.info.run_id, _PARENT, parent)
            self._state.parent = parent
            self._describe(_Run(client, run.info.run_id), run)
            self._run = _Run(client, run.info.run_id)
        return self._run

    def _find_run(self, client: "MlflowClient") -> "Run | None":
        from mlflow.exceptions import MlflowException

        if self._state.run_id is None:
            return None
        try:
            run = client.get_run(self._state.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _create_run(self, client: "MlflowClient", experiment_id: str, parent: str | None) -> "Run":
        state = self._state
        tags = state.tags | ({_PARENT: parent} if parent else {})
        run = client.create_run(experiment_id, self._started(), tags, self._folder.name)
        state.run_id, state.parent, state.marks = run.info.run_id, parent, {}
        state.page = f"#/experiments/{experiment_id}/runs/{state.run_id}?{_WORKFLOW}"
        self._save()
        return run

    def _save(self) -> None:
        write_atomically(self._folder / TRACKING, json.dumps(asdict(self._state), indent=2).encode())

    def _parent(self) -> str | None:
        """The id of the run that this one belongs to."""
        return None

    @abstractmethod
    def _started(self) -> int:
        """When it was begun, in ms since 1970."""

    @abstractmethod
    def _describe(self, run: _Run, found: "Run") -> None:
        """Complete what is known at the beginning, of which the run may have some."""

    @abstractmethod
    def _ended_as(self) -> str:
        """The status of what is not going on any more."""

    @abstractmethod
    def _send_all(self) -> None:
        """Send all that there is, and close the run."""


class _TrialSender(_Sender, Tracker):
    """Sends a trial. It keeps other processes from it as long as it lives, or until the trial has ended."""

    def __init__(self, folder: Path, planned: _State) -> None:
        self._lock = FileLock(folder / f"{TRACKING}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StabilityError(f"{folder} is being trained, or sent, by another process.") from None
        super().__init__(folder, planned)
        self._config = OmegaConf.load(folder / CONFIG)
        self._stride = math.ceil(OmegaConf.select(self._config, "steps", default=1) / _POINTS)
        self._next = 0.0
        _open.add(self)

    def update(self) -> None:
        begun = time.monotonic()
        if begun >= self._next:
            self._try(self._send_rows, _REST)
            ended = time.monotonic()
            self._next = ended + max(_PAUSE, min(_LONGEST_PAUSE, len(_open) * (ended - begun) / _SHARE))

    def finish(self) -> None:
        self._close("FINISHED")

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        self._close(status)

    def send_rest(self) -> None:
        study = self._study()
        if study and study.run_id != self._state.parent:
            self._state.finished = False
        super().send_rest()
        self._let_go()

    def _close(self, status: str) -> None:
        super()._close(status)
        self._let_go()

    def _let_go(self) -> None:
        self._lock.release()
        _open.discard(self)

    def _started(self) -> int:
        return _milliseconds(self._folder / CONFIG)

    def _ended_as(self) -> str:
        if (self._folder / VERDICT).exists():
            return "FINISHED"
        return "KILLED" if self._state.status == "RUNNING" else self._state.status

    def _describe(self, run: _Run, found: "Run") -> None:
        from mlflow.entities import Param

        named = _parameters(OmegaConf.to_container(self._config))
        missing = [Param(name, value) for name, value in named if name not in found.data.params]  # none can be changed
        for some in _batches(missing, _PARAMETERS_PER_BATCH):
            run.client.log_batch(run.id, params=some)

    def _parent(self) -> str | None:
        study = self._study()
        if study is not None and study.run_id is None:  # the store did not answer when the study was opened
            with _locked(self._folder.parent):
                return _StudySender(self._folder.parent, study).run_id()
        return study.run_id if study else None

    def _study(self) -> _State | None:
        """What the folder above tells of the study, if that goes to the same place."""
        study = _read_state(self._folder.parent)
        same = study and (study.uri, study.experiment) == (self._state.uri, self._state.experiment)
        return study if same else None

    def _send_rows(self, *, all_of_them: bool = False) -> None:
        run = self._connect()
        self._send_file(run, signals.SIGNALS_FILE, "", self._stride, all_of_them)
        self._send_file(run, signals.VALIDATION_FILE, "validation/", 1, all_of_them)

    def _send_file(self, run: _Run, name: str, prefix: str, stride: int, all_of_them: bool) -> None:
        from mlflow.entities import Metric

        path = self._folder / name
        mark = self._state.marks.setdefault(name, _Mark())
        table = signals.read_table(path, after=(mark.sent + 1) // stride * stride - 1)
        chosen = _thin(table, stride)
        if all_of_them:
            chosen[-1:] = table.measured[-1:]
        elif stride > 1:
            chosen = chosen[:-1]  # whether the last row is the very last, and so to be sent, is not known yet
        steps = table.steps[: len(chosen)]
        for part in (steps <= mark.announced, steps > mark.announced):
            rows = np.flatnonzero(part & (steps > mark.sent))
            if not len(rows):
                continue
            last = int(steps[rows[-1]])
            if last > mark.announced:
                mark.announced, mark.time = last, _milliseconds(path)
                self._save()
            metrics = [
                # By way of its text a float32 becomes 0.005, not 0.004999999888.
                Metric(prefix + table.names[at], float(str(table.values[row, at])), mark.time, int(steps[row]))
                for row in rows
                for at in np.flatnonzero(chosen[row])
            ]
            for some in _batches(metrics, _METRICS_PER_BATCH):
                run.client.log_batch(run.id, some)
            mark.sent = last
            self._save()

    def _send_all(self) -> None:
        self._send_rows(all_of_them=True)
        from mlflow.entities import Metric, RunTag

        run = self._connect()
        path = self._folder / VERDICT
        ended = time.time_ns() // 1_000_000
        if path.exists():
            verdict = json.loads(path.read_text())
            tags = {name: verdict.get(name) for name in _VERDICT_TAGS}
            tags["mlflow.note.content"] = verdict.get("advice")  # the description on the run's page
            ended = _milliseconds(path)
            saved = verdict.get("evidence", {}).get("steps saved")
            run.client.log_batch(
                run.id,
                metrics=[] if saved is None else [Metric("steps_saved", saved, ended, 0)],
                tags=[RunTag(n, str(v)) for n, v in tags.items() if v is not None],
            )
        run.client.set_terminated(run.id, self._state.status, ended)
        for name in _ARTIFACTS:
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save()


class _StudySender(_Sender):
    """Sends what a study has beside its trials. For one call; the caller holds the lock of its folder."""

    def finish(self, attachments: Sequence[Path], note: str) -> None:
        self._state.note = note
        self._state.attachments = [os.path.relpath(path, self._folder) for path in attachments]
        self._close(self._ended_as())

    def run_id(self) -> str:
        """The id of its run, which is made if need be."""
        return self._connect().id

    def _started(self) -> int:
        return time.time_ns() // 1_000_000

    def _ended_as(self) -> str:
        if any(self._folder.glob(f"*/{ERROR}")):
            return "FAILED"
        begun = self._folder.glob(f"*/{CONFIG}")
        return "FINISHED" if all((path.parent / VERDICT).exists() for path in begun) else "KILLED"

    def _describe(self, run: _Run, found: "Run") -> None:
        """Link to the trials, which MLflow's table and charts hide below their parent unless they are sorted.

        The view has the format that MLflow 3.17 saves views in.
        """
        now = time.time_ns() // 1_000_000
        name = f"{self._folder.name}: trials"
        chosen = {"searchFilter": _children(run.id), **_SORTED, "selectedColumns": _COLUMNS}
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(chosen)}
        run.client.set_experiment_tag(found.info.experiment_id, _VIEW + run.id, json.dumps(view))
        run.client.set_tag(run.id, _NOTE, self._description(run.id))

    def _send_all(self) -> None:
        from mlflow.entities import Metric

        run = self._connect()
        now = time.time_ns() // 1_000_000
        counts = self._outcomes()
        metrics = [Metric(f"outcome.{outcome}", counts[outcome], now, 0) for outcome in get_args(Outcome)]
        run.client.log_batch(run.id, metrics)
        run.client.set_terminated(run.id, self._state.status, now)
        for name in self._state.attachments:
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save()

    def _outcomes(self) -> Counter[str]:
        """How many trials have each outcome."""
        counts = Counter[str]()
        for path in self._folder.glob(f"*/{VERDICT}"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # the report tells what cannot be read
                counts[json.loads(path.read_text())["outcome"]] += 1
        return counts

    def _description(self, run_id: str) -> str:
        """The note, and links to the trials."""
        runs = self._state.page.partition("/runs/")[0] + f"/runs?{_WORKFLOW}"
        links = [f"[all]({runs}&viewStateShareKey={run_id})"]
        for outcome, number in self._outcomes().most_common():
            query = {"searchFilter": f"{_children(run_id)} and tags.outcome = '{outcome}'", **_SORTED}
            links.append(f"[{number} {outcome}]({runs}&{urlencode(query, quote_via=quote)})")
        # The links come first: of a longer description MLflow shows but the beginning.
        return "\n\n".join(filter(None, (f"Trials: {', '.join(links)}.", self._state.note)))


def _children(run_id: str) -> str:
    """A filter for the runs that have this parent."""
    return f"tags.{_PARENT} = '{run_id}'"


def _read_state(folder: Path) -> _State | None:
    path = folder / TRACKING
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        stored["marks"] = {name: _Mark(**mark) for name, mark in stored["marks"].items()}
        return _State(**stored)
    except (ValueError, TypeError, KeyError) as error:
        raise StabilityError(
            f"{path} is not what this version writes ({error}). Without the file, the trial is sent anew."
        ) from None


def _planned(settings: Tracking, outputs: Path) -> _State | None:
    """What the settings say, checked; None for nowhere."""
    match settings.backend:
        case "none":
            return None
        case "mlflow":
            commit = git_commit()
            about = {"mlflow.source.git.commit": commit} if commit else {}
            return _State(_resolve(settings.uri, outputs), settings.experiment, about)
    raise StabilityError(f"tracking.backend={settings.backend}: there are mlflow and none.")


def _locked(study: Path) -> FileLock:
    return FileLock(study / f"{TRACKING}.lock")


def _resolve(uri: str | None, outputs: Path) -> str:
    """The URI with the path of an sqlite store made absolute. Another kind of URI raises `StabilityError`."""
    if uri is None:
        return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and uri != "sqlite:///":
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return uri.rstrip("/")
    except ValueError:
        pass  # said below
    raise StabilityError(
        f"tracking.uri={uri} is no store: give http://HOST:PORT, https://HOST, sqlite:///PATH, or null for"
        f" {outputs / 'mlflow.db'}."
    )


def _open_store(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client for the store, and the id of the experiment in it; both are made if need be."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not uri.startswith("sqlite"):
        client = MlflowClient(tracking_uri=uri)
        try:
            return client, _experiment_id(client, experiment, None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return client, _experiment_id(client, experiment, None)  # another process was faster
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - takes a second, better spent before the lock

    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):  # MLflow does not bear two processes that make the tables
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # where this fails at once, MLflow tries for two minutes
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, experiment, (database.parent / "mlflow-artifacts").as_uri())


def _experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifacts, _EXPERIMENT_TAGS)


def _import_mlflow() -> None:
    """Import MLflow: late, for it takes seconds, and after what it reads from the environment is set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _quiet():
        import mlflow  # noqa: F401

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that MLflow and its dependencies give about each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _thin(table: signals.Table, stride: int) -> NDArray[np.bool_]:
    """Choose of every `stride` steps each signal's first measured value: bool `[rows, names]`."""
    chosen = np.zeros_like(table.measured)
    span = table.steps // stride
    for column in range(len(table.names)):
        rows = np.flatnonzero(table.measured[:, column])
        chosen[rows[np.unique(span[rows], return_index=True)[1]], column] = True
    return chosen


def _parameters(tree: Any) -> Iterator[tuple[str, str]]:
    """The values of a configuration under their short names, as text."""
    for name, value in dotted(tree).items():
        if name.partition(".")[0] not in _NOT_PARAMETERS:
            text = value if isinstance(value, str) else json.dumps(value)
            yield short_name(name), text[:_PARAMETER_LENGTH]


def _milliseconds(path: Path) -> int:
    """When `path` was last written, in ms since 1970."""
    return path.stat().st_mtime_ns // 1_000_000


def _command(module: str, *arguments: str) -> str:
    """The command line that runs `module` with the Python that runs this."""
    return shlex.join((short_path(Path(sys.executable)), "-m", module, *arguments))


def _reason(error: Exception) -> str:
    """The innermost cause, on one line: MLflow and the libraries below it wrap an error many times."""
    inner: BaseException = error
    while cause := inner.__cause__ or inner.__context__:
        inner = cause
    return (" ".join(str(inner).split()) or type(inner).__name__).rstrip(".")


def _tracked(folder: Path) -> list[Path]:
    """The folders of studies and trials at and below `folder`, a study before its trials."""
    marks = (path.parent for name in (TRACKING, signals.SIGNALS_FILE) for path in folder.rglob(name))
    found = sorted({folder for folder in marks if (folder / CONFIG).exists() or (folder / TRACKING).exists()})
    if not found:
        raise StabilityError(f"{folder} neither is nor holds the folder of a trial.")
    return found


def _send(folder: Path, uri: str | None) -> None:
    """Send what has not been sent of the trial or study in `folder`, to `uri` or to where it was to go."""
    known = _read_state(folder)
    if known is not None:
        state = _State(_resolve(uri or known.uri, folder), known.experiment, known.tags)
        state.note, state.attachments = known.note, known.attachments
    elif uri is not None:
        study = OmegaConf.select(OmegaConf.load(folder / CONFIG), "study", default="single")
        state = _State(_resolve(uri, folder), str(study), {})
    else:
        raise StabilityError(f"{folder} was trained with tracking=none: name a store with --uri.")
    a_trial = (folder / CONFIG).exists()
    with nullcontext() if a_trial else _locked(folder):
        sender = _TrialSender(folder, state) if a_trial else _StudySender(folder, state)
        try:
            sender.send_rest()
        except Exception as error:  # whatever MLflow raises; the user can mend it or wait
            raise StabilityError(f"{folder} was not sent to {state.uri}: {_reason(error)}.") from error
    print(f"{folder}: {sender.where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Send to MLflow what has not been sent of the trials and studies in the given folders."""
    parser = argparse.ArgumentParser(prog="python -m stability.tracking.api", description=main.__doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="of a trial, or of a study")
    parser.add_argument("--uri", help="another MLflow store than the trials were trained with")
    options = parser.parse_args(arguments)
    failed = False
    for folder in options.folders:
        try:
            tracked = _tracked(folder)
        except StabilityError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        for each in tracked:
            try:
                _send(each, options.uri)
            except StabilityError as error:
                print(error, file=sys.stderr)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
