"""Trains one trial of this project's decoder from its start, or from its last checkpoint, to its verdict."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from stability.config.names import own_settings
from stability.config.schema import Config
from stability.core.device import choose_device
from stability.core.files import BEST, CONFIG, DATA, EXCLUDED, FLIGHT, LAST, VERDICT, write_atomically
from stability.core.stopping import at_once
from stability.data.records import Dataset
from stability.diagnosis.judge import is_check_due
from stability.diagnosis.verdict import FAULTS, Verdict
from stability.engine.kernels.compiler import compiled
from stability.engine.memory import ignore_out_of_memory, is_out_of_memory, prepare_process
from stability.tracking.api import Tracker, open_tracker
from stability.trials import checkpoint
from stability.trials.display import Display, show_configuration
from stability.trials.readings import Readings
from stability.trials.recorder import Recorder
from stability.trials.requests import Join, Slot, WaitForMemory
from stability.trials.setup import open_stack

log = logging.getLogger(__name__)

OpenData = Callable[[Config, torch.device], Dataset]

_BLOCK = 10  # steps after which the signals are fetched from the device, written, shown and diagnosed


@dataclass(frozen=True)
class _Context:
    """Everything that a trial uses while it trains. It is made once; the objects in it change."""

    config: Config
    folder: Path
    dataset: Dataset
    slot: Slot
    best: checkpoint.Best
    readings: Readings
    recorder: Recorder
    tracker: Tracker
    display: Display
    save: checkpoint.Save


async def train_decoder(config: Config, folder: Path, *, quiet: bool, open_data: OpenData) -> tuple[Verdict, Tracker]:
    """Train a trial to its verdict, and write that into its folder.

    Args:
        config: The trial's configuration.
        folder: The trial's folder.
        quiet: Whether to print nothing.
        open_data: Opens the data set.

    Returns:
        The verdict, and the tracker, which is still open.

    Raises:
        StabilityError: The user can correct what is wrong.
        Interrupted: Ctrl-C or SIGTERM stopped the trial.
    """
    with at_once():
        prepare_process()
        device = choose_device(config.device)
        dataset = open_data(config, device)
        if device.type == "cpu":
            compiled()  # not in the first step: the compiler takes a while, and no step may be left half done
    while True:  # until there is memory for the trial
        with at_once(), ignore_out_of_memory():
            stack, best = open_stack(config, folder, dataset, device)
            recorder = Recorder(stack)
            break
        await WaitForMemory()
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(own_settings(config))).encode())
    write_atomically(folder / DATA, json.dumps(dataset.summary, indent=2).encode())
    if dataset.excluded:
        write_atomically(folder / EXCLUDED, "".join(f"{line}\n" for line in dataset.excluded).encode())
    show_configuration(config, folder, dataset, stack, quiet=quiet)
    tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    slot = Slot(stack)
    del stack  # the slot alone holds it, so that its memory is free as soon as the trial joins another stack
    try:
        await Join(slot, dataset)
        with Display(config.steps, slot.step, quiet) as display, checkpoint.in_background() as save:
            verdict = await _train(
                _Context(
                    config=config,
                    folder=folder,
                    dataset=dataset,
                    slot=slot,
                    best=best,
                    readings=Readings(folder),
                    recorder=recorder,
                    tracker=tracker,
                    display=display,
                    save=save,
                )
            )
        write_atomically(folder / VERDICT, verdict.to_json().encode())
    except BaseException as error:
        tracker.abort("KILLED" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "FAILED")
        raise
    return verdict, tracker


async def _train(context: _Context) -> Verdict:
    """Train block by block until the last step, or until a fault ends the trial. Return the verdict."""
    config, slot, readings = context.config, context.slot, context.readings
    fault = readings.fault(FAULTS) if is_check_due(slot.step) else None
    ended, recorded = _ends(context, fault), (context.folder / FLIGHT).exists()
    while not ended:
        # Validation comes after the steps 0, every, 2 every, …, as in the official trainer.
        to_validation = (-slot.step) % config.validate_every + 1
        to_checkpoint = config.checkpoint_every - slot.step % config.checkpoint_every
        to_block = _BLOCK - slot.step % _BLOCK
        count = min(to_block, to_validation, to_checkpoint, config.steps - slot.step)
        end = slot.step + count
        while slot.step < end:
            rows = await slot.train(end - slot.step)
            readings.add_signals(rows)
            context.display.show_steps(rows)
        context.recorder.keep_state(slot)
        # Validate before the diagnosis: a resumed trial has the validation in its folder, and must decide the same.
        if count == to_validation:
            await _validate(context)
        fault = readings.fault(FAULTS) if is_check_due(slot.step) else None
        ended = _ends(context, fault)
        if fault is not None and not ended and not recorded:
            recorded = True  # the state before the fault is in memory only for a while, and the trial may not recover
            _record(context, fault)
        if ended and count != to_validation:
            await _validate(context)
        stopping = slot.stopping
        if ended or stopping or count == to_checkpoint:
            readings.sync()
            context.save(context.folder / LAST, slot.stack, slot.place, context.best)
        context.tracker.update()
        if stopping and not ended:
            stopped = f"Stopped before step {slot.step}. The same command goes on from there."
            log.info(stopped)
            raise stopping(stopped)
    verdict = readings.fault(config.diagnosis.stop_on)
    if verdict is None:
        return readings.judge()
    if slot.step < config.steps:
        verdict = replace(verdict, evidence=verdict.evidence | {"steps saved": config.steps - slot.step})
        context.display.show_stop(slot.step, verdict)
    _record(context, verdict)
    return verdict


async def _validate(context: _Context) -> None:
    slot = context.slot
    validation = await slot.validate()
    context.readings.add_validation(slot.step - 1, validation)
    context.display.show_validation(slot.step - 1, *validation)
    if context.best.improve(validation):
        context.save(context.folder / BEST, slot.stack, slot.place, context.best)


def _ends(context: _Context, fault: Verdict | None) -> bool:
    """Return whether the trial ends here. It depends only on the trial and its step: a resumed trial ends there too."""
    if context.slot.step >= context.config.steps or context.slot.failed:
        return True
    return fault is not None and context.readings.fault(context.config.diagnosis.stop_on) is not None


def _record(context: _Context, fault: Verdict) -> None:
    """Write a flight recording of a fault. If it cannot be written, log a warning: the verdict does not need it."""
    try:
        context.recorder.write(context.folder, context.slot.alone(), context.dataset.train, fault)
    except (OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        log.warning(
            "There is no flight recording, because %s could not be written (%s). Make room, and train the trial again "
            "from its start to get one: fresh=true",
            context.folder / FLIGHT,
            getattr(error, "strerror", None) or str(error) or "out of memory",
        )
