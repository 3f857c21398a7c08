"""The frame loops of `gru.c`, which the machine's C compiler makes for its own processor when they are first needed."""

import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("gru.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


def applies(x: Tensor, units: int) -> bool:
    """Whether a layer of so many units can be run by this, on an input such as x."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and _library() is not None and units % (2 * _library().width()) == 0


def forward(gates: Tensor, biases: Tensor, h0: Tensor, w_hh: Tensor, counts: Sequence[int]) -> Tensor:
    """What `recurrent.forward_loop` does."""
    k, units, width = len(gates), h0.shape[-1], _library().width()
    weights = w_hh.view(k, 3, units // width, width, units).permute(0, 2, 4, 1, 3).contiguous()
    states = gates.new_empty(*gates.shape[:2], units)
    _in_shares(_library().forward, counts, h0, (weights, biases, gates, states))
    return states


def backward(
    gates: Tensor, states: Tensor, h0: Tensor, w_hh: Tensor, d_states: Tensor, counts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `recurrent.backward_loop` does."""
    k, units, width = len(gates), h0.shape[-1], 2 * _library().width()
    weights = w_hh.view(k, 3 * units, units // width, width).transpose(1, 2).contiguous()
    befores, d_gates, d_h0 = torch.empty_like(states), torch.empty_like(gates), torch.zeros_like(h0)
    _in_shares(_library().backward, counts, h0, (weights, gates, states, d_states.contiguous(), befores, d_gates, d_h0))
    return befores, d_gates, d_h0


def _in_shares(function: Any, counts: Sequence[int], h0: Tensor, tensors: Sequence[Tensor]) -> None:
    """Call it on PyTorch's own threads, which are awake: others would have to be woken for every layer."""
    parallel, (k, _, units) = _parallel(), h0.shape
    threads = torch.get_num_threads() if parallel else 1
    pointers = [c_void_p(t.data_ptr()) for t in (h0, *tensors)]
    function(parallel, threads, k, len(counts), (c_int64 * len(counts))(*counts), units, *pointers)


@cache
def _parallel() -> Any:
    return getattr(CDLL(None), "GOMP_parallel", None)


@cache
def _library() -> Any:
    """The compiled loops. None where there is no compiler, which is said once."""
    kind = hashlib.sha256(b"\0".join([_SOURCE.read_bytes(), *map(str.encode, _FLAGS), _processor()])).hexdigest()
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stability"
        path = folder / f"gru-{kind[:16]}.so"
        if not path.exists():
            _compile(path)
        return CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home
        said = (isinstance(error, subprocess.CalledProcessError) and error.stderr.strip()) or error
        log.warning(
            "The GRU's loop over frames was not compiled, and takes twice as long by PyTorch's operations: install a C "
            "compiler, or name one in CC; XDG_CACHE_HOME says where the result is kept. What went wrong: %s",
            said,
        )
        return None


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # another process may be doing the same
        made = Path(folder) / path.name
        command = [os.environ.get("CC") or "cc", *_FLAGS, "-o", str(made), str(_SOURCE)]
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
