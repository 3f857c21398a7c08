"""Describes a data set: its utterances, its splits, and where their features are.

Nothing here depends on the layout of the files. The decoder and the trainer see a data set only through these classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a data set is described without PyTorch
    from torch import Tensor

DrawNext = Callable[[], Sequence[int]]  # draws the utterances of the next batch; empty if no batch follows
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Record:
    """A stored utterance without its features.

    Attributes:
        day: Position of its session in `Split.sessions`.
        name: Name of its group in the file.
        n_time_steps: Its length in bins.
        labels: Class ids of the phonemes, (labels,), each from 1 to 40; None if there are none (split "test").
        transcription: The sentence, or "" if it is unknown.
        block: Block of the recording day; None if the file does not say.
        number: Number of the utterance in its block; None if the file does not say.
    """

    day: int
    name: str
    n_time_steps: int
    labels: NDArray[np.int64] | None
    transcription: str
    block: int | None = None
    number: int | None = None


class Rows(Protocol):
    """Where the features of a split are: in files, in memory or on a GPU."""

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`, (bins, features). Do not write to them."""

    def batch(self, utterances: Sequence[int], draw_next: DrawNext) -> "Tensor":
        """Make a batch of some utterances.

        Args:
            utterances: Their positions in the split.
            draw_next: Called if the next batch can be prepared while this one is trained on.

        Returns:
            Their features, (B, T, F) in float32, with zeros after the shorter ones.
        """


@dataclass(frozen=True, eq=False)
class Split:
    """The utterances of all days that serve one purpose: to train on, to validate on or to test on.

    Attributes:
        path: The folder that contains the session folders.
        files: The files that contain the utterances, by day.
        sessions: Names of the session folders; a day is a position in this tuple.
        n_features: Features in a bin; the same in all utterances.
        records: The utterances, sorted by day and then by name.
        by_day: Positions in `records` of each day's utterances; days without any are left out.
        excluded: One message for each bad utterance that was left out.
        rows: Where the features are.
    """

    path: Path
    files: tuple[Path, ...]
    sessions: tuple[str, ...]
    n_features: int
    records: tuple[Record, ...]
    by_day: dict[int, list[int]]
    excluded: tuple[str, ...]
    rows: Rows

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`, (bins, features). Do not write to them.

        Raises:
            StabilityError: Its file cannot be read, or has changed since it was checked.
        """
        return self.rows.read(i)

    def labels(self, i: int) -> NDArray[np.int64]:
        """Return the labels of utterance `i`; only for splits that have labels."""
        labels = self.records[i].labels
        assert labels is not None
        return labels


@dataclass(frozen=True)
class Dataset:
    """The training and validation utterances of the same sessions, all of them checked.

    Attributes:
        train: The utterances to train on.
        val: The utterances to validate on.
        location: Where their features are, in words.
        gpu_bytes: GPU memory that the features take.
    """

    train: Split
    val: Split
    location: str = "read from its files"
    gpu_bytes: int = 0

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Name, place, sessions and size of the data set, and a digest of its utterances' names, lengths and labels."""
        digest = hashlib.sha256(repr((self.sessions, self.n_features)).encode())
        for split in (self.train, self.val):
            digest.update(b"split")
            for record in split.records:
                digest.update(f"{record.day}/{record.name}/{record.n_time_steps}/".encode())
                digest.update(b"" if record.labels is None else record.labels.tobytes())
        return {
            "name": self.train.path.name,
            "path": str(self.train.path.resolve()),
            "digest": digest.hexdigest()[:16],
            "days": len(self.sessions),
            "sessions": [*self.sessions],
            "features": self.n_features,
            **{
                name: {"utterances": len(split.records), "bins": sum(record.n_time_steps for record in split.records)}
                for name, split in (("train", self.train), ("val", self.val))
            },
        }

    @property
    def sessions(self) -> tuple[str, ...]:
        """The names of the session folders, in the order of the days."""
        return self.train.sessions

    @property
    def n_features(self) -> int:
        """The number of features in a bin."""
        return self.train.n_features

    @property
    def excluded(self) -> tuple[str, ...]:
        """One message for each bad utterance that was left out."""
        return self.train.excluded + self.val.excluded


def pad(arrays: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """Stack B arrays of shape (bins, ...) into one of shape (B, T, ...), with zeros after the shorter ones."""
    padded = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def frames_needed(labels: Sequence[int]) -> int:
    """Count the output frames that CTC needs, at least, to align these labels."""
    # One label in a frame at most, and CTC separates equal neighbours by a blank.
    return len(labels) + sum(a == b for a, b in pairwise(labels))
