"""What the machine has to be told before it trains, and how much memory it has for that."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's names for its settings
_NEVER = 2**31 - 1
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # on a CPU, on CUDA, in CUDA's libraries


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


def begin_peak() -> int:
    """Return the bytes of memory that the process uses, and have `peak` count from here."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # kept memory would hide what is needed anew
    with suppress(OSError):  # Linux alone has it; elsewhere the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes of memory that the process has used since `begin_peak`."""
    with suppress(OSError, KeyError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Bytes of memory that the machine has left, or the container or job that the process is in."""
    free, root = int(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    with suppress(OSError):  # other systems have no groups
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            group = root / line.rpartition(":")[2].strip("/")
            for outer in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file, or no limit: "max"
                    limit, used = (int((outer / f"memory.{name}").read_text()) for name in ("max", "current"))
                    stat = dict(entry.split() for entry in (outer / "memory.stat").read_text().splitlines())
                    free = min(free, limit - used + int(stat["inactive_file"]))  # cached files make room
    return max(0, free)


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in _OUT_OF_MEMORY)


@contextmanager
def if_memory_allows() -> Iterator[None]:
    """What is done under this ends without an error where there is no memory for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
