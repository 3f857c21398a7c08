"""Reads and checks what a step is given besides its loss: logits, lengths, labels and names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stability.core.device import to_device
from stability.core.errors import StabilityError
from stability.core.text import counted, listed
from stability.diagnosis.ctc_inputs import ALWAYS_WRONG, LEAST
from stability.engine.measure import faulty_targets, infeasible_targets

Numbers = Tensor | NDArray[Any] | Sequence[Any]
Mask = Tensor | NDArray[np.bool_]

_CPU = torch.device("cpu")
_NAMES = (int, str)  # what names of utterances are kept as
_CHECKS = ("lengths_too_long", "empty_targets", "blanks_in_labels", "labels_out_of_range", "infeasible_targets")


@dataclass(frozen=True)
class Given:
    """What a step was given besides its loss.

    Attributes:
        logits: `[batch, frames, classes]`, if they were given.
        frames: `[batch]`, the frames of each utterance in the logits, on their device.
        names: The names of the utterances; empty if there are none.
        utterances: How many there are, if anything says it.
        swapped: Whether the logits had their frames before their batch; None if nothing shows it.
        label_counts: `[batch]`, the number of labels of each utterance, if labels were given.
        faulty: `[batch]` bool, the utterances with a fault, by the signal that counts them; None if there are none.
    """

    logits: Tensor | None = None
    frames: Tensor | None = None
    names: tuple[int | str, ...] = ()
    utterances: int | None = None
    swapped: bool | None = None
    label_counts: Tensor | None = None
    faulty: Mapping[str, Mask | None] = field(default_factory=dict)

    def counts(self) -> list[Tensor | int]:
        """Return the signals that count utterances with a fault. The host does not wait for them."""
        masks = [*self.faulty.values()]
        if any(isinstance(mask, Tensor) for mask in masks):
            return [torch.stack([torch.as_tensor(mask) for mask in masks]).sum(1)]
        return [0 if mask is None else int(np.count_nonzero(mask)) for mask in masks]

    def names_of(self, signal: str) -> list[str]:
        """Return the utterances that a signal counts: their names, or their places in the batch."""
        mask = self.faulty[signal]
        if mask is None:
            return []
        places = np.flatnonzero(mask.cpu() if isinstance(mask, Tensor) else mask).tolist()
        named = len(self.names) == len(mask)
        return [str(self.names[place]) if named else f"number {place + 1} of the batch" for place in places]

    def is_wrong(self, counts: Mapping[str, float]) -> bool:
        """Return whether the batch needs a verdict at once, by its counts of utterances with a fault."""
        if self.swapped or any(counts.get(check, 0) > 0 for check in ALWAYS_WRONG):
            return True
        least = max(LEAST, self.utterances or 0)
        return counts.get("infeasible_targets", 0) >= least


def read_given(
    logits: Numbers | None = None,
    lengths: Numbers | None = None,
    labels: Numbers | None = None,
    label_counts: Numbers | None = None,
    batch: Sequence[Any] = (),
    *,
    blank: int,
) -> Given:
    """Read and check the arguments of `Monitor.step`. On a GPU the host waits for nothing.

    Raises:
        StabilityError: They do not fit together.
    """
    given_names = batch.tolist() if isinstance(batch, Tensor) or hasattr(batch, "tolist") else batch
    names = tuple(name if isinstance(name, _NAMES) else str(name) for name in given_names)
    frames = None if lengths is None else _tensor(lengths).reshape(-1)
    targets = None if labels is None else _read_labels(labels, label_counts)
    entries = {} if frames is None else {"lengths": len(frames)}
    entries |= {} if targets is None else {"labels": len(targets[1])}
    scores, swapped = (None, None) if logits is None else _read_logits(logits, entries, len(names), blank)
    if scores is not None:
        entries["logits"] = len(scores)
    if len({*entries.values()}) > 1:
        sizes = listed(f"{name} hold {size}" for name, size in entries.items())
        raise StabilityError(
            f"The arguments of Monitor.step hold different numbers of utterances: {sizes}. Give those of one batch, "
            "and logits as (batch, frames, classes)."
        )
    if frames is not None:
        frames = _absolute(frames, scores) if frames.is_floating_point() else frames.long()
    return Given(
        logits=scores,
        frames=None if scores is None else _frames_of(scores, frames),
        names=names,
        utterances=next(iter(entries.values()), None),
        swapped=swapped,
        label_counts=None if targets is None else targets[1],
        faulty=_find_faults(scores, frames, targets, blank),
    )


def joined(batches: Sequence[Given]) -> Given:
    """Return the batches of one step as one batch: all their utterances, and the logits of the last one."""
    *others, last = batches
    if not others:
        return last
    sizes = [given.utterances for given in batches if given.utterances is not None]
    swaps = [given.swapped for given in batches if given.swapped is not None]
    counts = [given.label_counts for given in batches if given.label_counts is not None]
    alike = len({tuple(given.faulty) for given in batches}) == 1
    return Given(
        logits=last.logits,
        frames=last.frames,
        names=tuple(name for given in batches for name in given.names),
        utterances=sum(sizes) if len(sizes) == len(batches) else None,
        swapped=any(swaps) if swaps else None,
        label_counts=torch.cat(counts) if counts else None,
        faulty={name: _joined(name, batches) for name in last.faulty} if alike else {},
    )


def _joined(name: str, batches: Sequence[Given]) -> Mask | None:
    """Return the utterances of several batches that a signal counts."""
    masks = [given.faulty[name] for given in batches]
    if all(mask is None for mask in masks):
        return None
    whole = [np.zeros(given.utterances or 0, bool) if m is None else m for given, m in zip(batches, masks, strict=True)]
    if any(isinstance(mask, Tensor) for mask in whole):
        return torch.cat([torch.as_tensor(mask) for mask in whole])
    return np.concatenate(whole)


def _find_faults(
    logits: Tensor | None, frames: Tensor | None, targets: tuple[Tensor, Tensor] | None, blank: int
) -> dict[str, Mask | None]:
    """Find the utterances with each fault, `[batch]` bool, on a GPU if anything but the logits is there.

    On a CPU it is None for all faults if there is none.
    """
    tensors = [tensor for tensor in (frames, *(targets or ())) if tensor is not None]
    device = _device_of(*tensors)
    on_host = device.type == "cpu"
    if on_host and logits is not None and frames is not None and targets is not None:
        labels, counts = targets
        if _is_faultless(labels.numpy(), counts.numpy(), frames.numpy(), logits.shape, blank):
            return dict.fromkeys(_CHECKS)
    most, classes = (None, None) if logits is None else logits.shape[1:]
    # On a CPU, arrays take a fraction of the time.
    given: list[Any] = [t.numpy() if on_host else to_device(t, device) for t in tensors]
    faults: dict[str, Mask | None] = {}
    available = None if frames is None else given.pop(0)
    if available is not None and most is not None:
        faults["lengths_too_long"] = available > most
        available = available.clip(max=most)
    if targets is not None:
        labels, counts = given
        faults |= faulty_targets(labels, counts, blank, classes)
        available = most if available is None else available
        if available is not None:
            faults["infeasible_targets"] = infeasible_targets(labels, counts, available)
    return faults


def _is_faultless(
    labels: NDArray[Any], counts: NDArray[Any], frames: NDArray[Any], shape: Sequence[int], blank: int
) -> bool:
    """Return whether it is certain that no utterance has a fault: a quick answer for nearly every batch.

    Args:
        labels: `[batch, labels]`, padded.
        counts: `[batch]`, the number of labels of each utterance.
        frames: `[batch]`, the frames of each utterance.
        shape: That of the logits.
        blank: The class of CTC's blank.
    """
    own = labels[np.arange(labels.shape[1]) < counts[:, None]]
    if not len(own) or counts.min() < 1 or frames.max() > shape[1]:
        return False
    # Twice as many frames as labels are enough, whatever repeats.
    if (frames // 2 < counts).any() and infeasible_targets(labels, counts, frames).any():
        return False
    least, largest = own.min(), own.max()
    # Blank is nearly always the first or the last class. Of another one the slow way finds out.
    return bool(least >= 0 and largest < shape[2] and (least > blank or largest < blank))


def _read_logits(logits: Numbers, entries: Mapping[str, int], names: int, blank: int) -> tuple[Tensor, bool | None]:
    """Read the logits as (batch, frames, classes). Return them, and whether their first two axes were swapped."""
    scores = _tensor(logits)
    if scores.ndim != 3:
        raise StabilityError(f"The logits have the shape {tuple(scores.shape)}. Give them as (batch, frames, classes).")
    if not 0 <= blank < scores.shape[2]:
        raise StabilityError(
            f"blank={blank} is not one of the {scores.shape[2]} classes of the logits, whose shape is "
            f"{tuple(scores.shape)}. Give the class, from 0, that the CTC loss uses for blank, and logits as "
            "(batch, frames, classes)."
        )
    sizes = {*entries.values()} or ({names} if names > 1 else set())
    if len(sizes) != 1:
        return scores, None
    (size,) = sizes
    swapped = scores.shape[0] != size == scores.shape[1]
    return (scores.transpose(0, 1) if swapped else scores), swapped


def _read_labels(labels: Numbers, label_counts: Numbers | None) -> tuple[Tensor, Tensor]:
    """Read labels in any of their forms. Return them padded, `[batch, labels]`, and their counts, `[batch]`."""
    counts = None if label_counts is None else _tensor(label_counts).reshape(-1)
    if isinstance(labels, Sequence) and any(isinstance(row, Sequence) or getattr(row, "ndim", 0) for row in labels):
        rows = [_tensor(row).reshape(-1).long() for row in labels]
        padded = pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows]) if counts is None else counts
    elif counts is None:
        raise StabilityError(
            "Monitor.step was given labels without label_counts, so it cannot tell labels from padding. Give the "
            "number of labels of each utterance, or the labels as a list of the labels of each utterance."
        )
    else:
        flat = _tensor(labels)
        padded = flat if flat.ndim > 1 else _padded(flat, counts)
    if len(padded) != len(counts):
        raise StabilityError(
            f"Monitor.step was given the labels of {counted(len(padded), 'utterance')} and label_counts of "
            f"{len(counts)}. Give a row of labels and a count for each utterance of the batch."
        )
    return padded, counts


def _padded(flat: Tensor, counts: Tensor) -> Tensor:
    """Return concatenated labels as `[batch, labels]`."""
    device = _device_of(flat, counts)
    flat, counts = to_device(flat, device), to_device(counts, device)
    if not len(flat):
        return flat.new_zeros(len(counts), 1)
    # On a GPU the host would have to wait for the largest count, so every row is as long as all labels together.
    longest = int(counts.max()) if device.type == "cpu" else len(flat)
    starts = counts.cumsum(0) - counts
    places = starts.unsqueeze(1) + torch.arange(longest, device=device)
    return flat[places.clamp(max=len(flat) - 1)]


def _absolute(lengths: Tensor, logits: Tensor | None) -> Tensor:
    """Return lengths as numbers of frames. Some programs give them as shares of the longest utterance of the batch."""
    if logits is not None:
        lengths = torch.where((lengths <= 1).all(), lengths * logits.shape[1], lengths)
    return lengths.round().long()


def _frames_of(logits: Tensor, frames: Tensor | None) -> Tensor:
    b, t, _ = logits.shape
    if frames is None:
        return torch.full((b,), t, device=logits.device)
    return to_device(frames, logits.device).clamp(max=t)


def _device_of(*tensors: Tensor) -> torch.device:
    """Return the device of the tensors; a GPU if any of them is there."""
    return next((tensor.device for tensor in tensors if not tensor.is_cpu), _CPU)


def _tensor(numbers: Numbers) -> Tensor:
    return numbers.detach() if isinstance(numbers, Tensor) else torch.tensor(numbers)
