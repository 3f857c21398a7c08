"""From the products of the day layer to the patches that the GRU reads: bias, softsign, input dropout, patches.

These are the largest tensors of a step, and there is hardly any arithmetic: what counts is how often they pass through
memory. A GPU has one kernel for the way there and one for the way back, elsewhere PyTorch's operations do it. The
numbers are the same to the bit, except for the gradients of the biases, whose sums have another order.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stability.core.device import to_device
from stability.engine.kernels import selftest
from stability.engine.packing import Packing, pack, unpack


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
    """Add the day's bias, apply softsign and dropout, and cut the result into packed patches.

    All is float32 until the patches are made (float64 for such products). The gradients of patches are added up in it.

    Args:
        products: (K, B, T, F), the features of each row times the weights of its day.
        biases: (K, D, 1, F), of the D days in the order of the rows, in float32 or wider.
        rows_per_day: The number of rows of each day.
        kept: (1 or K, B, T, F), 1 where dropout keeps an activation, else 0; None without dropout.
        scale: What dropout multiplies by what it keeps.
        packing: The N slots of the patches.
        size: The bins of a patch.
        stride: The bins from one patch to the next.

    Returns:
        The patches (K, N, size x F), flattened bin-major, in the dtype of the products.
    """
    make = _by_pytorch
    if products.is_cuda and products.dtype != torch.float64:
        make = _on_gpu(products.device, products.dtype, products.shape[3], size, stride)
    return make(products, biases, rows_per_day, kept, scale, packing, size, stride)


@cache
def _on_gpu(device: torch.device, dtype: torch.dtype, features: int, size: int, stride: int) -> Callable[..., Tensor]:
    """Return the kernel if it works for such patches, else PyTorch's operations."""
    days, packing = (2, 1), pack(torch.tensor([[4, 2, 1], [3, 4, 4]]))
    bins, patch = size + 3 * stride, size * features
    shapes = [
        (2, 3, bins, features),
        (2, len(days), 1, features),
        (2, 3, bins, features),
        (2, packing.row.shape[1], patch),
    ]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    def results(make: Callable[..., Tensor], narrow: torch.dtype, wide: torch.dtype) -> tuple[Tensor, ...]:
        dtypes = (narrow, wide, wide, narrow)
        products, biases, kept, grad = (v.to(device, own) for v, own in zip(drawn, dtypes, strict=True))
        operands = [products.requires_grad_(), biases.requires_grad_()]
        patches = make(*operands, days, kept > 0, 1.25, packing, size, stride)
        return patches.detach(), *torch.autograd.grad(patches, operands, grad)

    def kernel() -> Callable[..., Tensor]:
        from stability.engine.kernels import patches_gpu

        own = results(patches_gpu.to_patches, dtype, torch.float32)
        selftest.check_results(own, results(_by_pytorch, torch.float64, torch.float64))
        return patches_gpu.to_patches

    return selftest.kernel_or_fallback(kernel, _by_pytorch, "The day layer takes many times as many passes over memory")


def _by_pytorch(
    products: Tensor,
    biases: Tensor,
    rows_per_day: Sequence[int],
    kept: Tensor | None,
    scale: float,
    packing: Packing,
    size: int,
    stride: int,
) -> Tensor:
    x: Tensor = _Softsign.apply(_add_biases(products, biases, rows_per_day))  # type: ignore[no-untyped-call]
    if kept is not None:
        x = drop_out(x, kept, scale)
    patches: Tensor = _Patches.apply(x, packing, size, stride, products.dtype)  # type: ignore[no-untyped-call]
    return patches


def drop_out(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Apply dropout. kept: as in `to_patches`, of any shape that can be expanded to that of x."""
    return x * (kept.to(x.dtype) * scale)


def _add_biases(products: Tensor, biases: Tensor, rows_per_day: Sequence[int]) -> Tensor:
    k, b, t, f = products.shape
    if len(set(rows_per_day)) > 1:
        parts = torch.split(products, list(rows_per_day), 1)
        return torch.cat([part + biases[:, d, None] for d, part in enumerate(parts)], 1)
    return (products.view(k, len(rows_per_day), -1, f) + biases).view(k, b, t, f)


class _Softsign(torch.autograd.Function):
    """x / (1 + |x|). PyTorch's own backward passes over memory three times as often."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        divisor = x.abs().add_(1)
        ctx.save_for_backward(divisor)
        return x / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        divisor: Tensor = ctx.saved_tensors[0]
        return grad / divisor.square()


class _Patches(torch.autograd.Function):
    """(K, B, T, F) to packed (K, N, size x F), flattened bin-major. Unfold's own backward is 20 times slower.

    The patches are made in the dtype of the product that follows. Their gradients are added up in the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing, size: int, stride: int, dtype: torch.dtype) -> Tensor:
        k, _, _, f = x.shape
        ctx.shape, ctx.dtype, ctx.packing, ctx.size, ctx.stride = x.shape, x.dtype, packing, size, stride
        windows = x.to(dtype).unfold(2, size, stride).transpose(-1, -2)  # (K, B, T', size, F)
        trial = torch.arange(k, device=x.device).unsqueeze(1)
        return windows[trial, to_device(packing.row, x.device), to_device(packing.frame, x.device)].view(
            k, -1, size * f
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        # By frame it is twice as fast on a CPU. On a GPU it would need a launch a frame.
        fold = _fold_by_part if grad.is_cuda else _fold_by_frame
        return fold(grad, ctx.shape, ctx.packing, ctx.size, ctx.stride, ctx.dtype), None, None, None, None


def _fold_by_frame(
    grad: Tensor, shape: torch.Size, packing: Packing, size: int, stride: int, dtype: torch.dtype
) -> Tensor:
    """Add up packed, overlapping patches to (K, B, T, F), frame by frame: the patches of a frame are adjacent."""
    k, b, t, f = shape
    counts = packing.counts
    in_order = grad.new_zeros(k, counts[0], t * f, dtype=dtype)
    for frame, patch in enumerate(torch.split(grad, counts, 1)):
        in_order[:, : counts[frame]].narrow(2, frame * stride * f, size * f).add_(patch)
    trial = torch.arange(k, device=grad.device).unsqueeze(1)
    row = to_device(packing.row[:, : counts[0]], grad.device)
    return in_order.new_zeros(k, b, t * f).index_put_((trial, row), in_order).view(shape)


def _fold_by_part(
    grad: Tensor, shape: torch.Size, packing: Packing, size: int, stride: int, dtype: torch.dtype
) -> Tensor:
    """Do the same for all frames at once: the parts of a patch that are a stride wide do not overlap."""
    k, b, t, f = shape
    frames = len(packing.counts)
    unpacked = unpack(grad, packing, b, frames)
    total = grad.new_zeros(shape, dtype=dtype)
    for start in range(0, size, stride):
        width = min(stride, size - start) * f
        part = total.as_strided((k, frames, b, width), (b * t * f, stride * f, t * f, 1), start * f)
        part += unpacked[..., start * f : start * f + width]
    return total
