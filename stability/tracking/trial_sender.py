"""Sends the folder of a trial as an MLflow run, while it is trained or later."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from stability.config.names import flatten_dict
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, DATA, FIGURE, SIGNALS_FILE, VALIDATION_FILE, VERDICT, config_of
from stability.core.passwords import hide_passwords
from stability.core.text import load_json
from stability.diagnosis.responses import SIGNALS_USED, measured
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import Verdict, read_verdict
from stability.tracking.naming import metric_name, parameters, read_plain_config
from stability.tracking.sender import LIMIT, NOTE, REST, OpenRun, Sender, lock_of, modification_time, now_ms
from stability.tracking.state import Mark, State, read_state
from stability.tracking.store import mlflow_uri
from stability.tracking.study_sender import StudySender

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SHORTEST_PAUSE = 5.0  # seconds between two sendings of a trial that is being trained
LONGEST_PAUSE = 60.0
_SHARE = 0.02  # of a process's time that sending all its trials may take, as far as the two pauses allow

_POINTS = 320  # of a metric: MLflow's pages draw no more; `signals.csv` has all
_METRICS_PER_BATCH = 1000  # this and the next two: MLflow's limits
_PARAMETERS_PER_BATCH = 100
_PARAMETER_LENGTH = 6000

RESPONSES = "responses"  # a tag, from which a study is read back
_VERDICT_TAGS = ("outcome", "cause", "confidence", "onset_step", "detected_step")

_open: "WeakSet[TrialSender]" = WeakSet()  # the trials that this process is sending


class TrialSender(Sender):
    """Sends a trial. It locks out other processes until the trial has ended, or this object is deleted.

    Raises:
        StabilityError: Another process trains or sends the trial.
    """

    def __init__(self, folder: Path, new: State, *, system_metrics: bool = False) -> None:
        self._lock = lock_of(folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StabilityError(f"Another process trains or sends {folder}. Wait for its end.") from None
        super().__init__(folder, new)
        self._config = read_plain_config(folder)
        self._stride = math.ceil(self._budget() / _POINTS)
        self._measures_system = system_metrics
        self._system: SystemMetricsMonitor | None = None
        self._next = 0.0  # time.monotonic() of the next sending
        _open.add(self)

    def update(self) -> None:
        """Send the new rows, unless the last sending was a moment ago."""
        begun = time.monotonic()
        if begun >= self._next:
            self._attempt(self.send_rows, REST, LIMIT)
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
        self._send_table(run, SIGNALS_FILE, self._stride)
        self._send_table(run, VALIDATION_FILE, 1)

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

    def _outputs(self) -> Path:
        return self._folder.resolve().parent.parent

    def _budget(self) -> int:
        """The number of steps that the trial is to make; 1 if only the command that trains it knows that.

        A job of an app, which is sent when it has ended, is to make those that it has made.
        """
        if not (self._folder / CONFIG).exists():
            made = read_table(self._folder / SIGNALS_FILE, only=()).steps
            return int(made[-1]) + 1 if len(made) else 1
        trainer = self._config.get("trainer")
        steps = (trainer.get("steps") or 1) if isinstance(trainer, dict) else self._config.get("steps")
        if not isinstance(steps, int):
            raise StabilityError(f"{self._folder / CONFIG} is not a trial's configuration: it has no number of steps.")
        return steps

    def _start_time(self) -> int:
        return modification_time(config_of(self._folder))

    def _final_status(self) -> str:
        if (self._folder / VERDICT).exists():
            return "FINISHED"
        return "KILLED" if self._state.status == "RUNNING" else self._state.status

    def _describe(self, run: OpenRun, found: "Run") -> None:
        from mlflow.entities import Param

        # MLflow refuses to change a parameter.
        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in parameters(self._config).items()}
        missing = [Param(n, text[:_PARAMETER_LENGTH]) for n, text in texts.items() if n not in found.data.params]
        for some in _batches(missing, _PARAMETERS_PER_BATCH):
            run.client.log_batch(run.id, params=some)
        if (self._folder / DATA).exists() and not (found.inputs and found.inputs.dataset_inputs):
            run.client.log_inputs(run.id, [_dataset(self._folder / DATA)])
        if self._measures_system:
            self._system = _start_system_metrics(run.id, self._state.uri)

    def _parent_id(self) -> str | None:
        study = self._study_state()
        if study is not None and study.run_id is None:  # the store did not answer when the study was opened
            with lock_of(self._folder.parent):
                return StudySender(self._folder.parent, study).connect()
        return study.run_id if study else None

    def _study_state(self) -> State | None:
        """The state of the study that the trial is part of, if it is sent to the same place."""
        study = read_state(self._folder.parent)
        return study if study and study.is_for(self._state.uri, self._state.experiment) else None

    def _send_table(self, run: OpenRun, name: str, stride: int, *, to_the_end: bool = False) -> None:
        """Send the new points of a table of signals.

        Args:
            run: The run.
            name: The table's file.
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
        names = [metric_name(name, signal) for signal in table.names]
        # Rows announced before a kill go first, as a part of their own: they keep the time they were announced with.
        for part in (steps <= mark.announced, steps > mark.announced):
            rows = np.flatnonzero(part & (steps > mark.sent))
            if not len(rows):
                continue
            last = int(steps[rows[-1]])
            if last > mark.announced:  # announce, and only then send: see `Mark`
                mark.announced, mark.time = last, modification_time(path)
                self._save_state()
            metrics = [
                # Converted by way of its text, a float32 becomes 0.005 and not 0.004999999888.
                Metric(names[at], float(str(table.values[row, at])), mark.time, int(steps[row]))
                for row in rows
                for at in np.flatnonzero(chosen[row])
            ]
            for some in _batches(metrics, _METRICS_PER_BATCH):
                run.client.log_batch(run.id, some)
            mark.sent = last
            self._save_state()

    def _responses(self, verdict: Verdict) -> dict[str, Any]:
        """What a study compares, measured on all readings: the metrics have only some of them."""
        signals = read_table(self._folder / SIGNALS_FILE, only=SIGNALS_USED)
        validation = read_table(self._folder / VALIDATION_FILE, only=("per",))
        budget = self._config.get("steps")
        return measured(
            signals,
            validation,
            outcome=verdict.outcome,
            cause=verdict.cause,
            budget=budget if isinstance(budget, int) else None,
        )

    def _send_all(self) -> None:
        from mlflow.entities import Metric, RunTag

        run = self._connect()
        self._send_table(run, SIGNALS_FILE, self._stride, to_the_end=True)
        self._send_table(run, VALIDATION_FILE, 1, to_the_end=True)
        path = self._folder / VERDICT
        ended = now_ms()
        if path.exists():
            verdict = read_verdict(path)
            tags = {name: getattr(verdict, name) for name in _VERDICT_TAGS} | {NOTE: self._note(verdict.advice)}
            tags[RESPONSES] = json.dumps(self._responses(verdict))
            ended = modification_time(path)
            saved = verdict.evidence.get("steps saved")
            run.client.log_batch(
                run.id,
                metrics=[Metric("steps_saved", saved, ended, 0)] if isinstance(saved, int | float) else [],
                tags=[RunTag(n, str(v)) for n, v in tags.items() if v is not None],
            )
        if self._system:
            self._system.finish()  # type: ignore[no-untyped-call]
        run.client.set_terminated(run.id, self._state.status, ended)
        # Earlier versions kept passwords in the configuration.
        run.client.log_text(run.id, hide_passwords(config_of(self._folder).read_text()), CONFIG)
        for name in (VERDICT, FIGURE):
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save_state()


def _dataset(path: Path) -> "DatasetInput":
    """Read a trial's `data.json`."""
    from mlflow.entities import Dataset, DatasetInput

    try:
        found = load_json(path.read_text())
        name, digest, place = (str(found.pop(key)) for key in ("name", "digest", "path"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StabilityError(f"{path} is damaged, or another version wrote it ({error}). Delete it.") from None
    source = json.dumps({"uri": place})
    return DatasetInput(Dataset(name, digest, "local", source, profile=json.dumps(flatten_dict(found))))


def _start_system_metrics(run_id: str, uri: str) -> "SystemMetricsMonitor":
    """Measure the load of the machine in a thread of MLflow's, which sends it until the run ends."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=mlflow_uri(uri))  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


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
