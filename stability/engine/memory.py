"""Memory: keeps what was freed for the next step, measures what is used and free, and recognises that it ran out."""

import ctypes
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's names for its settings
_NEVER = 2**31 - 1
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # on a CPU, on CUDA, in CUDA's libraries


def prepare_process() -> None:
    """Set up this process for training: flush denormals to zero, keep freed memory, and compute fp32 as fp32 on a GPU.

    Call it before CUDA starts, which reads some of the settings only then. A second call changes nothing.
    """
    # The gradients of a trial that outputs only blank sink into denormals, which a CPU multiplies far more slowly.
    torch.set_flush_denormal(True)
    # By default cuDNN rounds its operands to ten bits (TF32); PyTorch's own products do so only on request.
    with warnings.catch_warnings(action="ignore"):  # the setting has a newer name in some versions, which warn
        torch.backends.cudnn.allow_tf32 = False
    # The same sums in the same order at every run. cuBLAS wants this much workspace for it.
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Batches and stacks of many sizes leave gaps between them, unless the allocator can move the ends of its segments.
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        is_new = hasattr(torch._C, "_accelerator_setAllocatorSettings")  # the old name then brings a warning
        os.environ["PYTORCH_ALLOC_CONF" if is_new else "PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    # glibc returns the memory of a freed large tensor to the system. The next step then pays a page fault for each page
    # that it gets again.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def reset_peak_memory() -> int:
    """Reset what `peak_memory` returns, and return how many bytes of memory the process uses now."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # freed memory that the process kept would hide how much the next step needs
    with suppress(OSError):  # only Linux can reset it; elsewhere the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")
    import psutil  # late: it is of the extra `train`, and a Monitor imports this module with the kernels

    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Return the largest number of bytes of memory that the process has used since `reset_peak_memory`."""
    with suppress(OSError, KeyError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Return the free memory in bytes: of the machine, or of the process's container or job if that has less."""
    import psutil

    free, root = int(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    with suppress(OSError):  # other systems have no control groups
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            group = root / line.rpartition(":")[2].strip("/")
            for outer in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file, or no limit: "max"
                    limit, used = (int((outer / f"memory.{name}").read_text()) for name in ("max", "current"))
                    stat = dict(entry.split() for entry in (outer / "memory.stat").read_text().splitlines())
                    free = min(free, limit - used + int(stat["inactive_file"]))  # cached files make room
    return max(0, free)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error means that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in _OUT_OF_MEMORY)


@contextmanager
def ignore_out_of_memory() -> Iterator[None]:
    """Leave the body without an error if memory runs out in it; other errors are raised."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
