"""A stack: the trials that one loop trains together, in lock-step, and all of their state.

A plain run is a stack of one. Trials can join a stack and leave it between any two steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stability.config.schema import Config
from stability.core.device import DTYPES, Precision, choose_precision
from stability.engine.decoder import Parameters
from stability.engine.engines import choose_engine
from stability.engine.optimizer import Moments, zero_moments
from stability.engine.recurrent import Engine


@dataclass
class Stack:
    """K trials, and all that changes while they are trained. Tensors have a leading trial axis K.

    The trials may differ in optimizer, schedule, augmentation, loss, seed and step, but not in model, batch, precision
    or engine. A trial keeps the precision and the engine that it began with, whatever its company.
    """

    configs: list[Config]
    parameters: Parameters
    moments: Moments
    steps: list[int]  # (K,) the next step of each trial
    failed: Tensor  # (K,) 1.0 once a loss or gradient was not finite: that trial is never stepped again
    loss_scale: Tensor  # (K,) 1 except in fp16
    steps_since_overflow: Tensor  # (K,)
    precision: Precision = field(kw_only=True)  # of the forward pass
    engine: Engine = field(kw_only=True)  # of the GRU layers
    micro_batches: int = field(default=1, kw_only=True)  # parts that a batch is divided into, to save memory

    @property
    def step(self) -> int:
        """The next step of a stack of one."""
        (step,) = self.steps
        return step

    @property
    def arithmetic(self) -> tuple[Precision, Engine]:
        """What the trials of a stack must share, and what a trial keeps for ever."""
        return self.precision, self.engine

    @property
    def state_bytes(self) -> int:
        """The bytes of the weights and of the state of AdamW, of all trials."""
        return sum(t.nbytes for kind in (self.parameters, *self.moments) for t in kind.values())

    @property
    def device(self) -> torch.device:
        """The device that holds all tensors of the stack."""
        return self.failed.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights: float32, or float64 when a recorded step is repeated."""
        return self.parameters["h0"].dtype

    def autocast(self) -> torch.autocast:
        """The context of a forward pass in the precision of the stack."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def new_stack(configs: Sequence[Config], parameters: Sequence[Parameters], device: torch.device) -> Stack:
    """Make a stack of trials before their first step.

    Args:
        configs: One configuration for each trial.
        parameters: The initial weights of each trial, without the trial axis.
        device: The device to train on.

    Raises:
        StabilityError: The device does not support the configured precision.
    """
    stacked = {name: torch.stack([p[name] for p in parameters]).to(device) for name in parameters[0]}
    precision = choose_precision(configs[0].precision.dtype, device)
    scales = [c.precision.initial_loss_scale if precision == "fp16" else 1.0 for c in configs]
    loss_scale = torch.tensor(scales, device=device)
    return Stack(
        configs=list(configs),
        parameters=stacked,
        moments=zero_moments(stacked),
        steps=[0] * len(configs),
        failed=torch.zeros_like(loss_scale),
        loss_scale=loss_scale,
        steps_since_overflow=torch.zeros_like(loss_scale),
        precision=precision,
        engine=choose_engine(device, precision, configs[0].model.units),
    )


def copy_trial(stack: Stack, place: int, device: torch.device) -> Stack:
    """Return a copy of one trial on a device, as a stack of one, without another copy on its way there."""

    def copied(tensors: Parameters) -> Parameters:
        return {name: one(t) for name, t in tensors.items()}

    def one(tensor: Tensor) -> Tensor:
        return tensor[place : place + 1].to(device, copy=True)

    return replace(
        stack,
        configs=[stack.configs[place]],
        parameters=copied(stack.parameters),
        moments=Moments(*map(copied, stack.moments)),
        steps=[stack.steps[place]],
        failed=one(stack.failed),
        loss_scale=one(stack.loss_scale),
        steps_since_overflow=one(stack.steps_since_overflow),
    )


def select(stack: Stack, places: Sequence[int]) -> Stack:
    """Return a copy of the trials at these places of the stack, in this order."""
    index = torch.tensor(places, device=stack.device)

    def selected(tensors: Parameters) -> Parameters:
        return {name: t.index_select(0, index) for name, t in tensors.items()}

    return Stack(
        configs=[stack.configs[k] for k in places],
        parameters=selected(stack.parameters),
        moments=Moments(*map(selected, stack.moments)),
        steps=[stack.steps[k] for k in places],
        failed=stack.failed.index_select(0, index),
        loss_scale=stack.loss_scale.index_select(0, index),
        steps_since_overflow=stack.steps_since_overflow.index_select(0, index),
        precision=stack.precision,
        engine=stack.engine,
        micro_batches=stack.micro_batches,
    )


def join(stacks: Sequence[Stack]) -> Stack:
    """Join the trials of several stacks of the same precision and engine into a new stack, in their order."""
    ((precision, engine),) = {s.arithmetic for s in stacks}

    def joined(tensors: Sequence[Parameters]) -> Parameters:
        return {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}

    return Stack(
        configs=[c for s in stacks for c in s.configs],
        parameters=joined([s.parameters for s in stacks]),
        moments=Moments(*(joined(kind) for kind in zip(*(s.moments for s in stacks), strict=True))),
        steps=[step for s in stacks for step in s.steps],
        failed=torch.cat([s.failed for s in stacks]),
        loss_scale=torch.cat([s.loss_scale for s in stacks]),
        steps_since_overflow=torch.cat([s.steps_since_overflow for s in stacks]),
        precision=precision,
        engine=engine,
        micro_batches=max(s.micro_batches for s in stacks),
    )
