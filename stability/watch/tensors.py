"""Norms of tensors, whether they are finite, and their way from a GPU to the host."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor


def whole_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors."""
    whole: Tensor = torch.linalg.vector_norm(norms_of(tensors))
    return whole


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the Euclidean norm of each, in one pass, as PyTorch's clip does. Half precision would overflow."""
    if not tensors:
        return torch.zeros(0)
    wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
    norms = [*torch._foreach_norm(wide)]
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    return torch.stack(norms).float()


def norms_by_part(parameters: Sequence[str], norms: Sequence[float]) -> dict[str, float]:
    """Return the norm of the whole gradient, and that of each child of the model, from those of the parameters."""
    squares: dict[str, float] = {}
    for name, norm in zip(parameters, norms, strict=False):
        part = name.partition(".")[0]
        squares[part] = squares.get(part, 0.0) + norm * norm
    parts = {f"grad_norm.{part}": math.sqrt(square) for part, square in squares.items()}
    return {"grad_norm": math.sqrt(sum(squares.values())), **parts} if parts else {}


def to_host(values: Sequence[Tensor | float]) -> list[float]:
    """Return all numbers of some tensors, those on a GPU in one transfer."""
    on_gpu = [value.float().flatten() for value in values if isinstance(value, Tensor) and not value.is_cpu]
    fetched = iter(torch.cat([value.to(on_gpu[0].device) for value in on_gpu]).tolist() if on_gpu else ())
    numbers: list[float] = []
    for value in values:
        if not isinstance(value, Tensor):
            numbers.append(float(value))
        elif value.is_cpu:
            numbers += map(float, value.flatten().tolist())
        else:
            numbers += islice(fetched, value.numel())
    return numbers


def is_finite(output: Any) -> bool:
    """Return whether all tensors in the output of a module are finite. What holds no tensor is finite."""
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, tuple | list):
        return True
    return all(is_finite(part) for part in output)
