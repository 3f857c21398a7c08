"""One trial from its start, or from its last checkpoint, to its verdict. All that it leaves is in its folder."""

import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from stability.config import Config
from stability.data import synthetic
from stability.data.t15 import Dataset, open_dataset
from stability.diagnosis.history import History
from stability.diagnosis.signals import SIGNALS, VALIDATION, Table, append_rows, read_table, truncate
from stability.diagnosis.verdict import FAULTS, Verdict, is_due, judge, stopped
from stability.errors import Busy, Interrupted, StabilityError, cannot_write
from stability.files import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    ERROR,
    EXCLUDED,
    FIGURE,
    FLIGHT,
    LAST,
    LOCK,
    TRACKING,
    VERDICT,
    write_atomically,
)
from stability.terminal import Display, show_configuration, show_verdict
from stability.tracking import Tracker, open_tracker
from stability.training import checkpoint
from stability.training.decoder import init_parameters
from stability.training.loop import Block, Stack, evaluate, new_stack, train_steps
from stability.training.measure import signal_names
from stability.training.recorder import Recorder

_VALIDATED = ("per", "loss")  # the columns of `validation.csv`
_BLOCK = 10  # steps after which the signals are fetched from the device, written, shown and looked at


def run_trial(config: Config, folder: Path, *, quiet: bool = False) -> Verdict:
    """Train the trial in `folder` to its end, going on from what is there, and return its verdict.

    A trial that has its verdict is only shown; `quiet` shows nothing of any. Raises StabilityError where something
    outside is wrong, Busy if another process trains it, and Interrupted if asked to stop, after a checkpoint.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK).acquire(timeout=0):
            return _run(config, folder, quiet)
    except Timeout:
        raise Busy(f"{folder} is being trained by another process: wait for it.") from None
    except OSError as error:
        raise cannot_write(folder, error) from error


def _run(config: Config, folder: Path, quiet: bool) -> Verdict:
    (folder / ERROR).unlink(missing_ok=True)
    if config.fresh:
        _clear(folder)
    finished_before = (folder / VERDICT).exists()
    if finished_before:
        verdict = Verdict.from_json((folder / VERDICT).read_text())
        tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    else:
        verdict, tracker = _reach_verdict(config, folder, quiet)
    if not (folder / FIGURE).exists():
        from stability.figures import draw_run  # late: matplotlib takes a while, and many commands end before this

        draw_run(folder)
    tracker.finish()
    if not quiet:
        show_verdict(verdict, folder, tracker.where)
    if finished_before and not quiet:
        print("This trial was finished before: fresh=true trains it anew.")
    return verdict


def _reach_verdict(config: Config, folder: Path, quiet: bool) -> tuple[Verdict, Tracker]:
    # The gradients of a trial that says only blank sink into denormals, which a CPU multiplies far more slowly.
    torch.set_flush_denormal(True)
    device = choose_device(config.device)
    dataset = open_data(config)
    stack, best = _open_stack(config, folder, dataset, device)
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    if dataset.excluded:
        write_atomically(folder / EXCLUDED, "".join(f"{line}\n" for line in dataset.excluded).encode())
    if not quiet:
        show_configuration(config, folder, dataset, device, stack.step)
    tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    recorder = Recorder(stack)
    try:
        with Display(config.steps, stack.step, quiet) as display, _stop_requests() as stop_requested:
            verdict = _train(stack, dataset, folder, best, recorder, tracker, display, stop_requested)
        write_atomically(folder / VERDICT, verdict.to_json().encode())
    except BaseException as error:
        tracker.abort("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return verdict, tracker


def _train(
    stack: Stack,
    dataset: Dataset,
    folder: Path,
    best: checkpoint.Best,
    recorder: Recorder,
    tracker: Tracker,
    display: Display,
    stop_requested: Callable[[], bool],
) -> Verdict:
    """Train block by block until the budget is spent or the trial is to be stopped, and rule on it."""
    config = stack.configs[0]
    history = History()
    remember(history, read_table(folder / SIGNALS))
    fault = _found(folder, history, FAULTS) if is_due(stack.step) else None
    ended, recorded = _ends(stack, folder, history, fault), False
    while not ended:
        # Validation comes after the steps 0, every, 2 every …, as in the official trainer.
        to_validation = (-stack.step) % config.validate_every + 1
        to_checkpoint = config.checkpoint_every - stack.step % config.checkpoint_every
        to_block = _BLOCK - stack.step % _BLOCK
        count = min(to_block, to_validation, to_checkpoint, config.steps - stack.step)
        block = train_steps(stack, dataset.train, count)
        append_rows(folder / SIGNALS, block.names, block.steps[0], block.values[0])
        display.trained(block)
        recorder.passed(stack)
        remember(history, table_of(block))
        # Before the look, as a resumed trial finds the validation in its folder.
        if count == to_validation:
            _validate(stack, dataset, folder, best, display)
        fault = _found(folder, history, FAULTS) if is_due(stack.step) else None
        ended = _ends(stack, folder, history, fault)
        if fault is not None and not ended and not (recorded or (folder / FLIGHT).exists()):
            recorded = True  # as long as the state before it is in memory, whatever becomes of the trial
            _record_fault(recorder, folder, stack, dataset, fault)
        if ended and count != to_validation:
            _validate(stack, dataset, folder, best, display)
        stopping = stop_requested()
        if ended or stopping or count == to_checkpoint:
            checkpoint.save(folder / LAST, stack, 0, best)
        tracker.update()
        if stopping and not ended:
            raise Interrupted(f"Stopped before step {stack.step}. The same command goes on from there.")
    verdict = _stopped(stack, folder, history)
    if verdict is None:
        return judge(read_table(folder / SIGNALS), read_table(folder / VALIDATION))
    _record_fault(recorder, folder, stack, dataset, verdict)
    if stack.step < config.steps:
        display.stopped(stack.step, verdict)
    return verdict


def _validate(stack: Stack, dataset: Dataset, folder: Path, best: checkpoint.Best, display: Display) -> None:
    (per,), (loss,) = evaluate(stack, dataset.val)
    row = np.array([[per, loss]], np.float32)
    append_rows(folder / VALIDATION, _VALIDATED, [stack.step - 1], row)
    display.validated(stack.step - 1, per, loss)
    if best.improve(float(per), float(loss)):
        checkpoint.save(folder / BEST, stack, 0, best)


def _ends(stack: Stack, folder: Path, history: History, fault: Verdict | None) -> bool:
    """Whether no step follows. A pure function of the trial and its step, so that a resumed trial ends there too."""
    if stack.step >= stack.configs[0].steps or bool(stack.failed.any()):
        return True
    return fault is not None and _stopped(stack, folder, history) is not None


def _found(folder: Path, history: History, kinds: Collection[str]) -> Verdict | None:
    return stopped(history.table(), read_table(folder / VALIDATION), kinds)


def _stopped(stack: Stack, folder: Path, history: History) -> Verdict | None:
    """The verdict that ends the trial before its budget, with the steps that it saves."""
    config = stack.configs[0]
    verdict = _found(folder, history, config.diagnosis.stop_on)
    if verdict is None or stack.step == config.steps:
        return verdict
    saved: dict[str, float | str] = {"steps saved": config.steps - stack.step}
    return replace(verdict, evidence=verdict.evidence | saved)


def _record_fault(recorder: Recorder, folder: Path, stack: Stack, dataset: Dataset, fault: Verdict) -> None:
    """Leave a flight recording of the fault that ended the trial. The verdict does not depend on it."""
    try:
        recorder.write(folder, stack, dataset.train, fault)
    except OSError as error:
        reason = f"{folder / FLIGHT} cannot be written ({error.strerror or error})"
        print(f"There is no flight recording: {reason}. Make room, and train the trial anew for one: fresh=true")


def table_of(block: Block) -> Table:
    """The signals of a stack of one, as its folder keeps them."""
    values = block.values[0]
    return Table(block.names, np.array(block.steps[0]), values.data, ~np.ma.getmaskarray(values))


def remember(history: History, rows: Table) -> None:
    """Append rows of signals to a history."""
    history.append(rows.names, rows.steps, rows.values, rows.measured)


def _open_stack(config: Config, folder: Path, dataset: Dataset, device: torch.device) -> tuple[Stack, checkpoint.Best]:
    """The trial as a stack of one, where its last checkpoint left it; later signals are dropped."""
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    if config.init_from is not None:
        parameters = checkpoint.load_weights(Path(config.init_from), parameters)
    stack = new_stack([config], [parameters], device)
    resumable = (folder / LAST).exists()
    best = checkpoint.restore(folder / LAST, stack, 0) if resumable else checkpoint.Best()
    truncate(folder / SIGNALS, stack.step, signal_names(config.model.layers))
    truncate(folder / VALIDATION, stack.step, _VALIDATED)
    return stack, best


def open_data(config: Config) -> Dataset:
    """The training and validation trials that the configuration names; a synthetic set is written the first time."""
    outputs, data = Path(config.outputs), config.data
    if data.synthetic is not None:
        path = synthetic.ensure(data.synthetic, Path(data.path) if data.path else outputs / "data")
    elif data.path is not None:
        path = Path(data.path)
    else:
        raise StabilityError("data.path is null: give the folder that holds the session folders.")
    dataset = open_dataset(
        path,
        sessions=data.sessions,
        on_bad_trial=data.on_bad_trial,
        patch_size=config.model.patch_size,
        patch_stride=config.model.patch_stride,
        max_cut=config.aug.max_cut,
        index_dir=outputs / "index",
    )
    days = len(dataset.train.by_day)
    if config.batch.days > days:
        raise StabilityError(
            f"batch.days={config.batch.days}, but only {days} days of {path} have training trials: "
            f"give batch.days={days} or less."
        )
    return dataset


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one. Raises StabilityError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StabilityError(f"device={name} is none of auto, cpu, cuda and cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StabilityError(
            f"device={name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here. "
            "Give device=auto, or install a PyTorch with CUDA for this machine's driver."
        )
    return device


def _clear(folder: Path) -> None:
    """Forget the trial that the folder holds; what a person put there stays."""
    for inner in (CHECKPOINTS, FLIGHT):
        shutil.rmtree(folder / inner, ignore_errors=True)
    for name in (SIGNALS, VALIDATION, VERDICT, FIGURE, EXCLUDED, TRACKING):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came. The first is noted, so that a step is never left half done; a second acts."""
    requested = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(number, previous[number])

    previous = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
