"""Augmentation and smoothing, in the official order: white noise, constant offset, cut, Gaussian smoothing.

The unit noise depends on (seed, step) alone; the trials of a stack only scale it. It also falls on the padding,
as in the official trainer, from where smoothing carries a little of it into a trial's last bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stability.core.device import sent
from stability.core.streams import numpy_stream, torch_stream

_TAPS = 100  # taps of the official kernel before the small ones are dropped
_SMALLEST_TAP = 0.01


def draw_cut(max_cut: int, seed: int, step: int) -> int:
    """How many leading bins this batch loses: 0 to `max_cut`."""
    return int(numpy_stream(seed, "cut", step).integers(0, max_cut + 1))


def add_noise(
    features: Tensor, white_stds: Sequence[float], offset_stds: Sequence[float], seed: int, step: int
) -> Tensor:
    """White noise, and one constant offset an utterance and channel.

    features: (B, T, F); the standard deviations: one a stacked trial. Returns (K, B, T, F).
    """
    b, _, f = features.shape
    device = features.device
    white = torch.randn(features.shape, generator=torch_stream(seed, "white noise", step, device), device=device)
    offset = torch.randn(b, 1, f, generator=torch_stream(seed, "offset", step, device), device=device)
    return torch.stack(
        [
            torch.add(features, white, alpha=w).add_(offset, alpha=o)
            for w, o in zip(white_stds, offset_stds, strict=True)
        ]
    )


def smooth(x: Tensor, std: float) -> Tensor:
    """Gaussian smoothing over time with zero padding, channel by channel. x: (..., T, F); std in bins, 0: none."""
    if std == 0:
        return x
    kernel = sent(torch.from_numpy(smoothing_kernel(std)).to(x.dtype), x.device)
    *lead, t, f = x.shape
    flat = x.reshape(-1, t, f).transpose(1, 2)
    smoothed = F.conv1d(flat, kernel.expand(f, 1, -1), padding="same", groups=f)
    return smoothed.transpose(1, 2).reshape(*lead, t, f)


def smoothing_kernel(std: float) -> NDArray[np.float32]:
    """The official kernel: a Gaussian cut off at 4 std and normalised, taps under 0.01 dropped, normalised again."""
    radius = min(int(4 * std + 0.5), _TAPS // 2 - 1)
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    gauss /= gauss.sum()
    kept = gauss[gauss > _SMALLEST_TAP]
    taps: NDArray[np.float32] = (kept / kept.sum()).astype(np.float32)
    return taps
