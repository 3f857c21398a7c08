"""A case for the kernels of CTC, and their comparison with PyTorch."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from stability.engine.kernels import ctc_cpu
from stability.engine.loss import ctc_losses


def case(kernel: ModuleType, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make logits, frames, labels with repeats, and label counts: among these 0 and the largest possible."""
    on_gpu = torch.cuda.is_available() and kernel is not ctc_cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 24, 4, 41, generator=generator) * scale
    labels = torch.randint(1, 41, (2, 4, 11), generator=generator)
    labels[..., 1] = labels[..., 0]
    frames, label_counts = torch.tensor([[[24, 23, 5, 0], [12, 24, 24, 9]], [[11, 5, 0, 0], [11, 1, 10, 7]]])
    return logits.to(device), frames, labels.to(device), label_counts


def losses_and_gradient(function: Callable[..., Tensor], logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the losses of log-probabilities, and their gradient by the logits."""
    logits = logits.clone().requires_grad_()
    losses = function(logits.log_softmax(-1), *rest)
    weights = torch.arange(1.0, losses.numel() + 1).view_as(losses).to(losses)  # that each utterance's own reaches it
    (gradient,) = torch.autograd.grad((losses * weights).sum(), logits)
    return losses.detach(), gradient


def assert_agrees_with_float64(kernel: ModuleType, scale: float = 1.0) -> None:
    """Compare losses and gradients of the kernel with PyTorch's in float64."""
    logits, *rest = case(kernel, scale)
    losses, gradient = losses_and_gradient(kernel.losses, logits, *rest)
    wanted, wanted_gradient = losses_and_gradient(ctc_losses, logits.double(), *rest)
    assert (losses.dtype, gradient.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=0, atol=3e-5)
