"""From the day layer to the patches by PyTorch's operations. The kernels are tested in `test_kernels_gpu.py`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.engine.packing import pack
from stability.engine.patches import _fold_by_part, _Patches, _Softsign


def test_patches_are_flattened_bin_major() -> None:
    bins, features = 23, 3
    x = torch.arange(bins * features, dtype=torch.float32).view(1, 1, bins, features)
    patches = _Patches.apply(x, pack(torch.tensor([[3]])), 14, 4, x.dtype)  # type: ignore[no-untyped-call]
    assert patches.shape == (1, 3, 14 * features)
    for frame in range(3):
        wanted = [(4 * frame + b) * features + f for b in range(14) for f in range(features)]
        assert patches[0, frame].tolist() == wanted


@pytest.mark.parametrize(("bins", "size", "stride"), [(14, 14, 4), (23, 14, 4), (11, 5, 2), (9, 2, 3), (8, 3, 3)])
def test_gradient_of_patches(bins: int, size: int, stride: int) -> None:
    x = torch.randn(2, 2, bins, 3, dtype=torch.float64, requires_grad=True)
    longest = (bins - size) // stride + 1
    packing = pack(torch.tensor([[longest, 1], [max(1, longest - 1), longest]]))

    def patches_of(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        patches: Tensor = _Patches.apply(x, packing, size, stride, dtype)  # type: ignore[no-untyped-call]
        return patches

    patches = patches_of(x)
    assert torch.autograd.gradcheck(patches_of, x)
    on_gpu = _fold_by_part(patches.detach(), x.shape, packing, size, stride, x.dtype)
    torch.testing.assert_close(on_gpu, torch.autograd.grad(patches, x, patches)[0])
    # In a narrow dtype the gradients are added up in the dtype of x: no more is rounded than the patches' own.
    narrow = patches_of(x, torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    wanted = torch.autograd.grad(patches, x, narrow.double())[0]
    torch.testing.assert_close(torch.autograd.grad(narrow, x, narrow)[0], wanted)
    torch.testing.assert_close(_fold_by_part(narrow, x.shape, packing, size, stride, x.dtype), wanted)


def test_gradient_of_softsign() -> None:
    x = torch.tensor([-1e30, -3.0, -0.1, 0.0, 0.2, 4.0, 1e30], dtype=torch.float64, requires_grad=True)
    ours, theirs = _Softsign.apply(x), F.softsign(x)  # type: ignore[no-untyped-call]
    assert torch.equal(ours, theirs)
    own, wanted = (torch.autograd.grad(y, x, torch.arange(1.0, 8.0, dtype=torch.float64))[0] for y in (ours, theirs))
    torch.testing.assert_close(own, wanted)
