"""CTC losses and their gradients on a CPU, computed by `ctc.c`."""

from ctypes import c_void_p
from typing import Any

import torch
from torch import Tensor

from stability.data.phonemes import BLANK
from stability.engine.kernels.compiler import compiled, threads


def applies(log_probs: Tensor) -> bool:
    """Return whether the compiled kernel exists and works on such log-probabilities."""
    return log_probs.device.type == "cpu" and log_probs.dtype == torch.float32 and compiled() is not None


def losses(log_probs: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """Compute CTC's negative log-likelihood of each utterance.

    Args:
        log_probs: (K, T, B, C).
        frames: (K, B) frames of each utterance.
        labels: (K, B, L).
        label_counts: (K, B).

    Returns:
        (K, B), in nats; inf for an utterance with too few frames for its labels.
    """
    operands = (log_probs.contiguous(), labels.contiguous(), frames.contiguous(), label_counts.contiguous())
    nll: Tensor = _Losses.apply(*operands)  # type: ignore[no-untyped-call]
    return nll


class _Losses(torch.autograd.Function):
    """The gradients are computed together with the losses, while the intermediate results exist."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, labels: Tensor, frames: Tensor, label_counts: Tensor) -> Tensor:
        (k, t, b, c), longest = log_probs.shape, labels.shape[2]
        parallel, shares = threads()
        scratch = log_probs.new_empty(compiled().ctc_scratch(shares, t, longest))
        nll = log_probs.new_empty(k, b)
        gradient = torch.empty_like(log_probs) if ctx.needs_input_grad[0] else None
        tensors = (log_probs, labels, frames, label_counts, scratch, nll, gradient)
        pointers = [None if v is None else c_void_p(v.data_ptr()) for v in tensors]
        compiled().ctc(parallel, shares, k, t, b, c, BLANK, longest, *pointers)
        ctx.gradient = gradient
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * grad[:, None, :, None], None, None, None
