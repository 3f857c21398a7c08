"""Augmentation and smoothing, in the official order: white noise, constant offset, cut, Gaussian smoothing.

The unit noise depends on (seed, step) alone, and each trial of a stack scales it. As in the official trainer, noise
falls on the padding too, and smoothing carries a little of it into the last bins of an utterance.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stability.core.device import to_device
from stability.core.streams import numpy_stream, torch_stream

_TAPS = 100  # taps of the official kernel before it drops the small ones
_SMALLEST_TAP = 0.01


def draw_cut(max_cut: int, seed: int, step: int) -> int:
    """Draw how many leading bins this batch loses, from 0 to `max_cut`."""
    return int(numpy_stream(seed, "cut", step).integers(0, max_cut + 1))


def add_noise(
    features: Tensor, *, white_stds: Sequence[float], offset_stds: Sequence[float], seed: int, step: int
) -> Tensor:
    """Add white noise to every value, and one constant offset to each utterance and channel.

    Args:
        features: (B, T, F), in standard deviations.
        white_stds: Standard deviation of the white noise, for each of the K trials.
        offset_stds: Standard deviation of the offset, for each of the K trials.
        seed: The seed that these trials share.
        step: The number of the step.

    Returns:
        The noisy features of each trial, (K, B, T, F).
    """
    b, _, f = features.shape
    device = features.device
    white = torch.randn(features.shape, generator=torch_stream(seed, "white noise", step, device), device=device)
    offset = torch.randn(b, 1, f, generator=torch_stream(seed, "offset", step, device), device=device)
    return torch.stack(
        [
            torch.add(features, white, alpha=white_std).add_(offset, alpha=offset_std)
            for white_std, offset_std in zip(white_stds, offset_stds, strict=True)
        ]
    )


def smooth(x: Tensor, std: float) -> Tensor:
    """Smooth each channel over time with a Gaussian, as if there were zeros around it.

    Args:
        x: (..., T, F).
        std: Standard deviation of the Gaussian in bins; 0: no smoothing.
    """
    if std == 0:
        return x
    kernel = to_device(torch.from_numpy(smoothing_kernel(std)).to(x.dtype), x.device)
    *lead, t, f = x.shape
    flat = x.reshape(-1, t, f).transpose(1, 2)
    smoothed = F.conv1d(flat, kernel.expand(f, 1, -1), padding="same", groups=f)
    return smoothed.transpose(1, 2).reshape(*lead, t, f)


def smoothing_kernel(std: float) -> NDArray[np.float32]:
    """Compute the official kernel.

    It is a Gaussian that is cut off at 4 standard deviations and normalised. Then taps of 0.01 or less are dropped, and
    it is normalised again.

    Args:
        std: Standard deviation in bins.

    Returns:
        The taps, an odd number of them.
    """
    radius = min(int(4 * std + 0.5), _TAPS // 2 - 1)
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    gauss /= gauss.sum()
    kept = gauss[gauss > _SMALLEST_TAP]
    taps: NDArray[np.float32] = (kept / kept.sum()).astype(np.float32)
    return taps
