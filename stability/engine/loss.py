"""CTC loss and phoneme error rate."""

from collections.abc import Callable
from functools import cache

import editdistance
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.data.phonemes import BLANK
from stability.engine.kernels import ctc_cpu, selftest


def ctc_losses(logits: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """Compute CTC's negative log-likelihood of each utterance.

    Args:
        logits: (K, T, B, C).
        frames: (K, B) frames of each utterance, on the host.
        labels: (K, B, L).
        label_counts: (K, B), on the host.

    Returns:
        (K, B), in nats: float64 for float64 logits, else float32. An utterance with too few frames for its labels has
        inf; infinities are not replaced by zeros.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = precise.log_softmax(-1)
    if log_probs.is_cuda and log_probs.dtype == torch.float32:
        return _on_gpu(log_probs.device)(log_probs, frames, labels, label_counts)
    if ctc_cpu.applies(log_probs):
        return ctc_cpu.losses(log_probs, frames, labels, label_counts)
    return _by_pytorch(log_probs, frames, labels, label_counts)


def _by_pytorch(log_probs: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    k, t, b, c = log_probs.shape
    lengths = (frames.flatten(), label_counts.flatten())
    flat = log_probs.transpose(0, 1).reshape(t, k * b, c)
    return F.ctc_loss(flat, labels.flatten(0, 1), *lengths, BLANK, reduction="none").view(k, b)


@cache
def _on_gpu(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, 41, generator=generator)
    labels = torch.randint(1, 41, (2, 3, 9), generator=generator)
    labels[..., 1] = labels[..., 0]
    frames, label_counts = torch.tensor([[[30, 29, 19], [25, 30, 1]], [[9, 5, 0], [1, 8, 0]]])

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.to(device, dtype).requires_grad_()
        losses = function(x.log_softmax(-1), frames, labels.to(device), label_counts)
        return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]

    def kernels() -> Callable[..., Tensor]:
        from stability.engine.kernels import ctc_gpu

        selftest.check_results(results(ctc_gpu.losses, torch.float32), results(_by_pytorch, torch.float64))
        return ctc_gpu.losses

    return selftest.kernel_or_fallback(kernels, _by_pytorch, "CTC makes the host wait for the GPU twice a step")


def collapse(classes: Tensor, frames: Tensor) -> Tensor:
    """Replace repeats, and all that follows the last frame, by blank.

    Args:
        classes: The best class of each frame, (..., T).
        frames: The number of frames, (...).
    """
    repeated = torch.zeros_like(classes, dtype=torch.bool)
    repeated[..., 1:] = classes[..., 1:] == classes[..., :-1]
    beyond = torch.arange(classes.shape[-1], device=classes.device) >= frames.unsqueeze(-1)
    return classes.masked_fill(repeated | beyond, BLANK)


def without_blanks(collapsed: Tensor) -> list[list[int]]:
    """Return the labels of each of B rows. collapsed: (B, T), as `collapse` returns it."""
    kept = collapsed != BLANK
    flat = collapsed[kept].tolist()
    ends = kept.sum(1).cumsum(0).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def greedy_decode(classes: Tensor, frames: Tensor) -> list[list[int]]:
    """Return the labels of each row: the best classes without repeats and blanks. classes: (B, T), frames: (B,)."""
    return without_blanks(collapse(classes, frames))


def edit_distance(decoded: list[int], target: list[int]) -> int:
    """Compute the Levenshtein distance of two lists. `editdistance` compares tensors wrongly: by their identity."""
    return int(editdistance.eval(decoded, target))
