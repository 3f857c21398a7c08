"""Copies trials into the files of other programs: TensorBoard's, and W&B's offline runs.

The trial's folder is the source of truth. When a training starts or goes on, the copy is made anew from the folder's
tables. So no row is in it twice after a kill, and nothing has to be known of what was copied before.
"""

import logging
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from stability.config.schema import Tracking
from stability.core.files import CONFIG, VERDICT, short_path
from stability.core.stopping import time_limit
from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import read_verdict
from stability.tracking.naming import PREFIXES, metric_name, parameters, read_plain_config
from stability.tracking.store import quiet

_PAUSE = 5.0  # seconds between two times that rows are copied
_LIMIT, _LIMIT_AFTER_SIGNAL = 60.0, 10.0  # seconds that a copy may hold up a training, and its end after a signal
_COMPLETE = "complete"  # an empty file in a copy's folder: everything is in the copy

_log = logging.getLogger(__name__)


class _Copy(Protocol):
    """A copy of a trial, in the form of another program."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add the readings of a step."""

    def flush(self) -> None:
        """Write what was added."""

    def close(self, summary: dict[str, str], *, failed: bool) -> None:
        """Add what became of the trial, and write everything."""


class CopyTracker:
    """Copies a trial while it is trained. If a copy cannot be written, there is a warning, and no further try."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        self._folder, self._place = folder, folder / settings.backend
        self.where = _where(settings.backend, self._place)
        self._copied = dict.fromkeys(PREFIXES, -1)  # the last step of each table
        self._next = 0.0  # time.monotonic() of the next time
        self._copy: _Copy | None = None
        if not is_copied(settings.backend, folder):
            self._safely(lambda: self._open(settings))

    def update(self) -> None:
        """Copy the new rows of the folder's tables, unless this was done a moment ago."""
        if time.monotonic() >= self._next:
            self._safely(self._add_rows)
            self._next = time.monotonic() + _PAUSE

    def finish(self) -> None:
        """Copy the rest and the verdict."""
        verdict = read_verdict(self._folder / VERDICT)
        self._close({"outcome": verdict.outcome, "cause": verdict.cause or "", "advice": verdict.advice}, failed=False)
        if self._copy is not None:
            self._safely((self._place / _COMPLETE).touch)

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Copy the rest of a trial that an error or an interrupt ended."""
        self._close({"status": status}, failed=True)

    def _open(self, settings: Tracking) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        self._copy = (_TensorBoard if settings.backend == "tensorboard" else _Wandb)(settings, self._folder)

    def _add_rows(self) -> None:
        if self._copy is None:
            return
        for name, last in self._copied.items():
            table = read_table(self._folder / name, after=last)
            names = [metric_name(name, signal) for signal in table.names]
            for step, values, measured in zip(table.steps.tolist(), table.values, table.measured, strict=True):
                row = zip(names, values, measured, strict=True)
                self._copy.add(step, {signal: float(str(value)) for signal, value, is_measured in row if is_measured})
                self._copied[name] = step
        self._copy.flush()

    def _close(self, summary: dict[str, str], *, failed: bool) -> None:
        def close() -> None:
            self._add_rows()
            if self._copy is not None:
                self._copy.close(summary, failed=failed)

        self._safely(close)

    def _safely(self, work: Callable[[], object]) -> None:
        try:
            with quiet(), time_limit(_LIMIT, after_signal=_LIMIT_AFTER_SIGNAL):
                work()
        except Exception as error:  # from the other program, or the disk
            _log.warning("Cannot write %s: %s. The training goes on without it.", short_path(self._place), error)
            self._copy = None


class _TensorBoard:
    """Event files. The settings are TensorBoard's hyperparameters."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        known = {name: "null" if value is None else value for name, value in _described(settings, folder).items()}
        for summary in hparams(known, {"validation/per": 0.0}):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, summary: dict[str, str], *, failed: bool) -> None:
        for name, text in summary.items():
            self._writer.add_text(name, text)
        self._writer.close()


class _Wandb:
    """An offline run. A trial that goes on gets a new one, with all its rows."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
        self._run = wandb.init(
            mode="offline",
            dir=str(folder),
            project=settings.experiment,
            group=folder.parent.name,
            name=folder.name,
            notes=settings.note,
            config=_described(settings, folder),
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, disable_code=True, x_disable_stats=not settings.system_metrics
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def flush(self) -> None:
        pass  # W&B writes from a process of its own

    def close(self, summary: dict[str, str], *, failed: bool) -> None:
        self._run.summary.update(summary)
        self._run.finish(exit_code=int(failed))


def is_copied(backend: str, folder: Path) -> bool:
    """Return whether everything of a finished trial is in its copy. A study has no copy of its own."""
    return not (folder / CONFIG).exists() or (folder / backend / _COMPLETE).exists()


def _described(settings: Tracking, folder: Path) -> dict[str, Any]:
    return parameters(read_plain_config(folder)) | settings.tags


def _where(backend: str, place: Path) -> str:
    """Where to look at a copy: a sentence, with the command to run."""
    if backend == "tensorboard":
        studies = shlex.quote(short_path(place.resolve().parents[2]))
        return f"TensorBoard: run `tensorboard --logdir {studies}`"
    return f"W&B: offline; send it with `wandb sync {shlex.quote(short_path(place))}/offline-run-*`"
