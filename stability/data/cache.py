"""A cache of a split's features: one array in one file, which opens at once and may be larger than memory.

A cache is a snapshot. It lies in the folder `cache` next to the sessions, or under `outputs` if that folder cannot be
written. You may delete it at any time. Its name contains a hash of the sizes and modification times of its sources, so
that a changed source leads to another cache. A JSON file next to it lists the sources, so that stale caches can be
found and removed.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from rich.filesize import decimal

from stability.core.files import write_atomically
from stability.core.text import load_json
from stability.data.progress import locked, progress
from stability.data.records import Split

_VERSION = 1  # raise it when the same files give another array
_UNFINISHED = "unfinished"


def map_split(split: Split, name: str, dtype: torch.dtype, folders: Sequence[Path]) -> NDArray[np.floating[Any]]:
    """Map the features of a split into memory, read-only. Write the cache first if there is none.

    If several processes ask at once, one of them writes and the others wait.

    Args:
        split: The split.
        name: Its name, for the file's name.
        dtype: The type to store, float32 or float16.
        folders: Where to look for the cache, and then where to write it: in the first folder that has room.

    Returns:
        The features of all utterances, (bins, features).

    Raises:
        OSError: No folder can hold the cache.
        OverflowError: A feature is beyond the range of `dtype`.
    """
    numbers = str(dtype).removeprefix("torch.")
    sources = {str(file.relative_to(split.path)): _stamp(file) for file in split.files}
    utterances = [(record.day, record.name) for record in split.records]
    key = json.dumps([_VERSION, numbers, sources, utterances])
    file = f"{name}-{numbers}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.npy"
    for folder in folders:
        if (values := _map_if_whole(folder / file)) is not None:
            return values
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"writing the cache {folder / file}"):
                if (values := _map_if_whole(folder / file)) is None:  # no other process wrote it meanwhile
                    _remove_stale(folder, split.path)
                    _write(split, folder / file, dtype, sources)
                    values = _map(folder / file)
            return values
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise OSError("; ".join(reasons))


def convert(features: NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
    """Convert features to a dtype; raise OverflowError if one of them is beyond its range."""
    whole = torch.from_numpy(features)
    values = whole.to(dtype)
    if dtype != torch.float32 and bool((values.isinf() & whole.isfinite()).any()):
        raise OverflowError(f"a feature is beyond the range of {dtype}")
    return values


def _map_if_whole(file: Path) -> NDArray[np.floating[Any]] | None:
    try:
        return _map(file)
    except (OSError, ValueError, EOFError):  # missing, empty, or shorter than its header says
        return None


def _map(file: Path) -> NDArray[np.floating[Any]]:
    values: NDArray[np.floating[Any]] = np.load(file, mmap_mode="r")
    return values


def _stamp(file: Path) -> list[int] | None:
    """The size of a file in bytes and its modification time in nanoseconds; None if it is missing."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _remove_stale(folder: Path, data: Path) -> None:
    """Remove caches whose source files have changed. A process that has one mapped can go on with it."""
    for listed in folder.glob("*.json"):
        try:
            sources = load_json(listed.read_text())
            is_stale = any(_stamp(data / file) != stamp for file, stamp in sources.items())
        except (ValueError, AttributeError):  # damaged
            is_stale = True
        if is_stale:
            listed.with_suffix(".npy").unlink(missing_ok=True)
            listed.unlink()


def _write(split: Split, file: Path, dtype: torch.dtype, sources: dict[str, Any]) -> None:
    bins = sum(record.n_time_steps for record in split.records)
    needed = bins * split.n_features * dtype.itemsize
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"needs {decimal(needed)}, but only {decimal(free)} are free")
    unfinished = file.with_name(_UNFINISHED)
    header = {"descr": f"<f{dtype.itemsize}", "fortran_order": False, "shape": (bins, split.n_features)}
    try:
        with unfinished.open("wb") as part, progress(f"writing the cache {file.name}", needed) as advance:
            npy.write_array_header_1_0(part, header)
            for i in range(len(split.records)):
                values = convert(split.read(i), dtype).numpy()
                part.write(values.data)
                advance(values.nbytes)
            part.flush()
            os.fsync(part.fileno())
        # The order matters. Without fsync, a power failure after the rename could leave a file of the right name and
        # size with zeros in it, and nothing would show that. With the list of sources first, there is never a cache
        # that lacks its list, which nothing would remove when it is stale.
        write_atomically(file.with_suffix(".json"), json.dumps(sources, indent=1).encode())
        unfinished.rename(file)
    finally:
        unfinished.unlink(missing_ok=True)
