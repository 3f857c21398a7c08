"""Batches: for training a few days and some trials of each, drawn; for validation every trial once, by day."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stability.core.streams import numpy_stream
from stability.data.placement import padded
from stability.data.t15 import Following, Split


@dataclass(frozen=True)
class Batch:
    """Some trials, padded with zeros to the longest: B trials of D distinct days, the rows of a day together.

    The features are where the split keeps them for training, all else is on the host.
    """

    trials: tuple[int, ...]  # the trials' positions in their split
    features: Tensor  # (B, T, F) float32
    bins: Tensor  # (B,) the bins of each trial
    labels: Tensor  # (B, L)
    label_counts: Tensor  # (B,)
    days: list[int]  # the D distinct days
    rows_per_day: tuple[int, ...]  # how many rows belong to each


def training_batch(split: Split, size: int, days: int, seed: int, step: int) -> Batch:
    """Batch number `step` of a seed: `days` days without replacement, trials of each with replacement.

    Where `size` is no multiple of `days`, the first of the drawn days give one trial more.
    """
    return _collate(split, _drawn(split, size, days, seed, step), lambda: _drawn(split, size, days, seed, step + 1))


def validation_batches(split: Split, size: int) -> Iterator[Batch]:
    """Every trial of the split once, one day a batch, at most `size` trials each."""
    for trials in split.by_day.values():
        for start in range(0, len(trials), size):
            yield _collate(split, trials[start : start + size])


def labels_of(split: Split, trial: int) -> NDArray[np.int64]:
    """A trial's labels, in a split that has them."""
    labels = split.records[trial].labels
    assert labels is not None
    return labels


def _drawn(split: Split, size: int, days: int, seed: int, step: int) -> list[int]:
    stream = numpy_stream(seed, "batch", step)
    chosen = stream.choice(sorted(split.by_day), size=days, replace=False)
    counts = [size // days + (i < size % days) for i in range(days)]
    trials = [stream.choice(split.by_day[day], size=n) for day, n in zip(chosen.tolist(), counts, strict=True)]
    drawn: list[int] = np.concatenate(trials).tolist()
    return drawn


def _collate(split: Split, trials: list[int], following: Following = list) -> Batch:
    if split.rows is None:
        features = torch.from_numpy(padded([split.read(i) for i in trials]))
    else:
        features = split.rows.padded(trials, following)
    labels = [labels_of(split, i) for i in trials]
    rows_per_day = Counter(split.records[i].day for i in trials)  # in the order of the rows
    return Batch(
        tuple(trials),
        features,
        torch.tensor([split.records[i].n_time_steps for i in trials]),
        torch.from_numpy(padded(labels)),
        torch.tensor([len(own) for own in labels]),
        list(rows_per_day),
        tuple(rows_per_day.values()),
    )
