"""The training step of a stack: gradients, signals, the check of finiteness, and AdamW."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stability.core.device import to_device
from stability.data.records import Split
from stability.diagnosis.signals import EXPENSIVE_EVERY, MOST_UTTERANCES, signals_of
from stability.diagnosis.table import Table
from stability.engine import measure
from stability.engine.gradients import forward_backward
from stability.engine.memory import ignore_out_of_memory
from stability.engine.optimizer import adamw_step, clip_coefficients, gradient_norms
from stability.engine.schedule import learning_rates
from stability.engine.stack import Stack

_GROWTH_INTERVAL = 2000  # fp16: steps without an overflow after which the loss scale doubles


def train_steps(stack: Stack, split: Split, count: int) -> list[Table]:
    """Train every trial of the stack up to `count` steps further. The host waits for the device once, at the end.

    If a step fails, return the signals of the steps before it; the next call meets the error again.

    Returns:
        The signals of each trial, in the order of the stack, one row a step.

    Raises:
        Exception: The first of these steps failed. The stack is as it was before.
    """
    rows: list[dict[str, Tensor]] = []
    for _ in range(count):
        try:
            rows.append(_train_step(stack, split))
        except Exception:
            # The steps before are made: without their rows, the weights would be ahead of the file of signals. A step
            # that fails changes nothing, so the next call repeats it as its first, and raises if it fails again.
            if not rows:
                raise
            break
    return _tables(stack, rows)


def _train_step(stack: Stack, split: Split) -> dict[str, Tensor]:
    """Train every trial one step further, and return its signals (K,), on the device."""
    configs, device = stack.configs, stack.device
    inputs, logits, _, loss, loss_per_label, gradients = forward_backward(stack, split)
    norms = {name: norm / stack.loss_scale for name, norm in gradient_norms(gradients).items()}
    signals = {"loss": loss, "loss_per_label": loss_per_label} | measure.norms_by_part(norms)
    norm = signals["grad_norm"]
    limit = torch.tensor([torch.inf if c.optimizer.clip_norm is None else c.optimizer.clip_norm for c in configs])
    limit = to_device(limit, device)
    signals["loss_scale"] = stack.loss_scale
    # This fault of public code can be configured: it forgets to unscale the gradients before the clip.
    clipped_norm = norm * stack.loss_scale if configs[0].precision.clip_before_unscale else norm
    coefficients = clip_coefficients(clipped_norm, limit)
    signals["clipped"] = (clipped_norm > limit).float()
    frames, label_counts = to_device(inputs.frames, device), to_device(inputs.label_counts, device)
    signals |= measure.output_signals(logits, frames)
    signals["input_max"] = measure.input_max(inputs.x)
    signals["infeasible_targets"] = measure.infeasible_targets(inputs.labels, label_counts, frames).sum(1).float()
    signals["labels"] = label_counts.float().mean(1)

    finiteness = _check_finiteness(stack, loss, norm)
    signals["applied_norm"] = torch.where(finiteness.skip > 0, 0, norm * coefficients)
    rates = [learning_rates(c.schedule, step) for c, step in zip(configs, stack.steps, strict=True)]
    signals["lr"] = to_device(torch.tensor([rate for rate, _ in rates]), device)
    expensive = any(step % EXPENSIVE_EVERY == 0 for step in stack.steps)
    if expensive:
        signals["frame_information"] = measure.frame_information(logits, frames)
        signals["different_utterances"] = torch.full_like(norm, min(len(split.records), MOST_UTTERANCES))
    before = {n: p.clone() for n, p in stack.parameters.items()} if expensive else {}
    optimizers = [c.optimizer for c in configs]
    # Nothing of the stack has changed so far. If memory runs out before or in AdamW, the step can be repeated.
    adamw_step(
        stack.parameters,
        stack.moments,
        gradients,
        days=inputs.days,
        settings=optimizers,
        rates=rates,
        divisors=stack.loss_scale / coefficients,
        skip=finiteness.skip,
    )
    stack.failed, stack.loss_scale = finiteness.failed, finiteness.loss_scale
    stack.steps_since_overflow = finiteness.steps_since_overflow
    stack.steps = [step + 1 for step in stack.steps]
    if expensive:
        # The step is made. If there is no memory to measure it, these signals are missing, but no row is lost.
        with ignore_out_of_memory():
            signals |= measure.update_signals(before, stack.parameters)
            signals |= measure.epsilon_signals(stack.moments, optimizers, [rate for rate, _ in rates])
    return signals


class _Finiteness(NamedTuple):
    """Which trials must not be stepped, and what else the finiteness of loss and gradients changes."""

    skip: Tensor  # (K,) 1.0 if the trial must not be stepped
    failed: Tensor  # (K,) `Stack.failed` after the step
    loss_scale: Tensor  # (K,) the same
    steps_since_overflow: Tensor  # (K,) the same


def _check_finiteness(stack: Stack, loss: Tensor, norm: Tensor) -> _Finiteness:
    """Check loss and gradient norm (K,) of each trial before its update, on the device."""
    finite = loss.isfinite() & norm.isfinite()
    # In fp16 a gradient overflows now and then. It is a fault only if the loss scale cannot become smaller.
    overflow = loss.isfinite() & ~norm.isfinite() & (stack.loss_scale > 1)
    failed = torch.maximum(stack.failed, (~finite & ~overflow).float())
    # All state of a failed trial stays as it was before the step that failed.
    going_on = failed == 0
    overflow &= going_on
    scale, since_overflow = stack.loss_scale, torch.where(overflow, 0, stack.steps_since_overflow + going_on)
    if stack.precision == "fp16":
        grow = going_on & (since_overflow > 0) & (since_overflow % _GROWTH_INTERVAL == 0)
        scale = torch.where(overflow, scale / 2, scale)
        scale = torch.where(grow, scale * 2, scale)
    return _Finiteness(torch.maximum(failed, overflow.float()), failed, scale, since_overflow)


def _tables(stack: Stack, rows: list[dict[str, Tensor]]) -> list[Table]:
    """Fetch the signals of the steps that a stack has just made, in one transfer. Return a table for each trial."""
    signals = signals_of(stack.configs[0].model.layers)
    names = tuple(signal.name for signal in signals)
    missing = torch.full_like(stack.failed, torch.nan)
    columns = [torch.stack([row.get(name, missing) for row in rows]) for name in names]
    values = torch.stack(columns, 2).transpose(0, 1).cpu().numpy()  # (K, steps, names)
    steps = np.array(stack.steps)[:, None] + np.arange(-len(rows), 0)  # (K, steps)
    # An expensive signal is computed for the whole stack if it is due in one of its trials. The others leave it out, so
    # that a trial has the same signals alone and in any stack.
    measured = steps[..., None] % [signal.every for signal in signals] == 0
    measured &= np.array([[name in row for name in names] for row in rows])
    values[~measured] = np.nan
    return [Table(names, *of_trial) for of_trial in zip(steps, values, measured, strict=True)]
