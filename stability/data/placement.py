"""Where the features of a data set are while it is trained on: on the GPU, in memory, or mapped into memory."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor

from stability.core.device import sent
from stability.data import cache
from stability.data.progress import progress
from stability.data.t15 import Dataset, Following, Rows, Split

_CACHED_FROM = 256 << 20  # bytes; what is smaller is read from its files in a second
_OF_GPU = 0.4  # of the free memory, which has to hold the training as well
_OF_HOST = 0.25
_AHEAD = 16  # batches copied before they are asked for, at most: one a seed in a stack

Values = NDArray[np.floating[Any]]  # (all bins, features), float32 or float16
_Number = TypeVar("_Number", bound=np.generic)


def keep(dataset: Dataset, device: torch.device, outputs: Path) -> Dataset:
    """The same data set, with its features at hand for training on `device`, where `place` then says.

    On a CPU they stay float32, to the bit. On CUDA they are float16, which rounds them by up to 0.05 %, unless one of
    them is beyond its range. What is large has a cache, under `outputs` where it cannot be beside the data.
    """
    try:
        return _keep(dataset, device, outputs, torch.float16 if device.type == "cuda" else torch.float32)
    except OverflowError:
        return _keep(dataset, device, outputs, torch.float32)


def padded(rows: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """B arrays (bins, ...) as one (B, T, ...), with zeros behind the shorter ones."""
    whole = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole


class OnHost:
    """Features in the host's memory, or mapped into it, for training on the CPU."""

    def __init__(self, values: Values, split: Split) -> None:
        self._values = values.view()
        self._values.flags.writeable = False
        self._starts = _starts(split)

    def read(self, i: int) -> NDArray[np.float32]:
        """The features of trial `i`: (bins, features), not to be written to."""
        return self._own(i).astype(np.float32, copy=False)

    def padded(self, trials: Sequence[int], following: Following) -> Tensor:
        """Some trials as a batch."""
        return torch.from_numpy(padded([self.read(i) for i in trials]))

    def _own(self, i: int) -> Values:
        return self._values[self._starts[i] : self._starts[i + 1]]


class Copied(OnHost):
    """Features on the host for training on a GPU: a batch is copied while the one before it is trained on."""

    def __init__(self, values: Values, split: Split, device: torch.device, *, pinned: bool) -> None:
        super().__init__(values, split)
        self._source = values  # through which pinned memory is copied without a detour
        self._device, self._pinned = device, pinned
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1)
        self._begun: dict[tuple[int, ...], Future[tuple[Tensor, torch.cuda.Event | None]]] = {}

    def padded(self, trials: Sequence[int], following: Following) -> Tensor:
        """Some trials as a batch on the device. The copy of the following ones is begun."""
        self._begin(trials)
        begun = self._begun.pop(tuple(trials))
        if next_trials := following():
            self._begin(next_trials)
        batch, copied = begun.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            batch.record_stream(stream)  # its memory is not given away before that stream has used it
        return batch.float()

    def _begin(self, trials: Sequence[int]) -> None:
        key = tuple(trials)
        if key in self._begun:
            return
        while len(self._begun) >= _AHEAD:  # nobody has come for the oldest
            del self._begun[next(iter(self._begun))]
        self._begun[key] = self._thread.submit(self._copy, key)

    def _copy(self, trials: Sequence[int]) -> tuple[Tensor, torch.cuda.Event | None]:
        features = [self._whole(i) for i in trials]
        shape = (len(features), max(map(len, features)), features[0].shape[1])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            batch = torch.zeros(shape, dtype=features[0].dtype, device=self._device)
            for row, own in enumerate(features):
                batch[row, : len(own)].copy_(own, non_blocking=True)
            return batch, None if self._stream is None else self._stream.record_event()

    def _whole(self, i: int) -> Tensor:
        """A trial in memory from which the device can copy by itself."""
        own = self._source[self._starts[i] : self._starts[i + 1]]
        if self._pinned:
            return torch.from_numpy(own)
        buffer = torch.empty(own.shape, dtype=_dtype_of(own), pin_memory=self._stream is not None)
        buffer.numpy()[:] = own
        return buffer


class OnDevice:
    """Features on the device, which makes the batches: the host sends nothing but where they begin and end."""

    def __init__(self, values: Tensor, split: Split) -> None:
        self._values = values
        self._starts = _starts(split)

    def read(self, i: int) -> NDArray[np.float32]:
        """The features of trial `i`: (bins, features)."""
        own: NDArray[np.float32] = self._values[self._starts[i] : self._starts[i + 1]].float().cpu().numpy()
        return own

    def padded(self, trials: Sequence[int], following: Following) -> Tensor:
        """Some trials as a batch on the device."""
        starts, ends = self._starts[list(trials)], self._starts[[i + 1 for i in trials]]
        device = self._values.device
        start, bins = sent(torch.from_numpy(np.stack([starts, ends - starts])), device).unsqueeze(2)
        time = torch.arange(int((ends - starts).max()), device=device)
        inside = time < bins  # (B, T)
        place = torch.where(inside, start + time, start)
        batch = self._values.index_select(0, place.flatten()).view(*place.shape, -1).float()
        return batch.masked_fill_(~inside.unsqueeze(2), 0)


def _keep(dataset: Dataset, device: torch.device, outputs: Path, dtype: torch.dtype) -> Dataset:
    splits = {"train": dataset.train, "val": dataset.val}
    size = int(sum(_starts(split)[-1] for split in splits.values())) * dataset.n_features * dtype.itemsize
    maps, without = {}, ""
    if size >= _CACHED_FROM:
        root = dataset.train.path
        own = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:10]
        try:
            folders = (root / "cache", outputs / "cache" / own)
            maps = {name: cache.mapped(split, name, dtype, folders) for name, split in splits.items()}
        except OSError as error:
            without = f", as there is no cache ({error})"

    def filled(name: str, **where: Any) -> Tensor:
        return _filled(splits[name], maps.get(name), dtype, **where)

    cuda = device.type == "cuda"
    in_memory = size <= _OF_HOST * psutil.virtual_memory().available
    rows: dict[str, Rows]
    if cuda and size <= _OF_GPU * _free_on(device):
        rows = {name: OnDevice(filled(name, device=device), split) for name, split in splits.items()}
        where = f"on {device}"
    elif cuda and in_memory:
        pinned = {name: filled(name, pin_memory=True).numpy() for name in splits}
        rows = {name: Copied(pinned[name], split, device, pinned=True) for name, split in splits.items()}
        where = "in pinned memory"
    elif maps:
        where = "mapped from a cache"
        if cuda:
            rows = {name: Copied(maps[name], split, device, pinned=False) for name, split in splits.items()}
        else:
            rows = {name: OnHost(maps[name], split) for name, split in splits.items()}
    elif in_memory:
        rows = {name: OnHost(filled(name).numpy(), split) for name, split in splits.items()}
        where = "in memory"
    else:
        return replace(dataset, place=dataset.place + without)
    return Dataset(
        replace(dataset.train, rows=rows["train"]),
        replace(dataset.val, rows=rows["val"]),
        place=f"{decimal(size)} of {str(dtype).removeprefix('torch.')} {where}{without}",
        on_gpu=size if isinstance(rows["train"], OnDevice) else 0,
    )


def _filled(split: Split, source: Values | None, dtype: torch.dtype, **where: Any) -> Tensor:
    """The features of a split, from its cache or its files, in a tensor of their own."""
    starts = _starts(split)
    values = torch.empty(int(starts[-1]), split.n_features, dtype=dtype, **where)
    with progress("loading the data", len(split.records)) as advance:
        for i, (start, end) in enumerate(pairwise(starts)):
            own = cache.rounded(split.read(i), dtype) if source is None else torch.tensor(source[start:end])
            values[start:end].copy_(own)
            advance(1)
    return values


def _starts(split: Split) -> NDArray[np.int64]:
    """Where each trial begins among all bins, and where the last one ends."""
    return np.cumsum([0, *(record.n_time_steps for record in split.records)])


def _dtype_of(values: Values) -> torch.dtype:
    return torch.float16 if values.dtype == np.float16 else torch.float32


def _free_on(device: torch.device) -> int:
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
