"""The public layout of the T15 recordings: a folder for each session, in it an HDF5 file for each split.

In a file each utterance is a group (`trial_0000`, `trial_0001` …) with the dataset `input_features`, (bins, features).
An utterance with labels also has the datasets `seq_class_ids` and `transcription`, both padded with zeros. Attributes
of the group are `n_time_steps`, `seq_len`, `block_num`, `trial_num`, `session` and `sentence_label`.
"""

import os
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError

SPLITS: Final = ("train", "val", "test")
ID_SLOTS: Final = 500  # length of `seq_class_ids` and `transcription`, padded with zeros
EXPECTED: Final = (
    "Give a folder with one folder for each session, each with data_train.hdf5, data_val.hdf5 or data_test.hdf5."
)


def file_name(split: str) -> str:
    """Name the file of a split; raise StabilityError for an unknown split."""
    if split not in SPLITS:
        raise StabilityError(f"split is {split!r}; use one of {', '.join(SPLITS)}.")
    return f"data_{split}.hdf5"


def is_session(folder: Path) -> bool:
    """Return whether the folder has a file for any split, even one that cannot be opened."""
    return any(os.path.lexists(folder / file_name(split)) for split in SPLITS)


def open_file(path: Path) -> Any:
    """Open a file for reading."""
    # Without a lock: read-only and network file systems often cannot lock, and a finished file needs no lock.
    return h5py.File(path, "r", locking=False)


def read_features(group: Any) -> NDArray[np.float32]:
    """Read the features of an utterance, (bins, features), whatever float type the file has."""
    features: NDArray[np.float32] = group["input_features"].astype(np.float32)[()]
    return features


def read_integer(group: Any, attribute: str) -> int | None:
    """Read an integer attribute; return None if it is missing or no single integer."""
    value = np.asarray(group.attrs.get(attribute, ""))
    return int(value.item()) if value.size == 1 and value.dtype.kind in "iu" else None


def unreadable(path: Path, error: Exception) -> StabilityError:
    """Make the error for a file that HDF5 cannot read."""
    return StabilityError(f"Cannot read {path} as an HDF5 file ({error}). If it is incomplete, copy it again.")
