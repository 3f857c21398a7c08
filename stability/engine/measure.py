"""The signals of a training step, computed on the device: tensors (K,), one value for each trial.

Their names, units, meanings and order are in `stability/diagnosis/signals.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stability.config.schema import Optimizer
from stability.core.device import to_device
from stability.data.phonemes import BLANK
from stability.engine.decoder import Parameters
from stability.engine.optimizer import Moments

Numbers = TypeVar("Numbers", Tensor, NDArray[Any])

_SAMPLE = 16_384  # size of the sample of second moments


def norms_by_part(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the whole gradient norm, and that of each part of the model, from the norms by parameter (K,)."""
    squares: dict[str, Tensor] = {}
    for name, norm in norms.items():
        part = _part(name)
        squares[part] = squares.get(part, 0) + norm * norm
    whole = torch.stack(list(squares.values())).sum(0).sqrt()
    return {"grad_norm": whole} | {f"grad_norm.{part}": s.sqrt() for part, s in squares.items()}


def output_signals(logits: Tensor, frames: Tensor, blank: int = BLANK) -> dict[str, Tensor]:
    """Compute the signals `blank_fraction` and `distinct_phonemes`.

    Args:
        logits: (K, T, B, C).
        frames: (K, B) frames of each utterance.
        blank: The class of CTC's blank.
    """
    logits = logits.detach()
    real = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1) < frames.unsqueeze(1)
    if logits.is_cpu:
        trials = [
            output_signals_on_host(own, is_frame.numpy(), blank) for own, is_frame in zip(logits, real, strict=True)
        ]
        return {name: torch.tensor([trial[name] for trial in trials]) for name in trials[0]}
    counts = torch.zeros(len(logits), logits.shape[-1], device=logits.device)
    counts.scatter_add_(1, logits.argmax(-1).flatten(1), real.flatten(1).float())
    return {
        "blank_fraction": counts[:, blank] / frames.sum(1),
        "distinct_phonemes": (counts > 0).sum(1).float() - (counts[:, blank] > 0).float(),
    }


def output_signals_on_host(logits: Tensor, real: NDArray[np.bool_], blank: int) -> dict[str, float]:
    """Compute what `output_signals` does, of one trial on a CPU, where numpy takes half the time.

    Args:
        logits: (..., C).
        real: (...), whether it is a frame and no padding.
        blank: The class of CTC's blank.
    """
    best = logits.float().numpy().argmax(-1)[real]
    counts = np.bincount(best, minlength=logits.shape[-1]).tolist()
    return {
        "blank_fraction": counts[blank] / len(best) if len(best) else math.nan,
        "distinct_phonemes": float(sum(n > 0 for n in counts) - (counts[blank] > 0)),
    }


def frame_information(logits: Tensor, frames: Tensor, blank: int = BLANK) -> Tensor:
    """Compute the mutual information between frame and non-blank class of each trial, H(mean q) - mean H(q), in nats.

    q is the softmax over all classes except blank. The information is 0 as long as a decoder predicts the same for
    every frame. It grows on the blank plateau, before the decoder predicts its first phoneme.

    Args:
        logits: (K, T, B, C).
        frames: (K, B) frames of each utterance.
        blank: The class of CTC's blank.

    Returns:
        (K,), in nats.
    """
    real = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1) < frames.unsqueeze(1)
    speech = torch.cat([logits[..., :blank], logits[..., blank + 1 :]], -1)
    log_q = speech.detach().float().log_softmax(-1)
    q = log_q.exp().mul_(real.unsqueeze(-1))  # (K, T, B, C - 1), nothing in the padding
    count = frames.sum(1)
    mean_q = q.sum((1, 2)) / count.unsqueeze(1)
    # A class of probability 0 adds nothing, even if its logarithm is infinite.
    entropies = q.mul_(log_q.clamp_(min=torch.finfo(log_q.dtype).min)).sum((1, 2, 3))
    return entropies / count - torch.xlogy(mean_q, mean_q).sum(1)


def input_max(x: Tensor) -> Tensor:
    """Return the largest |x| of each trial (K,), or a value that is not finite if any x is not. x: (K, ...)."""
    flat = x.flatten(1)
    return torch.maximum(flat.amax(1), -flat.amin(1))  # on a CPU in a third of the time of vector_norm


def infeasible_targets(labels: Numbers, label_counts: Numbers, frames: Numbers) -> Numbers:
    """Find the utterances with too few frames for CTC: it needs one for each label, and one between equal neighbours.

    Args:
        labels: (..., L), tensors or arrays.
        label_counts: (...), on the same device.
        frames: (...) frames of each utterance, on the same device.

    Returns:
        bool (...).
    """
    inside = _places(labels)[1:] < label_counts[..., None]
    repeats = ((labels[..., 1:] == labels[..., :-1]) & inside).sum(-1)
    found: Numbers = label_counts + repeats > frames
    return found


def faulty_targets(labels: Numbers, label_counts: Numbers, blank: int, classes: int | None) -> dict[str, Numbers]:
    """Find the utterances whose labels CTC cannot learn, by the signals that count them.

    Args:
        labels: (..., L), tensors or arrays.
        label_counts: (...), on the same device.
        blank: The class of CTC's blank.
        classes: The number of classes, blank included; None if it is not known.

    Returns:
        bool (...), by the name of the signal.
    """
    inside = _places(labels) < label_counts[..., None]
    outside = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    return {
        "empty_targets": label_counts == 0,
        "blanks_in_labels": ((labels == blank) & inside).any(-1),
        "labels_out_of_range": (outside & inside).any(-1),
    }


def update_signals(before: Parameters, after: Parameters) -> dict[str, Tensor]:
    """Compute `update_ratio` and `weight_norm` from the weights before and after a step. Overwrites `before`."""
    by_parameter = torch.stack([torch.linalg.vector_norm(old.flatten(1), dim=1) for old in before.values()])
    update = torch.stack(
        [torch.linalg.vector_norm(old.sub_(after[name]).flatten(1), dim=1) for name, old in before.items()]
    )
    weights = torch.linalg.vector_norm(by_parameter, dim=0)
    return {"update_ratio": torch.linalg.vector_norm(update, dim=0) / weights, "weight_norm": weights}


def epsilon_signals(moments: Moments, settings: Sequence[Optimizer], rates: Sequence[float]) -> dict[str, Tensor]:
    """Compute the signals `epsilon_dominance` and `effective_lr` from a sample of the second moments.

    The roots are bias-corrected, as in the update. The layer of a day that was in no batch yet has no second moments,
    and is not counted.

    Args:
        moments: The state of AdamW after the step.
        settings: The optimizer settings of each trial.
        rates: The learning rate of each trial.
    """
    device = moments.steps["h0"].device
    beta2 = to_device(torch.tensor([o.beta2 for o in settings]), device)
    epsilon = to_device(torch.tensor([o.epsilon for o in settings]), device)
    stride = sample_stride([second[0].shape for second in moments.second.values()])
    samples = []
    for name, second in moments.second.items():
        steps = moments.steps[name]
        # Before the first step of a day's layer the correction is 0, so its roots are NaN, which are left out below.
        correction = 1 - beta2.view(-1, *(1,) * (steps.ndim - 1)) ** steps
        sample = second.reshape(*steps.shape, -1)[..., ::stride] / correction.unsqueeze(-1)
        samples.append(sample.flatten(1))
    roots = torch.cat(samples, 1).sqrt_()
    return {
        "epsilon_dominance": (roots < epsilon.unsqueeze(1)).sum(1) / (~roots.isnan()).sum(1),
        "effective_lr": to_device(torch.tensor(rates), device) / (roots.nanmedian(1).values + epsilon),
    }


def sample_stride(shapes: Sequence[torch.Size]) -> int:
    """Return the stride that takes an even sample of about 16,000 numbers from tensors of these shapes."""
    stride = max(1, sum(shape.numel() for shape in shapes) // _SAMPLE)
    # A stride with a common factor with the length of a row would sample the same few columns of every row.
    while any(math.gcd(stride, shape[-1]) > 1 for shape in shapes if len(shape)):
        stride += 1
    return stride


def _places(labels: Numbers) -> Numbers:
    """The numbers 0, 1, 2 … of the labels in a row."""
    if isinstance(labels, Tensor):
        return torch.arange(labels.shape[-1], device=labels.device)
    return np.arange(labels.shape[-1])


def _part(parameter: str) -> str:
    if parameter.startswith("gru."):
        return "gru." + parameter.rpartition("_l")[2]
    return "head" if parameter.startswith("out.") else parameter.partition("_")[0]
