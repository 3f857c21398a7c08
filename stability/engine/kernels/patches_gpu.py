"""From the products of the day layer to packed patches on a GPU, in one Triton kernel, and back in another.

PyTorch's operations pass over these tensors two dozen times, in float32. The kernels read each product and each patch
once, and keep for the way back only the products and which of them dropout keeps. Both divide the work alike: a program
has some features of some bins of an utterance, and each bin is in as many patches as overlap there.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stability.core.device import to_device
from stability.engine.kernels import TRITON_OPTIONS
from stability.engine.packing import Packing

_BINS, _FEATURES = 16, 128  # of a program


def to_patches(
    products: Tensor,
    biases: Tensor,
    rows_per_day: Sequence[int],
    kept: Tensor | None,
    scale: float,
    packing: Packing,
    size: int,
    stride: int,
) -> Tensor:
    """Do the same as `patches.to_patches`, for dtypes up to float32 and biases in float32."""
    patches: Tensor = _Patches.apply(products, biases, rows_per_day, kept, scale, packing, size, stride)
    return patches


class _Patches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        products: Tensor,
        biases: Tensor,
        rows_per_day: Sequence[int],
        kept: Tensor | None,
        scale: float,
        packing: Packing,
        size: int,
        stride: int,
    ) -> Tensor:
        k, b, _, f = products.shape
        slots, device = sum(packing.counts), products.device
        day_of_row = to_device(torch.arange(len(rows_per_day)).repeat_interleave(torch.tensor(rows_per_day)), device)
        patches = products.new_empty(k, slots, size * f)
        operands = (products, biases, day_of_row, kept, _slots(packing, k, b, device))
        ctx.rows_per_day, ctx.rest = rows_per_day, (scale, slots, size, stride)
        ctx.save_for_backward(*operands)
        _launch(_forward, *operands, patches, *ctx.rest)
        return patches

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        products, biases, *_ = ctx.saved_tensors
        k, b, t, f = products.shape
        d_products = torch.empty_like(products)
        sums = biases.new_empty(k, b, triton.cdiv(t, _BINS), f)  # of the derivatives by the biases, over some bins
        _launch(_backward, *ctx.saved_tensors, grad.contiguous(), *ctx.rest, d_products, sums)
        of_days = torch.split(sums, list(ctx.rows_per_day), 1)
        d_biases = torch.stack([of_day.sum((1, 2)) for of_day in of_days], 1).view_as(biases)
        return d_products, d_biases, None, None, None, None, None, None


def _slots(packing: Packing, k: int, b: int, device: torch.device) -> Tensor:
    """Return the slot of each row and frame (K, B, T'), or -1."""
    trial = torch.arange(k, device=device).unsqueeze(1)
    place = (trial, to_device(packing.row, device), to_device(packing.frame, device))
    slot_of = torch.full((k, b, len(packing.counts)), -1, device=device)
    return slot_of.index_put_(place, torch.arange(sum(packing.counts), device=device))


def _launch(
    kernel: Any,
    products: Tensor,
    biases: Tensor,
    day_of_row: Tensor,
    kept: Tensor | None,
    slot_of: Tensor,
    patches: Tensor,
    scale: float,
    slots: int,
    size: int,
    stride: int,
    *results: Tensor,
) -> None:
    k, b, t, f = products.shape
    masks = None if kept is None else kept.bool().contiguous().view(torch.uint8)
    numbers = (scale, b if kept is None else b * len(kept), b, t, biases.shape[1], slot_of.shape[2], slots)
    grid = (k * b, triton.cdiv(t, _BINS), triton.cdiv(f, _FEATURES))
    with torch.cuda.device_of(products):
        kernel[grid](
            products, biases.contiguous(), day_of_row, masks, slot_of, patches, *results, *numbers,
            f, size, stride, _BINS, _FEATURES, **TRITON_OPTIONS,
        )  # fmt: skip


_NUMBERS = ("mask_rows", "batch", "bins", "days", "frames", "slots")


@triton.jit
def _day_layer(
    products, biases, day_of_row, masks, scale, mask_rows, batch, bins, features: tl.constexpr, days,
    row, time, feature, inside,
):  # fmt: skip
    """Return the day layer's sums before softsign, and what dropout multiplies by, for some features of some bins."""
    here = (row * bins + time)[:, None] * features + feature
    bias = biases + (row // batch * days + tl.load(day_of_row + row % batch)) * features + feature
    x = tl.load(products + here, mask=inside, other=0.0).to(tl.float32) + tl.load(bias, mask=feature < features)
    if masks is None:
        factor = tl.full(x.shape, 1.0, tl.float32)
    else:
        kept = (row % mask_rows * bins + time)[:, None] * features + feature
        factor = tl.where(tl.load(masks + kept, mask=inside, other=0) != 0, scale, 0.0)
    return x, factor


@triton.jit
def _patch(slot_of, row, time, back, batch, bins, features: tl.constexpr, frames, slots, size, stride):
    """Return where the bins begin in the patch that began so many patches before them, and whether there is one."""
    frame = time // stride - back
    offset = time - frame * stride
    there = (frame >= 0) & (frame < frames) & (offset < size) & (time < bins)
    slot = tl.load(slot_of + row * frames + frame, mask=there, other=-1)
    return (((row // batch * slots + slot) * size + offset) * features)[:, None], (there & (slot >= 0))[:, None]


@triton.jit(do_not_specialize=_NUMBERS)
def _forward(
    products, biases, day_of_row, masks, slot_of, patches,
    scale, mask_rows, batch, bins, days, frames, slots, features: tl.constexpr,
    size: tl.constexpr, stride: tl.constexpr, block_bins: tl.constexpr, block_features: tl.constexpr,
):  # fmt: skip
    """Write some features of some bins of an utterance into their patches."""
    row = tl.program_id(0).to(tl.int64)
    time = tl.program_id(1) * block_bins + tl.arange(0, block_bins)
    feature = (tl.program_id(2) * block_features + tl.arange(0, block_features))[None, :]
    inside = (time < bins)[:, None] & (feature < features)
    x, factor = _day_layer(
        products, biases, day_of_row, masks, scale, mask_rows, batch, bins, features, days, row, time, feature, inside
    )
    # Triton's own quotient is off in the last digit.
    y = tl.div_rn(x, 1 + tl.abs(x)) * factor
    for back in tl.static_range(0, (size + stride - 1) // stride):
        place, there = _patch(slot_of, row, time, back, batch, bins, features, frames, slots, size, stride)
        tl.store(patches + place + feature, y, mask=there & inside)


@triton.jit(do_not_specialize=_NUMBERS)
def _backward(
    products, biases, day_of_row, masks, slot_of, patches, d_products, sums,
    scale, mask_rows, batch, bins, days, frames, slots, features: tl.constexpr,
    size: tl.constexpr, stride: tl.constexpr, block_bins: tl.constexpr, block_features: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of the patches. The first patch is the last to begin. Then go back to the products."""
    row = tl.program_id(0).to(tl.int64)
    time = tl.program_id(1) * block_bins + tl.arange(0, block_bins)
    feature = (tl.program_id(2) * block_features + tl.arange(0, block_features))[None, :]
    inside = (time < bins)[:, None] & (feature < features)
    added = tl.zeros((block_bins, block_features), tl.float32)
    for back in tl.static_range(0, (size + stride - 1) // stride):
        place, there = _patch(slot_of, row, time, back, batch, bins, features, frames, slots, size, stride)
        added += tl.load(patches + place + feature, mask=there & inside, other=0.0).to(tl.float32)
    x, factor = _day_layer(
        products, biases, day_of_row, masks, scale, mask_rows, batch, bins, features, days, row, time, feature, inside
    )
    divisor = 1 + tl.abs(x)
    d = tl.div_rn(added * factor, divisor * divisor)
    tl.store(d_products + (row * bins + time)[:, None] * features + feature, d, mask=inside)
    here = (row * tl.num_programs(1) + tl.program_id(1)) * features + feature
    tl.store(sums + here, tl.sum(tl.where(inside, d, 0.0), 0)[None, :], mask=feature < features)
