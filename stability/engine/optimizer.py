"""AdamW and gradient clipping along the trial axis.

There are three groups, as in the official trainer: biases (without weight decay), day layers (with their own learning
rate and weight decay), and the rest. The layer of a day is stepped only when the day is in the batch, and counts its
own steps: the official trainer leaves the gradients of the other days at None, and PyTorch's AdamW skips those.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from stability.config.schema import Optimizer
from stability.engine.decoder import Parameters

DAY_LAYER = ("day_weights", "day_biases")


class Moments(NamedTuple):
    """AdamW's state by parameter. Step counts are float32, (K,), or (K, days) for the day layers."""

    first: Parameters
    second: Parameters
    steps: Parameters


def zero_moments(parameters: Parameters) -> Moments:
    """Return the state of AdamW before the first step."""
    first, second = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    steps = {n: torch.zeros(p.shape[: 2 if n in DAY_LAYER else 1], device=p.device) for n, p in parameters.items()}
    return Moments(first, second, steps)


def group_of(name: str) -> str:
    """Return the official name of a parameter's group: bias, day_layer or other."""
    if name in DAY_LAYER:
        return "day_layer"
    return "bias" if name == "out.bias" or name.startswith("gru.bias") else "other"


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute each trial's gradient norms by parameter, {name: (K,)}; not finite if the gradient is not."""
    return {name: torch.linalg.vector_norm(g.flatten(1), dim=1) for name, g in gradients.items()}


def clip_coefficients(norm: Tensor, limit: Tensor) -> Tensor:
    """Compute the factor (K,) that reduces each trial's gradient norm (K,) to its limit (K,); inf means no limit."""
    return (limit / (norm + 1e-6)).clamp(max=1.0)  # the 1e-6 is clip_grad_norm_'s


def adamw_step(
    parameters: Parameters,
    moments: Moments,
    gradients: Mapping[str, Tensor],
    days: Sequence[Sequence[int]],
    settings: Sequence[Optimizer],
    rates: Sequence[tuple[float, float]],
    divisors: Tensor,
    skip: Tensor,
) -> None:
    """Make one AdamW step of every trial, in place. If it raises, no trial has been stepped.

    Args:
        parameters: The weights (K, ...).
        moments: The state of AdamW.
        gradients: Like the parameters, except for the day layers, which are (K, D, ...), of the days in the batch.
        days: (K, D) the days in the batch of each trial.
        settings: The optimizer settings of each trial.
        rates: The learning rate of each trial, and that of its day layers.
        divisors: (K,) by which gradients are divided first: loss scale over clip coefficient.
        skip: (K,) 1.0 for a trial that stays as it is. Only with `fused=false` does the host wait to read it.
    """
    updates = []
    for k, (optimizer, (rate, day_rate)) in enumerate(zip(settings, rates, strict=True)):
        hyper = {
            "day_layer": (day_rate, optimizer.weight_decay_day),
            "bias": (rate, 0.0),
            "other": (rate, optimizer.weight_decay),
        }
        members: dict[tuple[float, float], list[tuple[Tensor, ...]]] = {h: [] for h in hyper.values()}
        for name, gradient in gradients.items():
            state = [kind[name][k] for kind in (parameters, *moments)]
            group = members[hyper[group_of(name)]]
            if name in DAY_LAYER:
                group += [(gradient[k, i], *(s[day] for s in state)) for i, day in enumerate(days[k])]
            else:
                group.append((gradient[k], *state))
        for (lr, weight_decay), tensors in members.items():
            if tensors:
                updates.append(
                    _adamw(tensors, optimizer, lr=lr, weight_decay=weight_decay, divisor=divisors[k], skip=skip[k])
                )
    for update in updates:
        update()


def _adamw(
    tensors: list[tuple[Tensor, ...]],
    optimizer: Optimizer,
    *,
    lr: float,
    weight_decay: float,
    divisor: Tensor,
    skip: Tensor,
) -> Callable[[], object]:
    """Do the part of a step that needs memory and may fail. Return a function that does the rest."""
    gradients, *state = (list(t) for t in zip(*tensors, strict=True))
    gradients = [g.contiguous() for g in gradients]  # the fused kernel ignores strides
    if not optimizer.fused:
        if skip:
            return lambda: None
        gradients = [g / divisor for g in gradients]
    own = state if optimizer.fused else [[t.clone() for t in kind] for kind in state]
    parameters, first, second, steps = own
    step = partial(
        adamw,
        parameters,
        gradients,
        first,
        second,
        [],
        steps,
        foreach=not optimizer.fused,
        fused=optimizer.fused,
        grad_scale=divisor if optimizer.fused else None,
        found_inf=skip if optimizer.fused else None,
        amsgrad=False,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=optimizer.epsilon,
        maximize=False,
    )
    if optimizer.fused:
        return step
    step()
    return partial(torch._foreach_copy_, [t for kind in state for t in kind], [t for kind in own for t in kind])
