"""Trains one trial by a program of the user's own: starts it, follows its log, and brings it to a verdict.

The program runs in the folder `work` of the trial's folder, and what it prints is in `output.log`. Signals, validations
and the verdict are made from its log, as `python -m stability.diagnose` makes them. A program that ends with an error
leaves a verdict only if its log shows a fault. Else it has crashed.
"""

import logging
import math
import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from stability.config.names import own_settings
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, OUTPUT, PROGRAM_LOCK, VERDICT, WORK, write_atomically
from stability.core.stopping import stop_requested
from stability.core.text import first_of, printable
from stability.diagnosis.judge_log import doomed, judge_recording
from stability.diagnosis.readers import Recording
from stability.diagnosis.readers.tables import write_tables
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FAULTS, Verdict
from stability.tracking.api import Tracker, open_tracker
from stability.trials.child import Child, only_program
from stability.trials.display import Display, show_command
from stability.trials.log_follower import LogFollower
from stability.trials.program import Program, check_program, prepare
from stability.trials.program_runs import noted

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds after the grace, within which the program of an earlier run has ended
_TICK = 0.1  # seconds between two looks at the program
_PAUSE = 0.5  # seconds between two looks at its log, at least
_SHARE = 0.05  # of the time may go into them: most formats can only be read from their beginning
_TAIL = 1 << 14  # bytes at the end of the output
_LINES = 3  # of the output that a message repeats
_WIDTH = 300  # characters of each
_LISTED = 8  # files that a message lists
_NO_FILE = re.compile("No such file or directory: '([^']+)'")  # as Python says it
# What programs raise where a number is not finite: `RuntimeError: The total norm … is non-finite, so …`.
_NOT_FINITE = re.compile(
    r"^[\w.]*(Error|Exception)\b.*(non-?finite|not finite|infinite|\bnan\b|\binf\b)", re.IGNORECASE
)


def run_command(config: Config, folder: Path, *, quiet: bool) -> tuple[Verdict, Tracker]:
    """Run the program of a trial to its end, and write the verdict into the trial's folder.

    Args:
        config: The trial's configuration.
        folder: The trial's folder.
        quiet: Whether to print nothing.

    Returns:
        The verdict, and the tracker, which is still open.

    Raises:
        StabilityError: The program cannot be started, ended with an error, did not end in time, or left no log.
        Interrupted: Ctrl-C or SIGTERM came, and the program was stopped.
    """
    check_program(config)
    with only_program(folder / PROGRAM_LOCK, config.trainer.grace + _PATIENCE) as lock:
        return _run_alone(config, folder, lock, quiet=quiet)


def _run_alone(config: Config, folder: Path, lock: IO[str], *, quiet: bool) -> tuple[Verdict, Tracker]:
    program = prepare(config, folder)
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(own_settings(config))).encode())
    show_command(config, folder, shlex.join(program.words), program.log, resumes=program.resumes, quiet=quiet)
    tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    try:
        with Display(config.budget, 0, quiet) as display:
            follower = LogFollower(program.log, config.trainer.names)
            context = _Context(config, folder, program, lock, follower, tracker, display)
            verdict = _judge(context, _follow(context))
        write_atomically(folder / VERDICT, verdict.to_json().encode())
    except BaseException as error:
        tracker.abort("KILLED" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "FAILED")
        raise
    return verdict, tracker


@dataclass
class _Context:
    """Everything that a trial uses while its program runs. `shown` is the last validation on the terminal."""

    config: Config
    folder: Path
    program: Program
    lock: IO[str]
    follower: LogFollower
    tracker: Tracker
    display: Display
    shown: int = -1


class _End(NamedTuple):
    """How the program ended.

    Attributes:
        status: Its exit status; -N if signal N ended it.
        fault: Why it was ended, if it was doomed.
        problem: What went wrong; empty if it did not.
    """

    status: int
    fault: Verdict | None = None
    problem: str = ""


def _follow(context: _Context) -> _End:
    """Start the program and follow its log until it ends, by itself or because it is doomed or its time is up."""
    program, trainer = context.program, context.config.trainer
    begun = look_at = time.monotonic()
    limit = math.inf if trainer.limit is None else begun + 60 * trainer.limit
    with (
        noted(context.folder, program.words) as note,
        Child(
            program.words,
            folder=program.folder,
            output=context.folder / OUTPUT,
            environment=program.environment,
            grace=trainer.grace,
            lock=context.lock,
        ) as child,
    ):
        while (status := child.wait(_TICK)) is None:
            if interruption := stop_requested():
                note("stopped by a signal", child.stop())
                again = "goes on from there" if trainer.resume else "runs the program anew"
                stopped = f"Stopped the program. The same command {again}."
                log.info(stopped)
                raise interruption(stopped)
            if (now := time.monotonic()) >= look_at:
                if (fault := _look(context)) is not None:
                    return _End(note("ended as doomed", child.stop()), fault=fault)
                look_at = time.monotonic() + max(_PAUSE, (time.monotonic() - now) / _SHARE)
            if time.monotonic() > limit:
                minutes = f"trainer.limit={trainer.limit:g} minutes"
                return _End(
                    note("ended by the time limit", child.stop()),
                    problem=f"had not ended after {minutes}, so it was ended",
                )
        return _End(note("ended", status), problem=_why_it_failed(status) if status else "")


def _look(context: _Context) -> Verdict | None:
    """Take over what is new in the log. Return the verdict that ends the trial; None if it goes on."""
    if (recording := context.follower.look()) is None:
        return None
    _keep(context, _without_last_step(recording))
    return doomed(recording, context.config.diagnosis.stop_on)


def _judge(context: _Context, end: _End) -> Verdict:
    """Read the whole log, and return the verdict on it."""
    printed = _last_lines(context.folder / OUTPUT)
    try:
        recording = context.follower.read()
    except StabilityError as error:
        why = _failure(end.problem, printed) if end.problem else _why_no_log(context, error)
        raise StabilityError(why) from None
    last_words = printed[-1] if printed else ""
    if end.problem and _NOT_FINITE.search(last_words):
        recording = replace(recording, signals=_with_nan(recording, last_words))
    _keep(context, recording)
    if end.fault is not None:
        verdict = doomed(recording, context.config.diagnosis.stop_on) or end.fault
        step, budget = _steps(recording), context.config.budget
        context.display.show_stop(step, verdict)
        if budget is None or step >= budget:
            return verdict
        return replace(verdict, evidence=verdict.evidence | {"steps saved": budget - step})
    verdict = judge_recording(recording)
    if not end.problem:
        return verdict
    if verdict.outcome not in FAULTS:
        so_far = f" Its log has {recording.unit}s up to {_steps(recording) - 1}; so far it is {verdict.outcome}."
        raise StabilityError(_failure(end.problem, printed) + so_far)
    return replace(verdict, evidence=verdict.evidence | {"the program": f"{end.problem}: {last_words}".rstrip(": ")})


def _keep(context: _Context, recording: Recording) -> None:
    """Write what was read into the trial's folder, send it, and show what is new."""
    write_tables(context.folder, recording)
    context.tracker.update()
    signals, table, display = recording.signals, recording.validation, context.display
    for row in np.flatnonzero(table.steps > context.shown).tolist():
        values = dict(zip(table.names, table.values[row].tolist(), strict=True))
        context.shown = int(table.steps[row])
        until = signals.take(slice(int(np.searchsorted(signals.steps, context.shown, "right"))))
        if len(until.steps):
            display.show_steps(until)
        display.show_validation(context.shown, values.get("per"), values.get("loss"), recording.metric)
    if len(signals.steps):
        display.show_steps(signals)


def _without_last_step(recording: Recording) -> Recording:
    """The recording without its last step, to which later lines of the log may still add."""
    last = _steps(recording) - 1
    tables = (recording.signals, recording.validation)
    signals, validation = (table.take(table.steps < last) for table in tables)
    return replace(recording, signals=signals, validation=validation)


def _steps(recording: Recording) -> int:
    """The number of steps that the log has."""
    return 1 + int(max(table.steps[-1] for table in (recording.signals, recording.validation) if len(table.steps)))


def _with_nan(recording: Recording, last_words: str) -> Table:
    """The signals with one more step, at which the program met a number that is not finite."""
    table = recording.signals
    name = "grad_norm" if re.search("grad|norm", last_words, re.IGNORECASE) else "loss"
    names = table.names if name in table.names else (*table.names, name)
    rows, columns = len(table.steps) + 1, len(names)
    values, measured = np.full((rows, columns), np.nan, np.float32), np.zeros((rows, columns), bool)
    values[:-1, : len(table.names)], measured[:-1, : len(table.names)] = table.values, table.measured
    measured[-1, names.index(name)] = True
    return Table(names, np.append(table.steps, _steps(recording)), values, measured)


def _why_it_failed(status: int) -> str:
    number = -status if status < 0 else status - 128  # as shells tell it
    if number not in signal.valid_signals():
        return f"ended with exit status {status}"
    killed = f"was ended by {signal.Signals(number).name}"
    return f"{killed}, perhaps because memory ran out" if number == signal.SIGKILL else killed


def _failure(problem: str, printed: Sequence[str]) -> str:
    """The message on a program that failed."""
    last = f"The end of its output: {' | '.join(printed)}" if printed else "It printed nothing."
    message = f"The program {problem}. {last} ({OUTPUT} has all of it.)"
    missing = _NO_FILE.search(" ".join(printed))
    if missing and not Path(missing[1]).is_absolute() and Path(missing[1]).exists():
        return f"{message} It runs in a folder of its own, without {missing[1]}: give it the whole path."
    return message


def _why_no_log(context: _Context, error: StabilityError) -> str:
    """The message on a program that ended as it should, and left no log that can be read."""
    trainer, work = context.config.trainer, context.program.folder
    if context.program.log.exists():
        mend = "In a trial, give other names as in trainer.names={loss: train_loss_avg}."
        return (
            f"The program ended, but its log cannot be read. {error} {mend if '--map' in str(error) else ''}".rstrip()
        )
    files = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    there = f"{WORK} has {first_of(files, _LISTED)}" if files else f"{WORK} is empty"
    return (
        f"The program ended, but there is no log at {WORK}/{trainer.log}: {there}. Give the log that it writes there "
        "with trainer.log=FILE; without trainer.log, what it prints is read."
    )


def _last_lines(path: Path) -> list[str]:
    """The last lines of a file that say something."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL))
        lines = [printable(line.rstrip())[:_WIDTH] for line in file.read().decode(errors="replace").splitlines()]
    return [line for line in lines if line.strip(" ~^")][-_LINES:]  # without Python's marks below a line of code
