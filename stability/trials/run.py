"""One trial from its start, or from its last checkpoint, to its verdict. All that it leaves is in its folder."""

import shutil
from collections.abc import Callable, Collection, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from stability.config.schema import Config
from stability.core.device import choose_device
from stability.core.errors import StabilityError, TrialBusy, write_error
from stability.core.files import (
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
from stability.data import synthetic
from stability.data.placement import place
from stability.data.records import Dataset
from stability.data.t15_reader import open_dataset
from stability.diagnosis.history import History
from stability.diagnosis.signals import signal_names
from stability.diagnosis.table import (
    SIGNALS_FILE,
    VALIDATION_FILE,
    Table,
    append_rows,
    append_table,
    read_table,
    truncate,
)
from stability.diagnosis.verdict import FAULTS, Verdict, is_check_due, judge, stopped
from stability.engine.decoder import init_parameters
from stability.engine.memory import ignore_out_of_memory, is_out_of_memory, prepare_process
from stability.engine.stack import Stack, new_stack
from stability.tracking.api import Tracker, open_tracker
from stability.trials import checkpoint
from stability.trials.display import Display, show_configuration, show_verdict
from stability.trials.recorder import Recorder
from stability.trials.scheduler import Join, Life, Room, Seat, Train, Validate, Wish, train_together

_Made = TypeVar("_Made")

_VALIDATED = ("per", "loss")  # the columns of `validation.csv`
_BLOCK = 10  # steps after which the signals are fetched from the device, written, shown and looked at


def run_trial(config: Config, folder: Path, *, quiet: bool = False) -> Verdict:
    """Train the trial in `folder` to its end, going on from what is there, and return its verdict.

    A trial that has its verdict is only shown; `quiet` shows nothing of any. Raises StabilityError where something
    outside is wrong, TrialBusy if another process trains it, and Interrupted if asked to stop, after a checkpoint.
    """
    (end,) = train_together([live(config, folder, quiet=quiet)], 1)
    if isinstance(end, BaseException):
        raise end
    return end


def live(config: Config, folder: Path, *, quiet: bool = False, data: Callable[[Config], Dataset] | None = None) -> Life:
    """The life of the trial in `folder`, in any stack; it ends as `run_trial` does. `data` opens what it trains on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK).acquire(timeout=0):
            return (yield from _live(config, folder, quiet, data or open_data))
    except Timeout:
        raise TrialBusy(f"{folder} is being trained by another process: wait for it.") from None
    except OSError as error:
        raise write_error(folder, error) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StabilityError(
            f"The memory of device={config.device} does not hold one trial: give a smaller batch.size or model.units, "
            "or free some."
        ) from error


def _live(config: Config, folder: Path, quiet: bool, data: Callable[[Config], Dataset]) -> Life:
    (folder / ERROR).unlink(missing_ok=True)
    if config.fresh:
        clear(folder)
    finished_before = (folder / VERDICT).exists()
    if finished_before:
        verdict = Verdict.from_json((folder / VERDICT).read_text())
        tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    else:
        verdict, tracker = yield from _reach_verdict(config, folder, quiet, data)
    if not (folder / FIGURE).exists():
        from stability.diagnosis.run_figure import (
            draw_run,  # late: matplotlib takes a while, and many commands end before this
        )

        draw_run(folder, config.optimizer.clip_norm)
    tracker.finish()
    if not quiet:
        show_verdict(verdict, folder, tracker.where)
    if finished_before and not quiet:
        print("This trial was finished before: fresh=true trains it anew.")
    return verdict


def _reach_verdict(
    config: Config, folder: Path, quiet: bool, data: Callable[[Config], Dataset]
) -> Generator[Wish, Any, tuple[Verdict, Tracker]]:
    prepare_process()
    device = choose_device(config.device)
    dataset = data(config)
    stack, best, recorder = yield from _with_room(lambda: _open_stack(config, folder, dataset, device))
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    if dataset.excluded:
        write_atomically(folder / EXCLUDED, "".join(f"{line}\n" for line in dataset.excluded).encode())
    if not quiet:
        show_configuration(config, folder, dataset, device, stack.step)
        if config.precision.dtype == "auto" and device.type == "cuda" and stack.precision == "fp32":
            print(f"{torch.cuda.get_device_name(device)} has no bf16: it trains in fp32. precision=fp16 is faster.")
    tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    seat = Seat(stack)
    try:
        yield Join(seat, dataset)
        with Display(config.steps, seat.step, quiet) as display, checkpoint.in_background() as save:
            verdict = yield from _train(config, seat, dataset, folder, best, save, recorder, tracker, display)
        write_atomically(folder / VERDICT, verdict.to_json().encode())
    except BaseException as error:
        tracker.abort("KILLED" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "FAILED")
        raise
    return verdict, tracker


def _train(
    config: Config,
    seat: Seat,
    dataset: Dataset,
    folder: Path,
    best: checkpoint.Best,
    save: checkpoint.Save,
    recorder: Recorder,
    tracker: Tracker,
    display: Display,
) -> Life:
    """Train block by block until the budget is spent or the trial is to be stopped, and rule on it."""
    history = History()
    history.append(read_table(folder / SIGNALS_FILE))
    fault = _found(folder, history, FAULTS) if is_check_due(seat.step) else None
    ended, recorded = _ends(config, seat, folder, history, fault), False
    while not ended:
        # Validation comes after the steps 0, every, 2 every …, as in the official trainer.
        to_validation = (-seat.step) % config.validate_every + 1
        to_checkpoint = config.checkpoint_every - seat.step % config.checkpoint_every
        to_block = _BLOCK - seat.step % _BLOCK
        count = min(to_block, to_validation, to_checkpoint, config.steps - seat.step)
        to_go = count
        while to_go:
            rows: Table = yield Train(to_go)
            append_table(folder / SIGNALS_FILE, rows)
            history.append(rows)
            display.trained(rows)
            to_go -= len(rows.steps)
        recorder.passed(seat)
        # Before the look, as a resumed trial finds the validation in its folder.
        if count == to_validation:
            yield from _validate(seat, folder, best, save, display)
        fault = _found(folder, history, FAULTS) if is_check_due(seat.step) else None
        ended = _ends(config, seat, folder, history, fault)
        if fault is not None and not ended and not (recorded or (folder / FLIGHT).exists()):
            recorded = True  # as long as the state before it is in memory, whatever becomes of the trial
            _record_fault(recorder, folder, seat, dataset, fault)
        if ended and count != to_validation:
            yield from _validate(seat, folder, best, save, display)
        stopping = seat.stopping
        if ended or stopping or count == to_checkpoint:
            save(folder / LAST, seat.stack, seat.place, best)
        tracker.update()
        if stopping and not ended:
            raise stopping(f"Stopped before step {seat.step}. The same command goes on from there.")
    verdict = _stopped(config, seat, folder, history)
    if verdict is None:
        return judge(read_table(folder / SIGNALS_FILE), read_table(folder / VALIDATION_FILE))
    _record_fault(recorder, folder, seat, dataset, verdict)
    if seat.step < config.steps:
        display.stopped(seat.step, verdict)
    return verdict


def _validate(
    seat: Seat, folder: Path, best: checkpoint.Best, save: checkpoint.Save, display: Display
) -> Generator[Wish, Any, None]:
    per, loss = yield Validate()
    append_rows(folder / VALIDATION_FILE, _VALIDATED, [seat.step - 1], [[per, loss]])
    display.validated(seat.step - 1, per, loss)
    if best.improve(per, loss):
        save(folder / BEST, seat.stack, seat.place, best)


def _ends(config: Config, seat: Seat, folder: Path, history: History, fault: Verdict | None) -> bool:
    """Whether no step follows. A pure function of the trial and its step, so that a resumed trial ends there too."""
    if seat.step >= config.steps or seat.failed:
        return True
    return fault is not None and _stopped(config, seat, folder, history) is not None


def _found(folder: Path, history: History, kinds: Collection[str]) -> Verdict | None:
    return stopped(history.table(), read_table(folder / VALIDATION_FILE), kinds)


def _stopped(config: Config, seat: Seat, folder: Path, history: History) -> Verdict | None:
    """The verdict that ends the trial before its budget, with the steps that it saves."""
    verdict = _found(folder, history, config.diagnosis.stop_on)
    if verdict is None or seat.step == config.steps:
        return verdict
    saved: dict[str, float | str] = {"steps saved": config.steps - seat.step}
    return replace(verdict, evidence=verdict.evidence | saved)


def _record_fault(recorder: Recorder, folder: Path, seat: Seat, dataset: Dataset, fault: Verdict) -> None:
    """Leave a flight recording of the fault that ended the trial. The verdict does not depend on it."""
    try:
        recorder.write(folder, seat.alone(), dataset.train, fault)
    except (OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        reason = f"{folder / FLIGHT} cannot be written ({getattr(error, 'strerror', None) or error})"
        print(f"There is no flight recording: {reason}. Make room, and train the trial anew for one: fresh=true")


def _with_room(make: Callable[[], _Made]) -> Generator[Wish, Any, _Made]:
    """Make it, when there is memory for it."""
    while True:
        with ignore_out_of_memory():
            return make()
        yield Room()


def _open_stack(
    config: Config, folder: Path, dataset: Dataset, device: torch.device
) -> tuple[Stack, checkpoint.Best, Recorder]:
    """The trial as a stack of one, where its last checkpoint left it; later signals are dropped."""
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    if config.init_from is not None:
        parameters = checkpoint.load_weights(Path(config.init_from), parameters)
    stack = new_stack([config], [parameters], device)
    resumable = (folder / LAST).exists()
    best = checkpoint.restore(folder / LAST, stack, 0) if resumable else checkpoint.Best()
    truncate(folder / SIGNALS_FILE, stack.step, signal_names(config.model.layers))
    truncate(folder / VALIDATION_FILE, stack.step, _VALIDATED)
    return stack, best, Recorder(stack)


def open_data(config: Config) -> Dataset:
    """Open the utterances that the configuration names, check them, and place them for training on its device.

    A synthetic set is written the first time.
    """
    outputs, data = Path(config.outputs), config.data
    if data.synthetic is not None:
        path = synthetic.make_dataset(data.synthetic, Path(data.path) if data.path else outputs / "data")
    elif data.path is not None:
        path = Path(data.path)
    else:
        raise StabilityError("data.path is null: give the folder that holds the session folders.")
    device = choose_device(config.device)
    dataset = open_dataset(
        path,
        sessions=data.sessions,
        on_bad_utterance=data.on_bad_utterance,
        patch_size=config.model.patch_size,
        patch_stride=config.model.patch_stride,
        max_cut=config.aug.max_cut,
        index_dir=outputs / "index",
    )
    days = len(dataset.train.by_day)
    if config.batch.days > days:
        raise StabilityError(
            f"batch.days={config.batch.days}, but only {days} days of {path} have utterances to train on: "
            f"give batch.days={days} or less."
        )
    return place(dataset, device, outputs)


def clear(folder: Path) -> None:
    """Forget the trial that the folder holds; what a person put there stays."""
    for inner in (CHECKPOINTS, FLIGHT):
        shutil.rmtree(folder / inner, ignore_errors=True)
    for name in (SIGNALS_FILE, VALIDATION_FILE, VERDICT, FIGURE, EXCLUDED, TRACKING):
        (folder / name).unlink(missing_ok=True)
