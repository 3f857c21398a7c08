"""Shows a trial on the terminal: its settings, a progress bar and its verdict. Elsewhere it prints plain lines."""

import logging
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from stability.core.files import BEST, EXCLUDED, FIGURE, FLIGHT, FLIGHT_RECORD, OUTPUT, VERDICT, short_path
from stability.core.text import counted, pace_text
from stability.diagnosis.display import show_outcome, shown
from stability.diagnosis.table import Table as Signals
from stability.diagnosis.verdict import Verdict

if TYPE_CHECKING:  # a log is diagnosed without PyTorch
    from stability.config.schema import Config
    from stability.data.records import Dataset
    from stability.engine.stack import Stack
    from stability.trials.recorder import Suspect
    from stability.trials.replay import Replay

log = logging.getLogger(__name__)

_KINDS = {
    "transient": "It does not fail again: check the machine, its memory and its drivers before the settings.",
    "precision": "It does not fail in a wider precision: its numbers are too large for the trial's precision. "
    "Try a lower lr or a clip.",
    "true fault": "It fails in every precision: check the settings, the data, and the weights before this step.",
}
_SHOWN = {"loss": ("loss", ".4g"), "blank_fraction": ("blank", ".0%"), "grad_norm": ("gradient", ".3g")}
_SUSPECTS = 8  # utterances listed
_WIDTH = 500  # columns of a printed table, so that no cell is cut


class Display:
    """The terminal while one trial trains. Use it in a `with` statement.

    Args:
        total_steps: The steps that the trial is to train; None if that is not known.
        done_steps: The steps that it has trained already.
        quiet: Whether to show nothing.
    """

    def __init__(self, total_steps: int | None, done_steps: int, quiet: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._steps = total_steps
        self._task = self._bar.add_task("", total=total_steps, completed=done_steps)
        self._rates = ""
        self._latest = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show_steps(self, rows: Signals) -> None:
        """Show the last of the steps that were just trained."""
        known = zip(rows.names, rows.values[-1].tolist(), rows.measured[-1], strict=True)
        last = {name: value for name, value, measured in known if measured}
        self._latest = "  ".join(f"{word} {last[name]:{form}}" for name, (word, form) in _SHOWN.items() if name in last)
        self._bar.update(self._task, completed=int(rows.steps[-1]) + 1)
        self._describe()

    def show_validation(self, step: int, per: float | None, loss: float | None, metric: str = "PER") -> None:
        """Show a validation. Without a progress bar, print a line for it.

        Args:
            step: The step after which it was made.
            per: The error rate; None if it was not measured.
            loss: The loss; None if it was not measured.
            metric: The error rate's own name.
        """
        rate = "" if per is None else f"  {metric} {per:.4f}"
        self._rates = "" if per is None else f"{metric} {per:.3f}"
        self._describe()
        line = f"step {step:<6d} {self._latest}{rate}" + ("" if loss is None else f"  validation loss {loss:.4g}")
        if self._bar.disable:
            self._console.print(line)
        log.info(line)

    def _describe(self) -> None:
        pace = pace_text(self._bar.tasks[self._task].speed or 0.0)
        self._bar.update(self._task, description=f"{self._latest}  {self._rates}  {pace}".rstrip())

    def show_stop(self, step: int, verdict: Verdict) -> None:
        """Print why the trial stops before its last step."""
        reason = f"{verdict.outcome}, found at step {verdict.detected_step}"
        of = "" if self._steps is None else f" of {self._steps}"
        _say(self._console, f"stopped at step {step}{of}: {reason}")


def _say(console: Console, text: str) -> None:
    """Print a line on the console, and write it into the trial's log."""
    console.print(text)
    log.info("%s", Text.from_markup(text).plain)


def show_configuration(
    config: "Config", folder: Path, dataset: "Dataset", stack: "Stack", *, quiet: bool = False
) -> None:
    """Print the settings of a trial, its data, its device and its folder.

    Args:
        config: The trial's configuration.
        folder: The trial's folder.
        dataset: Its data.
        stack: The trial as a stack of one.
        quiet: Whether to write them only into the trial's log.
    """
    device, step = stack.device, stack.step
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    o, s, a, b = config.optimizer, config.schedule, config.aug, config.batch
    for name, value in {
        "optimizer": f"AdamW, epsilon {o.epsilon:g}, weight decay {o.weight_decay:g}, clip {o.clip_norm}",
        "schedule": f"lr {s.lr_max:g} after {s.warmup_steps} steps, cosine to {s.lr_min:g} at {s.decay_steps}",
        "noise": f"white {a.white_noise_std:g}, offset {a.constant_offset_std:g}",
        "batch": f"{counted(b.size, 'utterance')} of {counted(b.days, 'day')}, loss {config.loss.reduction}",
        "model": f"GRU {config.model.layers} x {config.model.units}, {config.precision.dtype} on {device}",
        "data": f"{counted(len(dataset.train.records), 'utterance')} to train on and {len(dataset.val.records):,} to "
        f"validate on, {counted(len(dataset.sessions), 'day')}, {counted(dataset.n_features, 'feature')}, "
        f"{dataset.location}",
        "trial": f"seed {config.seed}, steps {step} to {config.steps}" + (" (resumed)" if step else ""),
        "folder": short_path(folder),
    }.items():
        _say(console, f"[dim]{name:<10}[/] {shown(value)}")
    if config.precision.dtype == "auto" and device.type == "cuda" and stack.precision == "fp32" and step == 0:
        _say(console, f"{device} has no bf16, so the trial trains in fp32. precision=fp16 is faster.")
    if dataset.excluded:
        bad = counted(len(dataset.excluded), "bad utterance")
        _say(console, f"[yellow]Training without {bad}; {EXCLUDED} lists them.[/]")


def show_command(config: "Config", folder: Path, command: str, log: Path, *, resumes: bool, quiet: bool) -> None:
    """Print what a trial that a command trains starts, and where.

    Args:
        config: The trial's configuration.
        folder: The trial's folder.
        command: The command.
        log: The log that is followed.
        resumes: Whether the program goes on from where it was stopped.
        quiet: Whether to write it only into the trial's log.
    """
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    for name, value in {
        "command": command,
        "log": short_path(log),
        "trial": f"seed {config.seed}" + (" (resumed)" if resumes else ""),
        "folder": short_path(folder),
    }.items():
        _say(console, f"[dim]{name:<10}[/] {shown(value)}")


def show_verdict(
    verdict: Verdict, folder: Path, where: str, *, finished_before: bool = False, quiet: bool = False
) -> None:
    """Print the trial's verdict and the paths of its files.

    Args:
        verdict: The verdict.
        folder: The trial's folder.
        where: The tracker's sentence about where to look at the trial.
        finished_before: Whether the trial had its verdict before this command.
        quiet: Whether to write them only into the trial's log.
    """
    if not quiet:
        show_outcome(verdict)
    for line in verdict.lines():
        log.info("%s", line)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    for name, place in {
        "verdict": folder / VERDICT,
        "figure": folder / FIGURE,
        "checkpoint": folder / BEST,
        "output": folder / OUTPUT,
    }.items():
        if place.exists():
            _say(console, f"[dim]{name:<10}[/] {shown(short_path(place))}")
    if (folder / FLIGHT_RECORD).exists():
        _say(console, f"[dim]flight recording[/]  {shown(short_path(folder / FLIGHT))}")
        _say(console, f"  repeat the step: `python -m stability.diagnose --replay {shown(short_path(folder))}`")
    _say(console, shown(where))
    if finished_before:
        _say(console, "This trial was finished before. To train it again: fresh=true")


def show_replay(folder: Path, replay: "Replay") -> None:
    """Print the result of a replay."""
    console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
    flight = replay.flight
    console.print(f"{shown(short_path(folder))}: {shown(flight.outcome)} since step {flight.step}, seed {flight.seed}")
    console.print(f"[dim]{'data':<10}[/] {shown(flight.data)}")
    weights = sorted(flight.largest_weights.items(), key=lambda item: (math.isfinite(item[1]), -item[1]))
    largest = ", ".join(f"{value:.4g} in {shown(name)}" for name, value in weights[:3])
    console.print(f"[dim]{'weights':<10}[/] the largest before this step are {largest}")
    if replay.device != flight.device:
        console.print(
            f"[yellow]recorded on {shown(flight.device)} and repeated on {replay.device}, which draws other random "
            "numbers: noise and dropout differ from the recorded ones[/]"
        )
    attempts = Table("", "fails", "loss", "gradient norm", "first not finite", box=None, header_style="dim")
    attempts.add_row("recorded", "yes", f"{replay.recorded_loss:.6g}", f"{replay.recorded_grad_norm:.6g}")
    for precision, a in replay.attempts.items():
        attempts.add_row(precision, "yes" if a.fails else "no", f"{a.loss:.6g}", f"{a.grad_norm:.6g}", a.not_finite)
    console.print(attempts)
    console.print(f"[bold]{replay.kind}[/]: {_KINDS[replay.kind]}")
    own = next(iter(replay.attempts.values()))
    console.print(f"[dim]the most suspicious of the batch of {len(flight.batch)} utterances[/]")
    suspects = Table("utterance", "frames", "labels", "loss", "largest input", "", box=None, header_style="dim")
    for u in flight.batch[:_SUSPECTS]:
        place = f"{u.session} {u.name}, block {_known(u.block)}, number {_known(u.number)}, {u.sentence!r}"
        loss, largest = f"{u.loss:.4g}", f"{u.largest_input:.4g}"
        suspects.add_row(shown(place), shown(u.frames), shown(u.labels), loss, largest, _suspicion(u, own.bad_rows))
    console.print(suspects)


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _suspicion(utterance: "Suspect", bad_rows: frozenset[int]) -> str:
    faults = {
        "input not finite": not utterance.input_finite,
        "CTC cannot align it": not utterance.can_be_aligned,
        "loss not finite": utterance.row in bad_rows,
    }
    return f"[red]{', '.join(name for name, there in faults.items() if there)}[/]"
