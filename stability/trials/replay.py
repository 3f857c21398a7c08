"""Repeats a recorded step in the trial's own precision, in fp32 and in fp64, to find out what kind of fault it was."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException

from stability.config.hydra import read_config, resolve_config
from stability.config.schema import Config
from stability.core.device import choose_device
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, FLIGHT_STATE, SIGNALS_FILE, VALIDATION_FILE
from stability.core.text import printable
from stability.data.batches import training_batch
from stability.data.records import Split
from stability.diagnosis.history import History
from stability.diagnosis.judge import stopping_verdict
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import FATAL
from stability.engine.decoder import init_parameters
from stability.engine.gradients import examine
from stability.engine.memory import prepare_process
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials import checkpoint
from stability.trials.capacity import in_micro_batches
from stability.trials.recorder import Flight, hash_batch, read_flight
from stability.trials.setup import open_data

Kind = Literal["transient", "precision", "true fault"]

_LATER = 50  # steps after the recorded detection up to which the fault may be detected again


@dataclass(frozen=True)
class Attempt:
    """The step repeated in one precision.

    Attributes:
        not_finite: The first module in forward order, or gradient in backward order, whose numbers are not finite.
        bad_rows: Rows of the batch whose own loss is not finite.
    """

    fails: bool
    loss: float
    grad_norm: float
    not_finite: str | None
    bad_rows: frozenset[int]


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        flight: The recording.
        device: The kind of device on which the step was repeated.
        recorded_loss: The loss that the trial recorded for this step.
        recorded_grad_norm: The gradient norm that it recorded.
        attempts: {precision: attempt}, the trial's own precision first.
    """

    flight: Flight
    device: str
    recorded_loss: float
    recorded_grad_norm: float
    attempts: dict[str, Attempt]

    @property
    def kind(self) -> Kind:
        """The kind of fault: it does not fail again, it fails in narrow precisions only, or in all of them."""
        fails = [attempt.fails for attempt in self.attempts.values()]
        if not fails[0]:
            return "transient"
        return "true fault" if all(fails) else "precision"


def replay(folder: Path, device_name: str) -> Replay:
    """Repeat the recorded step of a failed trial.

    Args:
        folder: The trial's folder, with its `flight/`.
        device_name: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        An attempt for each precision: the trial's own, fp32 and fp64.

    Raises:
        StabilityError: There is no recording, or the data or the configuration are no longer those of the trial.
    """
    flight = read_flight(folder)
    device = choose_device(device_name)
    prepare_process()  # as in training
    config = _configuration(folder, flight)
    dataset = open_data(config, device)
    batch = training_batch(dataset.train, config.batch.size, config.batch.days, seed=config.seed, step=flight.step)
    if hash_batch(batch) != flight.batch_hash:
        raise StabilityError(
            f"The data in {flight.data} have changed: the batch of step {flight.step} is not the recorded one. "
            "Restore the data, or train the trial again from its start: fresh=true"
        )
    signals = read_table(folder / SIGNALS_FILE)
    if flight.detected_step not in signals.steps or not {"loss", "grad_norm"} <= {*signals.names}:
        raise StabilityError(
            f"{folder / SIGNALS_FILE} does not reach step {flight.detected_step} with loss and grad_norm. Train the "
            "trial from its start: fresh=true"
        )
    # fp64 draws the same noise as fp32. The fused step would divide its gradients in float32.
    own = replace(config, precision=replace(config.precision, dtype=flight.precision))
    single = replace(config, precision=replace(config.precision, dtype="fp32"))
    double = replace(single, optimizer=replace(config.optimizer, fused=False))
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    attempts = {}
    validation = read_table(folder / VALIDATION_FILE)
    for precision, changed in {flight.precision: own, "fp32": single, "fp64": double}.items():
        dtype = torch.float64 if precision == "fp64" else torch.float32
        stack = new_stack([changed], [{name: p.to(dtype) for name, p in parameters.items()}], device)
        checkpoint.restore(folder / FLIGHT_STATE, stack, 0)
        if precision != "fp16":
            stack.loss_scale.fill_(1)
        attempts[precision] = _attempt(stack, dataset.train, flight, signals=signals, validation=validation)
    row = int(np.searchsorted(signals.steps, flight.step))
    return Replay(
        flight=flight,
        device=device.type,
        recorded_loss=float(signals["loss"][row]),
        recorded_grad_norm=float(signals["grad_norm"][row]),
        attempts=attempts,
    )


def _configuration(folder: Path, flight: Flight) -> Config:
    """The trial's configuration, with the path at which its data were found."""
    path = folder / CONFIG
    try:
        config = resolve_config(read_config(path))
    except (ValueError, TypeError, OmegaConfBaseException, StabilityError) as error:
        reason = str(error).partition("\n")[0]
        raise StabilityError(
            f"{path} cannot be read as a trial's configuration ({printable(reason)}). If another version of the "
            "program wrote it, replay it with that version, or train the trial again from its start: fresh=true"
        ) from None
    # The folder may be somebody else's: nothing is written to a place that only its configuration names.
    home = folder.resolve()
    outputs = config.outputs if Path(config.outputs).resolve() in home.parents[:2] else str(home)
    return replace(config, outputs=outputs, data=replace(config.data, path=flight.data, synthetic=None))


def _attempt(stack: Stack, split: Split, flight: Flight, *, signals: Table, validation: Table) -> Attempt:
    """Repeat the recorded step, and the steps up to the detection, with a stack in the state before them."""
    examined = in_micro_batches(stack, lambda: examine(stack, split))  # fp64 needs twice the trial's memory
    fatal = flight.outcome in FATAL
    # In another precision, growth may be detected some steps earlier or later.
    last = flight.detected_step if fatal else min(flight.detected_step + _LATER, int(signals.steps[-1]))
    past = signals.steps < flight.step
    history = History()
    history.append(signals.take(past))
    tables: list[Table] = []
    while stack.step <= last:
        tables += in_micro_batches(stack, lambda: train_steps(stack, split, last + 1 - stack.step))
        with np.errstate(over="ignore"):  # a number of fp64 beyond float32 becomes infinite
            history.append(tables[-1])
    fault = stopping_verdict(history.table(), validation, FATAL if fatal else [flight.outcome])
    loss, norm = float(tables[0]["loss"][0]), float(tables[0]["grad_norm"][0])
    place = next(iter(examined.not_finite), None if math.isfinite(norm) else "gradient norm, of finite gradients")
    bad_rows = frozenset(torch.nonzero(~examined.nll.isfinite()).flatten().tolist())
    return Attempt(fails=fault is not None, loss=loss, grad_norm=norm, not_finite=place, bad_rows=bad_rows)
