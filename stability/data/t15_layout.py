"""The public layout of the T15 recordings: a folder for each session, in it an HDF5 file for each split.

In a file each utterance is a group (`trial_0000`, `trial_0001` …) with the dataset `input_features`, (bins, features).
An utterance with labels also has the datasets `seq_class_ids` and `transcription`, both padded with zeros. Attributes
of the group are `n_time_steps`, `seq_len`, `block_num`, `trial_num`, `session` and `sentence_label`.
"""

import math
import os
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from stability.core.errors import StabilityError
from stability.core.text import printable

SPLITS: Final = ("train", "val", "test")
ID_SLOTS: Final = 500  # length of `seq_class_ids` and `transcription`, padded with zeros
EXPECTED: Final = (
    "Give a folder with one folder for each session, each with data_train.hdf5, data_val.hdf5 or data_test.hdf5."
)
_LARGEST = 1 << 32  # bytes of one utterance: a day at 1,000 bins a second has less


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
    if path.exists() and not path.is_file():  # a named pipe: HDF5 would wait for ever
        raise OSError("it is not a regular file")
    # Without a lock: read-only and network file systems often cannot lock, and a finished file needs no lock.
    return h5py.File(path, "r", locking=False)


def member(group: Any, name: str) -> Any:
    """Return a group or a dataset that is stored in the file itself, in full; None if there is none of that name.

    HDF5 would follow links and read values from any other file, and would give zeros for values that are missing.

    Raises:
        ValueError: It is a link, or not all of its values are in the file.
    """
    kind = group.get(name, getlink=True, getclass=True)
    if kind is None:
        return None
    if kind is not h5py.HardLink:
        raise ValueError(f"{name} is a link. Put its values in its place")
    found = group[name]
    if isinstance(found, h5py.Dataset):
        _check_stored(name, found)
    return found


def _check_stored(name: str, dataset: Any) -> None:
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"the values of {name} are in another file. Put them into this one")
    if dataset.shape is None:
        raise ValueError(f"{name} has no values")
    size = dataset.size * dataset.id.get_type().get_size()
    if size > _LARGEST:
        raise ValueError(f"{name} has the shape {dataset.shape}, which is {decimal(size)}")
    if dataset.chunks is None:
        is_whole = dataset.id.get_storage_size() >= size
    else:
        counts = (-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        is_whole = dataset.id.get_num_chunks() == math.prod(counts)
    if not is_whole:
        raise ValueError(f"{name} has the shape {dataset.shape}, but the file holds only some of its values")


def read_features(group: Any) -> NDArray[np.float32]:
    """Read the features of an utterance, (bins, features), whatever float type the file has.

    Raises:
        ValueError: They are not stored in the file.
    """
    features: NDArray[np.float32] = member(group, "input_features").astype(np.float32)[()]
    return features


def read_integer(group: Any, attribute: str) -> int | None:
    """Read an integer attribute; return None if it is missing or no single integer."""
    value = np.asarray(group.attrs.get(attribute, ""))
    return int(value.item()) if value.size == 1 and value.dtype.kind in "iu" else None


def unreadable(path: Path, error: Exception) -> StabilityError:
    """Make the error for a file that HDF5 cannot read."""
    return StabilityError(
        f"Cannot read {printable(path)} as an HDF5 file ({printable(error)}). If it is incomplete, copy it again."
    )
