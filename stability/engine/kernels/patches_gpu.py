"""The way back through the patches on a GPU, as one Triton kernel: each bin collects the gradients of its patches.

PyTorch's operations write the patches out with the padding of short utterances, and pass over the result once for each
patch that a bin is in. The kernel reads each patch once and writes each bin once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stability.core.device import to_device
from stability.engine.kernels import TRITON_OPTIONS
from stability.engine.packing import Packing

_BINS, _FEATURES = 16, 128  # of a program


def fold(grad: Tensor, shape: torch.Size, packing: Packing, size: int, stride: int, dtype: torch.dtype) -> Tensor:
    """Do the same as `decoder._fold_by_part`: the same sums, in the same order, for dtypes up to float32."""
    k, b, t, f = shape
    frames, slots = len(packing.counts), grad.shape[1]
    trial = torch.arange(k, device=grad.device).unsqueeze(1)
    place = (trial, to_device(packing.row, grad.device), to_device(packing.frame, grad.device))
    slot_of = torch.full((k, b, frames), -1, device=grad.device)
    slot_of.index_put_(place, torch.arange(slots, device=grad.device))
    total = grad.new_empty(shape, dtype=dtype)
    grid = (k * b, triton.cdiv(t, _BINS), triton.cdiv(f, _FEATURES))
    with torch.cuda.device_of(grad):
        _fold[grid](
            grad.contiguous(), slot_of, total, b, t, f, frames, slots, size, stride, _BINS, _FEATURES, **TRITON_OPTIONS
        )
    return total


_NUMBERS = ("batch", "bins", "features", "frames", "slots")


@triton.jit(do_not_specialize=_NUMBERS)
def _fold(
    patches, slot_of, total, batch, bins, features, frames, slots,
    size: tl.constexpr, stride: tl.constexpr, block_bins: tl.constexpr, block_features: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of some features of some bins of an utterance. The first patch is the last to begin."""
    row = tl.program_id(0).to(tl.int64)
    time = tl.program_id(1) * block_bins + tl.arange(0, block_bins)
    feature = (tl.program_id(2) * block_features + tl.arange(0, block_features))[None, :]
    inside = (time < bins)[:, None] & (feature < features)
    added = tl.zeros((block_bins, block_features), tl.float32)
    for back in tl.static_range(0, (size + stride - 1) // stride):
        frame = time // stride - back
        offset = time - frame * stride
        there = (frame >= 0) & (frame < frames) & (offset < size) & (time < bins)
        slot = tl.load(slot_of + row * frames + frame, mask=there, other=-1)
        source = patches + (((row // batch * slots + slot) * size + offset) * features)[:, None] + feature
        added += tl.load(source, mask=(there & (slot >= 0))[:, None] & inside, other=0.0).to(tl.float32)
    tl.store(total + (row * bins + time)[:, None] * features + feature, added, mask=inside)
