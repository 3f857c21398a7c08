"""A cache of a split's features: one array in one file, which opens at once and may be larger than the memory.

It is a snapshot, in the folder `cache` beside the sessions, or under `outputs` where that cannot be written, and may be
deleted at any time. Its name has a hash over the sizes and times of the files that it was made of, so a changed file
gives another; a JSON file beside it lists them, by which caches that nobody will ask for again are removed.
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
from stability.data.progress import locked, progress
from stability.data.t15 import Split

_VERSION = 1  # raise it when the same files come to mean another array
_UNFINISHED = "unfinished"


def mapped(split: Split, name: str, dtype: torch.dtype, folders: Sequence[Path]) -> NDArray[np.floating[Any]]:
    """The features of a split, (all bins, features), mapped read-only; the file is written the first time.

    name: of the split. folders: where the file is looked for, and then where it is written: in the first that has
    room. Of several processes that ask at once, one writes. Raises OSError where none can be written, and OverflowError
    if a feature is beyond the range of the dtype.
    """
    numbers = str(dtype).removeprefix("torch.")
    sources = {str(file.relative_to(split.path)): _stamp(file) for file in split.files}
    trials = [(record.day, record.name) for record in split.records]
    key = json.dumps([_VERSION, numbers, sources, trials])
    file = f"{name}-{numbers}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.npy"
    for folder in folders:
        if (values := _found(folder / file)) is not None:
            return values
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"writing the cache {folder / file}"):
                if (values := _found(folder / file)) is None:
                    _remove_stale(folder, split.path)
                    _write(split, folder / file, dtype, sources)
                    values = _map(folder / file)
            return values
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise OSError("; ".join(reasons))


def rounded(features: NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
    """Features in a dtype; raises OverflowError if one of them is beyond its range."""
    whole = torch.from_numpy(features)
    values = whole.to(dtype)
    if dtype != torch.float32 and bool((values.isinf() & whole.isfinite()).any()):
        raise OverflowError(f"a feature is beyond the range of {dtype}")
    return values


def _found(file: Path) -> NDArray[np.floating[Any]] | None:
    try:
        return _map(file)
    except (OSError, ValueError):  # not there, or not whole
        return None


def _map(file: Path) -> NDArray[np.floating[Any]]:
    values: NDArray[np.floating[Any]] = np.load(file, mmap_mode="r")
    return values


def _stamp(file: Path) -> list[int] | None:
    """The size of a file and when it was changed, in nanoseconds; None if it is not there."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _remove_stale(folder: Path, data: Path) -> None:
    """Caches of files that are no longer as they were. Who has one mapped keeps it until its end."""
    for listed in folder.glob("*.json"):
        sources = json.loads(listed.read_text())
        if any(_stamp(data / file) != stamp for file, stamp in sources.items()):
            listed.with_suffix(".npy").unlink(missing_ok=True)
            listed.unlink()


def _write(split: Split, file: Path, dtype: torch.dtype, sources: dict[str, Any]) -> None:
    bins = sum(record.n_time_steps for record in split.records)
    needed = bins * split.n_features * dtype.itemsize
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"needs {decimal(needed)}, and {decimal(free)} are free")
    unfinished = file.with_name(_UNFINISHED)
    header = {"descr": f"<f{dtype.itemsize}", "fortran_order": False, "shape": (bins, split.n_features)}
    try:
        with unfinished.open("wb") as part, progress(f"writing the cache {file.name}", needed) as advance:
            npy.write_array_header_1_0(part, header)
            for i in range(len(split.records)):
                values = rounded(split.read(i), dtype).numpy()
                part.write(values.data)
                advance(values.nbytes)
            part.flush()
            os.fsync(part.fileno())
        write_atomically(file.with_suffix(".json"), json.dumps(sources, indent=1).encode())
        unfinished.rename(file)
    finally:
        unfinished.unlink(missing_ok=True)
