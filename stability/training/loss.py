"""CTC loss and phoneme error rate."""

import editdistance
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.data.phonemes import BLANK


def ctc_losses(logits: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """Each utterance's negative log-likelihood, summed over its labels.

    logits: (K, T, B, C); frames, label_counts: (K, B); labels: (K, B, L). Returns (K, B) in float32,
    or in float64 for such logits. An utterance that cannot be aligned gives inf: infinities are not hidden.
    """
    k, t, b, c = logits.shape
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.to(at_least_float32).log_softmax(-1).transpose(0, 1).reshape(t, k * b, c)
    losses = F.ctc_loss(
        log_probs, labels.flatten(0, 1), frames.flatten(), label_counts.flatten(), BLANK, reduction="none"
    )
    return losses.view(k, b)


def greedy_decode(classes: Tensor, frames: Tensor) -> list[list[int]]:
    """Best class a frame, repeats collapsed, blanks dropped. classes: (B, T), frames: (B,)."""
    repeated = torch.zeros_like(classes, dtype=torch.bool)
    repeated[:, 1:] = classes[:, 1:] == classes[:, :-1]
    beyond = torch.arange(classes.shape[1], device=classes.device) >= frames.unsqueeze(1)
    kept = ~(repeated | beyond | (classes == BLANK))
    flat = classes[kept].tolist()
    ends = kept.sum(1).cumsum(0).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def edit_distance(decoded: list[int], target: list[int]) -> int:
    """Levenshtein distance. Lists only: on tensors `editdistance` compares identities."""
    return int(editdistance.eval(decoded, target))
