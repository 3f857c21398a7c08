"""The devices on which a test runs: the CPU always, and a GPU where there is one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=ON_GPU)]


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Raise RuntimeError where the host waits for a GPU in the body of a `with` statement."""
    if device.type == "cpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def memory_limit(device: torch.device, limit: int) -> Iterator[None]:
    """Let PyTorch have no more than so many bytes of a GPU in the body of a `with` statement. A CPU has no limit."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
