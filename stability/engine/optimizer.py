"""AdamW and gradient clipping along the trial axis.

Three groups, as in the official trainer: biases (never decayed), day layers (a learning rate and decay of their
own), and the rest. A day's layer is stepped only when the day is in the batch, with a step count of its own: the
official trainer leaves the other days' gradients at None, and PyTorch's AdamW passes over those.
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
    """The state before the first step."""
    first, second = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    steps = {n: torch.zeros(p.shape[: 2 if n in DAY_LAYER else 1], device=p.device) for n, p in parameters.items()}
    return Moments(first, second, steps)


def group_of(name: str) -> str:
    """The parameter group, under the official name: bias, day_layer or other."""
    if name in DAY_LAYER:
        return "day_layer"
    return "bias" if name == "out.bias" or name.startswith("gru.bias") else "other"


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of each trial's gradient, by parameter: {name: (K,)}. Not finite where the gradient is not."""
    return {name: torch.linalg.vector_norm(g.flatten(1), dim=1) for name, g in gradients.items()}


def clip_coefficients(norm: Tensor, limit: Tensor) -> Tensor:
    """The factor (K,) that brings each trial's gradient of that norm down to its limit (inf: never clipped)."""
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
    """One step of every trial, in place.

    gradients: like the parameters, but the day layers' are (K, D, ...), of the D days that `days` lists a trial.
    rates: each trial's learning rate and its day layers' one. A trial's gradient is divided by its divisor (K,)
    first (the loss scale over the clip coefficient). Where skip (K,) is 1.0 nothing changes, and no host waits
    for that, unless `fused` is off. Where it raises, no trial is stepped.
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
                updates.append(_adamw(tensors, optimizer, lr, weight_decay, divisors[k], skip[k]))
    for update in updates:
        update()


def _adamw(
    tensors: list[tuple[Tensor, ...]],
    optimizer: Optimizer,
    lr: float,
    weight_decay: float,
    divisor: Tensor,
    skip: Tensor,
) -> Callable[[], object]:
    """Do what needs memory and may fail of a step, and return the rest of it."""
    gradients, *state = (list(t) for t in zip(*tensors, strict=True))
    gradients = [g.contiguous() for g in gradients]  # the fused kernel takes memory as it lies, whatever the strides
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
