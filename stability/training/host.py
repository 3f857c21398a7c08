"""What the machine has to be told for a CPU to train quickly. No result depends on it but by denormals."""

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's names for its settings
_NEVER = 2**31 - 1


def prepare_host() -> None:
    """Flush denormals to zero, and keep freed memory for the next step."""
    # The gradients of a trial that says only blank sink into denormals, which a CPU multiplies far more slowly.
    torch.set_flush_denormal(True)
    # glibc gives large tensors back to the system when they are freed, and each page costs a fault when it comes again.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
