"""What the machine has to be told before it trains."""

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's names for its settings
_NEVER = 2**31 - 1


def prepare_host() -> None:
    """Flush denormals to zero, keep freed memory for the next step, and have fp32 mean it on a GPU."""
    # The gradients of a trial that says only blank sink into denormals, which a CPU multiplies far more slowly.
    torch.set_flush_denormal(True)
    # cuDNN would round what it multiplies to ten bits; PyTorch's own products do not unless they are told to.
    torch.backends.cudnn.allow_tf32 = False
    # glibc gives large tensors back to the system when they are freed, and each page costs a fault when it comes again.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
