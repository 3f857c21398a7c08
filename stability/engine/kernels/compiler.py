"""The kernels in C, which the machine's compiler makes for its own processor when they are first needed."""

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
    """What runs a function on PyTorch's own threads, which are awake, and how many: others would have to be woken."""
    parallel = _parallel()
    return parallel, torch.get_num_threads() if parallel else 1


@cache
def _parallel() -> Any:
    return getattr(CDLL(None), "GOMP_parallel", None)


@cache
def compiled() -> Any:
    """The compiled kernels. None where there is no compiler, which is said once."""
    parts = [*(source.read_bytes() for source in _SOURCES), *map(str.encode, _FLAGS), _processor()]
    kind = hashlib.sha256(b"\0".join(parts)).hexdigest()
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stability"
        path = folder / f"kernels-{kind[:16]}.so"
        if not path.exists():
            _compile(path)
        made = CDLL(str(path))
        made.ctc_scratch.restype = c_int64
        return made
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home
        said = (isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()) or error
        log.warning(
            "The GRU's loop over frames and CTC were not compiled, and take twice as long or longer by PyTorch's "
            "operations: install a C compiler, or name one in CC; XDG_CACHE_HOME says where the result is kept. "
            "What went wrong: %s",
            said,
        )
        return None


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # another process may be doing the same
        made = Path(folder) / path.name
        command = [os.environ.get("CC") or "cc", *_FLAGS, "-o", str(made), *map(str, _SOURCES[1:]), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(path)


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU"))})
    )
