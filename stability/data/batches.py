"""Draw batches: at random from a few days for training, every utterance once for validation."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stability.core.streams import numpy_stream
from stability.data.records import DrawNext, Split, pad

_NO_LABELS = np.zeros(0, np.int64)  # of an utterance to test on


@dataclass(frozen=True)
class Batch:
    """Some utterances, padded with zeros to the longest: B utterances of D distinct days, the rows of a day together.

    All tensors but the features are on the CPU.

    Attributes:
        utterances: Their positions in the split, (B,).
        features: (B, T, F) in float32, on the device that the split's rows choose.
        bins: Length of each utterance, (B,).
        labels: Class ids, (B, L), padded with zeros.
        label_counts: Labels of each utterance, (B,).
        days: The distinct days, (D,), in the order of their rows.
        rows_per_day: Rows of each of these days, (D,).
    """

    utterances: tuple[int, ...]
    features: Tensor
    bins: Tensor
    labels: Tensor
    label_counts: Tensor
    days: list[int]
    rows_per_day: tuple[int, ...]


def training_batch(split: Split, size: int, days: int, *, seed: int, step: int) -> Batch:
    """Draw a training batch. It depends on the seed and the step alone.

    Args:
        split: Where to draw from.
        size: Utterances in the batch, drawn with replacement within each day. If this is no multiple of `days`, the
            days that were drawn first give one utterance more.
        days: Days in the batch, drawn without replacement.
        seed: The trial's seed.
        step: The number of the step.
    """
    return _collate(
        split,
        _draw(split, size, days, seed=seed, step=step),
        lambda: _draw(split, size, days, seed=seed, step=step + 1),
    )


def validation_batches(split: Split, size: int) -> Iterator[Batch]:
    """Yield every utterance of the split once, in batches of one day and at most `size` utterances."""
    for utterances in split.by_day.values():
        for start in range(0, len(utterances), size):
            yield _collate(split, utterances[start : start + size])


def _draw(split: Split, size: int, days: int, *, seed: int, step: int) -> list[int]:
    stream = numpy_stream(seed, "batch", step)
    chosen = stream.choice(sorted(split.by_day), size=days, replace=False)
    counts = [size // days + int(i < size % days) for i in range(days)]
    by_day = [stream.choice(split.by_day[day], size=n) for day, n in zip(chosen.tolist(), counts, strict=True)]
    drawn: list[int] = np.concatenate(by_day).tolist()
    return drawn


def _collate(split: Split, utterances: list[int], draw_next: DrawNext = list) -> Batch:
    labels = [_NO_LABELS if split.records[i].labels is None else split.labels(i) for i in utterances]
    rows_per_day = Counter(split.records[i].day for i in utterances)  # keeps the order of the rows
    return Batch(
        utterances=tuple(utterances),
        features=split.rows.batch(utterances, draw_next),
        bins=torch.tensor([split.records[i].n_time_steps for i in utterances]),
        labels=torch.from_numpy(pad(labels)),
        label_counts=torch.tensor([len(own) for own in labels]),
        days=list(rows_per_day),
        rows_per_day=tuple(rows_per_day.values()),
    )
