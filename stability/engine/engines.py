"""Which engine computes the GRU layers of the trials on a device: measured once, and remembered.

A trial has one engine, whether it is alone or in a stack. So the choice must serve both. On a GPU the loop of our
kernels is chosen if it serves one trial (it takes at most 1.2 times as long as PyTorch's own GRU) or a stack (four
trials together take no longer than one after another in PyTorch's GRU). A CPU always has the loop.
"""

from functools import cache
from typing import cast, get_args

import torch

from stability.core.device import DTYPES, Precision
from stability.engine.kernels.measured import COUNTS, STACK, median_seconds, remembered_choice
from stability.engine.recurrent import Engine, GruWeights, gru_layer

_SLOWER = 1.2  # as many times longer may one trial take by the loop


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

    def measure() -> str:
        cases: tuple[tuple[Engine, int], ...] = (("loop", 1), ("library", 1), ("loop", STACK))
        return faster_engine(*(seconds(engine, trials, device, precision, units) for engine, trials in cases))

    what = f"engine of GRU layers of {units} units in {precision}"
    return cast(Engine, remembered_choice(device, what, get_args(Engine), measure))


def faster_engine(loop: float, library: float, stack: float) -> Engine:
    """Return the engine that these times speak for.

    Args:
        loop: Seconds of one trial by the loop.
        library: Seconds of one trial by PyTorch's GRU.
        stack: Seconds of four trials together by the loop.
    """
    return "loop" if loop <= _SLOWER * library or stack <= STACK * library else "library"


def seconds(engine: Engine, trials: int, device: torch.device, precision: Precision, units: int) -> float:
    """Measure how long one layer takes, forward and backward, for some trials together."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(COUNTS), units), (COUNTS[0], units), (3 * units, units), (3 * units, units), (3 * units,)]
    drawn = [torch.randn(trials, *shape, generator=generator) / units**0.5 for shape in (*shapes, shapes[-1])]
    x, h0, *weights = operands = [v.to(device, DTYPES[precision]).requires_grad_() for v in drawn]

    def forward_and_back() -> None:
        states = gru_layer(x, h0, GruWeights(*weights), COUNTS, engine)
        torch.autograd.grad(states.sum(), operands)

    with torch.enable_grad():
        return median_seconds(forward_and_back, device)
