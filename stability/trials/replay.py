"""Makes a recorded step again, in the trial's own precision, in fp32 and in fp64, to tell what kind of fault it was."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from stability.config.hydra import resolve_config
from stability.config.schema import Config
from stability.core.device import choose_device
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, FLIGHT_STATE
from stability.data.batches import training_batch
from stability.data.records import Split
from stability.diagnosis.history import History
from stability.diagnosis.table import SIGNALS_FILE, VALIDATION_FILE, Table, read_table
from stability.diagnosis.verdict import FATAL, stopped
from stability.engine.decoder import init_parameters
from stability.engine.gradients import examine
from stability.engine.memory import prepare_process
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials import checkpoint
from stability.trials.recorder import Flight, hash_of, read_flight
from stability.trials.run import open_data
from stability.trials.scheduler import in_parts

Kind = Literal["transient", "precision", "true fault"]

_LATER = 50  # steps


@dataclass(frozen=True)
class Attempt:
    """The step made once more."""

    fails: bool
    loss: float
    grad_norm: float
    not_finite: str | None  # the first module in forward order, or gradient in backward order
    bad_rows: frozenset[int]  # utterances whose own loss is not finite


@dataclass(frozen=True)
class Replay:
    """What came of it. Attempts are by precision, the trial's own first."""

    flight: Flight
    device: str
    recorded_loss: float
    recorded_grad_norm: float
    attempts: dict[str, Attempt]

    @property
    def kind(self) -> Kind:
        """What kind of fault it was."""
        own, *_ = fails = [attempt.fails for attempt in self.attempts.values()]
        return "transient" if not own else "true fault" if all(fails) else "precision"


def replay(folder: Path, device_name: str) -> Replay:
    """Make the recorded step of a trial's folder again. Raises StabilityError where that cannot be.

    device_name: auto, cpu, cuda or cuda:N.
    """
    flight = read_flight(folder)
    device = choose_device(device_name)
    prepare_process()  # as in training
    config = _configuration(folder, flight)
    dataset = open_data(config)
    batch = training_batch(dataset.train, config.batch.size, config.batch.days, seed=config.seed, step=flight.step)
    if hash_of(batch) != flight.batch_hash:
        raise StabilityError(
            f"The data in {flight.data} have changed since: its batch of step {flight.step} is not the recorded one. "
            "Put the data back as they were, or train the trial anew: fresh=true"
        )
    signals = read_table(folder / SIGNALS_FILE)
    if flight.step not in signals.steps:
        raise StabilityError(
            f"{folder / SIGNALS_FILE} does not reach step {flight.step}. Train the trial anew: fresh=true"
        )
    # The noise is the same in fp64 and all else is wider. The fused step divides gradients in float32.
    own = replace(config, precision=replace(config.precision, dtype=flight.precision))
    single = replace(config, precision=replace(config.precision, dtype="fp32"))
    double = replace(single, optimizer=replace(config.optimizer, fused=False))
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    attempts = {}
    for precision, how in {flight.precision: own, "fp32": single, "fp64": double}.items():
        dtype = torch.float64 if precision == "fp64" else torch.float32
        stack = new_stack([how], [{name: p.to(dtype) for name, p in parameters.items()}], device)
        checkpoint.restore(folder / FLIGHT_STATE, stack, 0)
        if precision != "fp16":
            stack.loss_scale.fill_(1)
        attempts[precision] = _attempt(stack, dataset.train, flight, signals, read_table(folder / VALIDATION_FILE))
    at = int(np.searchsorted(signals.steps, flight.step))
    return Replay(flight, device.type, float(signals["loss"][at]), float(signals["grad_norm"][at]), attempts)


def _configuration(folder: Path, flight: Flight) -> Config:
    """The trial's, but with its data where they were found."""
    path = folder / CONFIG
    try:
        config = resolve_config(DictConfig(OmegaConf.load(path)))
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException, StabilityError) as error:
        reason = str(error).partition("\n")[0]
        raise StabilityError(
            f"{path} cannot be read as a trial's configuration ({reason}). If another version of the program wrote it, "
            "replay it with that version, or train the trial anew: fresh=true"
        ) from None
    return replace(config, data=replace(config.data, path=flight.data, synthetic=None))


def _attempt(stack: Stack, split: Split, flight: Flight, signals: Table, validation: Table) -> Attempt:
    seen = in_parts(stack, lambda: examine(stack, split))  # fp64 needs twice the memory that the trial had
    fatal = flight.outcome in FATAL
    # What grows may be seen some steps sooner or later in another precision.
    last = flight.detected_step if fatal else min(flight.detected_step + _LATER, int(signals.steps[-1]))
    past = signals.steps < flight.step
    history = History()
    history.append(signals.take(past))
    made: list[Table] = []
    while stack.step <= last:
        made += in_parts(stack, lambda: train_steps(stack, split, last + 1 - stack.step))
        history.append(made[-1])
    fault = stopped(history.table(), validation, FATAL if fatal else [flight.outcome])
    loss, norm = float(made[0]["loss"][0]), float(made[0]["grad_norm"][0])
    place = next(iter(seen.not_finite), None if math.isfinite(norm) else "gradient norm, of finite gradients")
    bad_rows = frozenset(torch.nonzero(~seen.nll.isfinite()).flatten().tolist())
    return Attempt(fault is not None, loss, norm, place, bad_rows)
