"""Kernels are compiled for the GPU in hand. Each is tried there on a small case before a training is trusted to it."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_WITHIN, _WITHIN_IN_HALF = 2e-3, 3e-2  # of a result's largest entry; TF32, which a user may allow, is off by 5e-4
_Kernel = TypeVar("_Kernel")


def tried(kernel: Callable[[], _Kernel], otherwise: _Kernel, loss: str) -> _Kernel:
    """What `kernel` returns once it has tried it. Should that raise, the other, and what is lost is said, and why."""
    try:
        # Whatever the step or the validation that needs it first is in.
        with torch.enable_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return kernel()
    except Exception as error:
        log.warning("%s, as Triton's kernels do not work here: %s: %s", loss, type(error).__name__, error)
        return otherwise


def compare(results: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Raises ArithmeticError where results are not what PyTorch's operations give in float64."""
    for own, other in zip(results, exact, strict=True):
        error = float((own.double() - other).abs().max() / other.abs().max())
        if not error <= (_WITHIN if own.dtype == torch.float32 else _WITHIN_IN_HALF):
            raise ArithmeticError(f"a result is off by {error:.2g} of its size")
