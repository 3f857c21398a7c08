"""CTC loss and phoneme error rate."""

import editdistance
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.data.phonemes import BLANK


def ctc_losses(logits: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """Each utterance's negative log-likelihood, summed over its labels.

    logits: (K, T, B, C); frames, label_counts: (K, B); labels: (K, B, L). Returns (K, B), in float32 but of
    float64 logits.
    An utterance that cannot be aligned gives inf: infinities are not hidden.
    """
    k, t, b, c = logits.shape
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = precise.log_softmax(-1).transpose(0, 1).reshape(t, k * b, c)
    losses = F.ctc_loss(
        log_probs, labels.flatten(0, 1), frames.flatten(), label_counts.flatten(), BLANK, reduction="none"
    )
    return losses.view(k, b)


def collapse(classes: Tensor, frames: Tensor) -> Tensor:
    """Best class a frame, with blank for repeats and behind the last frame. classes: (..., T), frames: (...)."""
    repeated = torch.zeros_like(classes, dtype=torch.bool)
    repeated[..., 1:] = classes[..., 1:] == classes[..., :-1]
    beyond = torch.arange(classes.shape[-1], device=classes.device) >= frames.unsqueeze(-1)
    return classes.masked_fill(repeated | beyond, BLANK)


def without_blanks(collapsed: Tensor) -> list[list[int]]:
    """What each of B rows says. collapsed: (B, T), as `collapse` returns it."""
    kept = collapsed != BLANK
    flat = collapsed[kept].tolist()
    ends = kept.sum(1).cumsum(0).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def greedy_decode(classes: Tensor, frames: Tensor) -> list[list[int]]:
    """Best class a frame, repeats collapsed, blanks dropped. classes: (B, T), frames: (B,)."""
    return without_blanks(collapse(classes, frames))


def edit_distance(decoded: list[int], target: list[int]) -> int:
    """Levenshtein distance. Lists only: on tensors `editdistance` compares identities."""
    return int(editdistance.eval(decoded, target))
