"""The self-test of the Triton kernels. They are compiled for the GPU of this machine, and run on a small case there
before a training depends on them.
"""

import logging
import subprocess
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from stability.engine.memory import is_out_of_memory

log = logging.getLogger(__name__)

# Largest error, as a share of a result's largest entry. TF32, which a user may allow, is off by 5e-4.
_TOLERANCE, _TOLERANCE_IN_HALF = 2e-3, 3e-2
_Kernel = TypeVar("_Kernel")


def kernel_or_fallback(load_kernel: Callable[[], _Kernel], fallback: _Kernel, consequence: str) -> _Kernel:
    """Return the kernel if it can be loaded and passes its self-test, else the fallback.

    Args:
        load_kernel: Imports the kernel, tests it with `check_results`, and returns it.
        fallback: Does the same with PyTorch's operations.
        consequence: What is slower with the fallback, for the warning.

    Raises:
        RuntimeError: Memory ran out. That says nothing about the kernel: whoever asks for it makes room and asks again.
    """
    try:
        # The first caller may be in a validation without gradients, or under autocast; the test must not be.
        # Nor may Triton's warnings of its next version end it, where somebody has made warnings errors.
        with (
            torch.enable_grad(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(action="ignore"),
        ):
            return load_kernel()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        log.warning(
            "%s, because Triton's kernels do not work here: %s%s", consequence, reason.rstrip(".") + ".", _mend(error)
        )
        return fallback


def _mend(error: Exception) -> str:
    """Say what the user can install if Triton cannot compile its own host code, for which it needs a C compiler."""
    if "C compiler" in str(error):
        return " Install gcc or clang, or name a C compiler in CC, and start again."
    if isinstance(error, subprocess.CalledProcessError):
        return " The C compiler failed: install Python's headers (python3-dev on Debian), and start again."
    return ""


def check_results(results: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Compare the results of a kernel with those of PyTorch's operations in float64.

    Raises:
        ArithmeticError: A result is too far off, or NaN.
    """
    for own, other in zip(results, exact, strict=True):
        error = float((own.double() - other).abs().max() / other.abs().max())
        # Written so that NaN fails, too.
        if not error <= (_TOLERANCE if own.dtype == torch.float32 else _TOLERANCE_IN_HALF):
            raise ArithmeticError(f"a result is off by {error:.2g} of its size")
