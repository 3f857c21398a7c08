"""Choose where the features are during training: on the GPU, in memory, mapped from a cache, or in their files.

Every place gives the same batches, to the bit, apart from rounding to float16 on CUDA.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor

from stability.core.device import to_device
from stability.data import cache
from stability.data.progress import progress
from stability.data.records import Dataset, DrawNext, Rows, Split, pad

_CACHED_FROM = 256 << 20  # bytes; smaller sets are read from their files within a second
_GPU_SHARE = 0.4  # of the GPU's free memory; training needs the rest
_MEMORY_SHARE = 0.25  # of the free main memory
_MOST_AHEAD = 16  # batches prepared in advance, at most: a stack asks for one per seed

_Values = NDArray[np.floating[Any]]  # (bins of all utterances, features), float32 or float16


def place(dataset: Dataset, device: torch.device, outputs: Path) -> Dataset:
    """Put the features where training on `device` reads them fastest.

    On a CPU they stay float32, to the bit. On CUDA they become float16, which rounds them by up to 0.05 %, unless a
    value is beyond its range. A set of 256 MiB or more is written into a cache once.

    Args:
        dataset: A data set that was just opened.
        device: The device to train on.
        outputs: The folder for the cache if it cannot be written next to the sessions.

    Returns:
        The same data set with other `rows`. Its `location` names the place.
    """
    if device.type == "cuda":
        try:
            return _place(dataset, device, outputs, torch.float16)
        except OverflowError:
            pass  # a value is beyond float16's range
    return _place(dataset, device, outputs, torch.float32)


class HostRows:
    """Features in main memory, or mapped into it from a cache, for training on the CPU."""

    def __init__(self, values: _Values, split: Split) -> None:
        """Take the features of all utterances, (bins, features), and the split that they belong to."""
        self._values = values.view()
        self._values.flags.writeable = False
        self._starts = _starts(split)

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`, (bins, features). They are read-only."""
        return self._values[self._starts[i] : self._starts[i + 1]].astype(np.float32, copy=False)

    def batch(self, utterances: Sequence[int], draw_next: DrawNext) -> Tensor:
        """Make a batch of some utterances, (B, T, F)."""
        return torch.from_numpy(pad([self.read(i) for i in utterances]))


class CopiedRows(HostRows):
    """Features in main memory for training on a GPU. The next batch is copied while this one is trained on."""

    def __init__(self, values: _Values, split: Split, device: torch.device, *, pinned: bool) -> None:
        """Take the features of all utterances.

        Args:
            values: (bins, features).
            split: The split that they belong to.
            device: The device to copy to.
            pinned: Whether `values` is page-locked memory, from which the GPU copies without help of the CPU.
        """
        super().__init__(values, split)
        self._source = values  # writable, since PyTorch warns about tensors on read-only arrays
        self._device, self._pinned = device, pinned
        # Copies in a stream of their own overlap with the computation in the current stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1)
        self._copies: dict[tuple[int, ...], Future[tuple[Tensor, torch.cuda.Event | None]]] = {}

    def batch(self, utterances: Sequence[int], draw_next: DrawNext) -> Tensor:
        """Make a batch of some utterances on the device, and start to copy the next one."""
        self._start_copy(utterances)  # does nothing if the copy was started a step ago
        copy = self._copies.pop(tuple(utterances))
        if following := draw_next():
            self._start_copy(following)
        batch, copied = copy.result()
        if copied is not None:
            # The host does not wait for the copy: the event makes the computing stream wait for it.
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            # The batch was allocated in the copying stream. Without this note the allocator could give its memory to
            # the next copy while the computing stream still reads it.
            batch.record_stream(stream)
        return batch.float()

    def _start_copy(self, utterances: Sequence[int]) -> None:
        key = tuple(utterances)
        if key in self._copies:
            return
        while len(self._copies) >= _MOST_AHEAD:  # a trial that ended never asks for its next batch
            del self._copies[next(iter(self._copies))]
        self._copies[key] = self._thread.submit(self._copy, key)

    def _copy(self, utterances: Sequence[int]) -> tuple[Tensor, torch.cuda.Event | None]:
        features = [self._pinned_features(i) for i in utterances]
        shape = (len(features), max(map(len, features)), features[0].shape[1])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            batch = torch.zeros(shape, dtype=features[0].dtype, device=self._device)
            for row, own in enumerate(features):
                batch[row, : len(own)].copy_(own, non_blocking=True)
            return batch, None if self._stream is None else self._stream.record_event()

    def _pinned_features(self, i: int) -> Tensor:
        """An utterance in pinned memory: only from there is a copy to the GPU asynchronous."""
        own = self._source[self._starts[i] : self._starts[i + 1]]
        if self._pinned:
            return torch.from_numpy(own)  # a view; CUDA knows pinned memory by its address
        buffer = torch.empty(own.shape, dtype=_dtype_of(own), pin_memory=self._stream is not None)
        buffer.numpy()[:] = own
        return buffer


class DeviceRows:
    """Features on the device, which makes the batches there. The host only sends their starts and lengths."""

    def __init__(self, values: Tensor, split: Split) -> None:
        """Take the features of all utterances, (bins, features), and the split that they belong to."""
        self._values = values
        self._starts = _starts(split)

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`, (bins, features)."""
        own: NDArray[np.float32] = self._values[self._starts[i] : self._starts[i + 1]].float().cpu().numpy()
        return own

    def batch(self, utterances: Sequence[int], draw_next: DrawNext) -> Tensor:
        """Make a batch of some utterances on the device."""
        starts, ends = self._starts[list(utterances)], self._starts[[i + 1 for i in utterances]]
        device = self._values.device
        start, bins = to_device(torch.from_numpy(np.stack([starts, ends - starts])), device).unsqueeze(2)
        time = torch.arange(int((ends - starts).max()), device=device)
        inside = time < bins  # (B, T)
        source = torch.where(inside, start + time, start)  # padding reads any valid bin, and is zeroed below
        batch = self._values.index_select(0, source.flatten()).view(*source.shape, -1).float()
        return batch.masked_fill_(~inside.unsqueeze(2), 0)


def _place(dataset: Dataset, device: torch.device, outputs: Path, dtype: torch.dtype) -> Dataset:
    splits = {"train": dataset.train, "val": dataset.val}
    size = int(sum(_starts(split)[-1] for split in splits.values())) * dataset.n_features * dtype.itemsize
    caches: dict[str, _Values] = {}
    no_cache = ""
    if size >= _CACHED_FROM:
        try:
            caches = _map_caches(splits, dtype, outputs)
        except OSError as error:
            no_cache = f" (without a cache: {error})"

    def load(name: str, **options: Any) -> Tensor:
        return _load(splits[name], caches.get(name), dtype, **options)

    cuda = device.type == "cuda"
    pinned_size = _pinned_bytes(splits.values(), dtype)
    room = _MEMORY_SHARE * psutil.virtual_memory().available
    rows: dict[str, Rows]
    gpu_bytes = 0
    if cuda and size <= _GPU_SHARE * _free_gpu_bytes(device):
        rows = {name: DeviceRows(load(name, device=device), split) for name, split in splits.items()}
        where, gpu_bytes = f"on {device}", size
    elif cuda and pinned_size <= room:
        pinned = {name: load(name, pin_memory=True).numpy() for name in splits}
        rows = {name: CopiedRows(pinned[name], split, device, pinned=True) for name, split in splits.items()}
        where = f"in pinned memory, of which they take {decimal(pinned_size)}"
    elif cuda and caches:
        rows = {name: CopiedRows(caches[name], split, device, pinned=False) for name, split in splits.items()}
        where = "mapped from a cache"
    elif caches:
        rows = {name: HostRows(caches[name], split) for name, split in splits.items()}
        where = "mapped from a cache"
    elif size <= room:
        rows = {name: HostRows(load(name).numpy(), split) for name, split in splits.items()}
        where = "in memory"
    else:
        return replace(dataset, location=dataset.location + no_cache)
    return Dataset(
        replace(dataset.train, rows=rows["train"]),
        replace(dataset.val, rows=rows["val"]),
        location=f"{decimal(size)} of {str(dtype).removeprefix('torch.')} {where}{no_cache}",
        gpu_bytes=gpu_bytes,
    )


def _pinned_bytes(splits: Iterable[Split], dtype: torch.dtype) -> int:
    """Count the bytes of pinned memory that the features take. PyTorch rounds each tensor up to a power of two."""
    sizes = [int(_starts(split)[-1]) * split.n_features * dtype.itemsize for split in splits]
    return sum(1 << max(0, size - 1).bit_length() for size in sizes)


def _map_caches(splits: dict[str, Split], dtype: torch.dtype, outputs: Path) -> dict[str, _Values]:
    root = splits["train"].path
    own = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:10]
    folders = (root / "cache", outputs / "cache" / own)
    return {name: cache.map_split(split, name, dtype, folders) for name, split in splits.items()}


def _load(split: Split, source: _Values | None, dtype: torch.dtype, **options: Any) -> Tensor:
    """Copy the features of a split, from its cache or its files, into a new tensor."""
    starts = _starts(split)
    values = torch.empty(int(starts[-1]), split.n_features, dtype=dtype, **options)
    with progress("loading the data", len(split.records)) as advance:
        for i, (start, end) in enumerate(pairwise(starts)):
            own = cache.convert(split.read(i), dtype) if source is None else torch.tensor(source[start:end])
            values[start:end].copy_(own)
            advance(1)
    return values


def _starts(split: Split) -> NDArray[np.int64]:
    """Return where each utterance starts in the bins of all utterances, and where the last one ends."""
    return np.cumsum([0, *(record.n_time_steps for record in split.records)])


def _dtype_of(values: _Values) -> torch.dtype:
    return torch.float16 if values.dtype == np.float16 else torch.float32


def _free_gpu_bytes(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
        device
    )  # memory that PyTorch holds and can use again
    return int(torch.cuda.mem_get_info(device)[0]) + unused
