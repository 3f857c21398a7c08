"""Compiles the kernels in C for the processor of this machine, when they are first needed, and keeps the result."""

import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from ctypes import CDLL, c_int64
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("vectors.h", "gru.c", "ctc.c")]
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


def threads() -> tuple[Any, int]:
    """Return libgomp's function that runs another on all of PyTorch's own threads, and the number of these threads.

    PyTorch's threads are awake between its operations; threads of our own would have to be woken for each call. Without
    libgomp in the process the function is None, and the kernels run on one thread: the same results, slower.
    """
    parallel = _parallel()
    return parallel, torch.get_num_threads() if parallel else 1


@cache
def _parallel() -> Any:
    return getattr(CDLL(None), "GOMP_parallel", None)


@cache
def compiled() -> Any:
    """Return the library of compiled kernels. If it cannot be compiled, warn once and return None."""
    parts = [*(source.read_bytes() for source in _SOURCES), *map(str.encode, _FLAGS), _processor()]
    kind = hashlib.sha256(b"\0".join(parts)).hexdigest()
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stability"
        path = folder / f"kernels-{kind[:16]}.so"
        if not path.exists():
            _compile(path)
        library = CDLL(str(path))
        library.ctc_scratch.restype = c_int64
        return library
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home folder
        reason = (isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()) or error
        log.warning(
            "The kernels in C for the GRU and CTC were not compiled (%s). PyTorch's operations replace them and take "
            "at least twice as long. Install a C compiler, or name one in CC; the result is kept in XDG_CACHE_HOME.",
            reason,
        )
        return None


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # another process may compile at the same time
        compiled_file = Path(folder) / path.name
        command = [os.environ.get("CC") or "cc", *_FLAGS, "-o", str(compiled_file), *map(str, _SOURCES[1:]), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        compiled_file.replace(path)


def _processor() -> bytes:
    """Describe the processor, on which `-march=native` depends. Machines of different kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU"))})
    )
