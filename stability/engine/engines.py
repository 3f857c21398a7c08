"""Which engine computes the GRU layers of the trials on a device: measured once, and remembered.

A trial has one engine, whether it is alone or in a stack. So the choice must serve both. On a GPU the loop of our
kernels is chosen if it serves one trial (it takes at most 1.2 times as long as PyTorch's own GRU) or a stack (four
trials together take no longer than one after another in PyTorch's GRU). A CPU always has the loop.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from stability.core.device import DTYPES, Precision
from stability.core.files import cache_folder, write_atomically
from stability.engine.recurrent import Engine, GruWeights, gru_layer

_SLOWER = 1.2  # as many times longer may one trial take by the loop
_STACK = 4  # trials
_ROUNDS = 5
_ROWS, _FRAMES = 64, 60  # of the batch that is timed
_FILE = "engines.json"  # {device, precision, units and versions: engine}


@cache
def choose_engine(device: torch.device, precision: Precision, units: int) -> Engine:
    """Return the engine of the trials that begin on a device. The first call on a kind of GPU takes some seconds.

    Args:
        device: The device.
        precision: The precision of the forward pass.
        units: The units of a GRU layer.

    Raises:
        RuntimeError: Memory ran out while it was measured.
    """
    if device.type == "cpu":
        return "loop"
    kind = f"{torch.cuda.get_device_name(device)}, {precision}, {units} units, PyTorch {torch.__version__}"
    engine = _remembered().get(kind)
    if engine is None:
        loop, library, stack = (
            seconds(name, trials, device, precision, units)
            for name, trials in (("loop", 1), ("library", 1), ("loop", _STACK))
        )
        engine = faster_engine(loop, library, stack)
        _remember(kind, engine)
    return engine


def faster_engine(loop: float, library: float, stack: float) -> Engine:
    """Return the engine that these times speak for.

    Args:
        loop: Seconds of one trial by the loop.
        library: Seconds of one trial by PyTorch's GRU.
        stack: Seconds of four trials together by the loop.
    """
    return "loop" if loop <= _SLOWER * library or stack <= _STACK * library else "library"


def seconds(engine: Engine, trials: int, device: torch.device, precision: Precision, units: int) -> float:
    """Measure how long one layer takes, forward and backward, for some trials together; the median of five rounds."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(_ROWS * _FRAMES, units), (_ROWS, units), (3 * units, units), (3 * units, units), (3 * units,)]
    drawn = [torch.randn(trials, *shape, generator=generator) / units**0.5 for shape in (*shapes, shapes[-1])]
    x, h0, *weights = operands = [v.to(device, DTYPES[precision]).requires_grad_() for v in drawn]
    with torch.enable_grad():
        return _median_seconds(
            lambda: torch.autograd.grad(
                gru_layer(x, h0, GruWeights(*weights), [_ROWS] * _FRAMES, engine).sum(), operands
            ),
            device,
        )


def _median_seconds(work: Callable[[], tuple[Tensor, ...]], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return median(times[1:])  # the first compiles


def _remembered() -> dict[str, Engine]:
    """What was measured before. A file that cannot be read is written again."""
    try:
        content = json.loads((cache_folder() / _FILE).read_text())
        return {kind: engine for kind, engine in content.items() if engine in get_args(Engine)}
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError):
        return {}


def _remember(kind: str, engine: Engine) -> None:
    """Keep it for later processes; without a place for the file it is measured again in each."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / _FILE, json.dumps(_remembered() | {kind: engine}, indent=2).encode())
    except (OSError, RuntimeError):
        return
