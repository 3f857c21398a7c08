"""The least time that the parts of a step can take on a device, bounded by operations, bytes and the recurrence.

Only real frames count, no padding. Of the bytes, each input and output of a part counts once, as if it were one kernel.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stability.config.schema import Model
from stability.data.phonemes import PHONEMES
from stability.engine import recurrent
from stability.engine.decoder import frames_of

_WHOLE, _HALF = 4, 2  # bytes: of a weight, a feature or a logit; of an activation
_CHAIN = 100  # products in a row that are timed together


class Rates(NamedTuple):
    """How fast a device is."""

    operations: float  # a second, in a product of two large matrices
    bandwidth: float  # bytes a second, read or written
    product: float  # seconds of one product in a chain, each of which needs the one before


class Floor(NamedTuple):
    """The least seconds that a part of a step takes, by each of three bounds."""

    operations: float = 0.0
    bytes: float = 0.0
    chain: float = 0.0


def floors(model: Model, features: int, bins: Tensor, labels: Tensor, weights: int, rates: Rates) -> dict[str, Floor]:
    """The floor of each part of a step. The layers of the recurrence count one after another, as they run.

    Args:
        model: the sizes of the decoder.
        features: features of a bin.
        bins: (B,) bins of each utterance.
        labels: (B,) labels of each utterance.
        weights: the number of weights that are stepped.
        rates: how fast the device is.
    """
    forward, backward = operations(model, features, bins)
    frames = frames_of(bins, model)
    n, classes = int(frames.sum()), len(PHONEMES)
    x, logits = int(bins.sum()) * features * _WHOLE, n * classes * _WHOLE
    alphas = int((frames * (2 * labels + 1)).sum()) * _WHOLE
    kept = (int(bins.sum()) * features + n * model.layers * 5 * model.units) * _HALF  # four gates and the state
    size = weights * _WHOLE
    chain = int(frames.max()) * model.layers * rates.product

    def floor(moved: int, multiplied: int = 0, chain: float = 0.0) -> Floor:
        return Floor(multiplied / rates.operations, moved / rates.bandwidth, chain)

    return {
        "data": floor(x),
        "augmentation": floor(2 * x),
        "forward": floor(x + size + kept + logits, forward, chain),
        "CTC": floor(logits + alphas),
        "backward": floor(logits + alphas + kept + 2 * size, backward, chain),
        "optimiser": floor(8 * size),  # read the gradient twice; read and write weights and both moments
        "signals": floor(x + logits),
    }


def operations(model: Model, features: int, bins: Tensor) -> tuple[int, int]:
    """Multiplications and additions in the decoder's products, forward and backward. bins: (B,) of each utterance."""
    n, gates = int(frames_of(bins, model).sum()), 3 * model.units
    day = 2 * int(bins.sum()) * features**2
    inputs = features * model.patch_size + (model.layers - 1) * model.units
    rest = 2 * n * (gates * (inputs + model.layers * model.units) + model.units * len(PHONEMES))
    return day + rest, day + 2 * rest  # the features need no gradient


@contextmanager
def counter() -> Iterator[FlopCounterMode]:
    """Count the operations of all products in the body.

    PyTorch's counter leaves out products in place, which are added here. It does not see into the kernels of the
    recurrence, so PyTorch's operations replace them in the body.
    """

    def product(_: Sequence[int], a: Sequence[int], b: Sequence[int], **others: object) -> int:
        return 2 * math.prod(a) * b[-1]

    counts = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: product})
    loops = patch.object(recurrent, "_loops", return_value=(recurrent.forward_loop, recurrent.backward_loop))
    with loops, patch.dict(recurrent._ENGINES, library=recurrent._ENGINES["loop"]), counts:
        yield counts


def measure(device: torch.device, dtype: torch.dtype, rows: int, units: int, size: int, copied: int) -> Rates:
    """Measure a product of `size` x `size`, a copy of `copied` bytes, and a recurrence of (rows, units)."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.empty(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    state = torch.randn(rows, units, device=device, dtype=dtype)
    weights = torch.randn(units, 3 * units, device=device, dtype=dtype) / units**0.5

    def recur() -> None:
        s = state
        for _ in range(_CHAIN):
            s = (s @ weights)[:, :units]

    chain: Callable[[], object] = recur
    if device.type == "cuda":  # the host launches more slowly than the device multiplies
        recur()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recur()
        chain = graph.replay
    return Rates(
        2 * size**3 / _fastest(lambda: a @ a, device),
        2 * copied / _fastest(lambda: target.copy_(source), device),
        _fastest(chain, device) / _CHAIN,
    )


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(10):
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
