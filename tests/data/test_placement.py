"""Batches are the same wherever the features are, and the place depends on size, memory and device."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from stability.data import placement
from stability.data.batches import training_batch, validation_batches
from stability.data.placement import CopiedRows, DeviceRows, HostRows
from stability.data.records import Dataset, Rows, Split
from stability.trials.recorder import hash_batch
from tests.support.configs import tiny
from tests.support.devices import no_waits
from tests.support.sessions import all_features, opened, write_ragged_days
from tests.support.stacks import trained

CPU = torch.device("cpu")
SIZE = 4 * (50 + 60 + 70 + 2 * 45) * 4 * 4  # bytes: days, bins, features, float32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_ragged_days(tmp_path / "data")


def placed(root: Path) -> Dataset:
    return placement.place(opened(root), CPU, root.parent / "outputs")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any data set is large enough for a cache."""
    monkeypatch.setattr(placement, "_CACHED_FROM", 0)


def all_values(split: Split, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.tensor(split.read(i)) for i in range(len(split.records))]).to(dtype)


KINDS: dict[str, Callable[[torch.Tensor, Split], Rows]] = {
    "in memory": lambda values, split: HostRows(values.numpy(), split),
    "copied ahead": lambda values, split: CopiedRows(values.numpy(), split, CPU, pinned=False),
    "pinned": lambda values, split: CopiedRows(values.numpy(), split, CPU, pinned=True),
    "on the device": DeviceRows,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_files(root: Path, kind: str, dtype: torch.dtype) -> None:
    data = opened(root)
    for split in (data.train, data.val):
        there = replace(split, rows=KINDS[kind](all_values(split, dtype), split))
        of_files = [training_batch(split, 7, 3, seed=0, step=step) for step in range(12)]
        ours = [training_batch(there, 7, 3, seed=0, step=step) for step in (*range(9), 11, 10, 9)]
        of_files += validation_batches(split, 2)
        ours += validation_batches(there, 2)
        for batch, wanted in zip([*ours[:9], *ours[11:8:-1], *ours[12:]], of_files, strict=True):
            assert batch.utterances == wanted.utterances
            assert batch.features.dtype == torch.float32
            assert torch.equal(batch.features, wanted.features.to(dtype).float())
            assert torch.equal(batch.bins, wanted.bins)
            assert torch.equal(batch.labels, wanted.labels)
            assert hash_batch(batch) == hash_batch(wanted)
        read = there.read(1)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, torch.from_numpy(split.read(1)).to(dtype).float())


def test_training_is_the_same_wherever_the_features_are(dataset: Dataset) -> None:
    found = set()
    for kind in KINDS.values():
        there = replace(dataset.train, rows=kind(all_values(dataset.train, torch.float32), dataset.train))
        _, tables = trained([tiny("seed=1"), tiny("seed=2")], replace(dataset, train=there), 3)
        found.add(b"".join(table.values.tobytes() for table in tables))
    assert len(found) == 1


def test_a_small_set_is_read_into_memory(root: Path) -> None:
    wanted = all_features(opened(root).train)
    data = placed(root)
    assert data.location == "17.3 kB of float32 in memory"
    shutil.rmtree(root / "day.2")
    assert all_features(data.train) == wanted
    with pytest.raises(ValueError, match="read-only"):
        data.train.read(4)[0, 0] = 1


def test_a_small_set_stays_in_its_files_if_memory_is_short(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for available, location in ((4 * SIZE, "17.3 kB of float32 in memory"), (4 * SIZE - 4, "read from its files")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: SimpleNamespace(available=available))
        assert placed(root).location == location
    assert not (root / "cache").exists()


def test_a_large_set_is_mapped_from_a_cache(root: Path, large: None) -> None:
    data = placed(root)
    assert data.location == "17.3 kB of float32 mapped from a cache"
    assert data.gpu_bytes == 0
    assert all_features(data.train) == all_features(opened(root).train)
    assert all_features(data.val) == all_features(opened(root).val)


def test_the_cache_is_under_outputs_if_it_cannot_be_next_to_the_data(root: Path, large: None) -> None:
    (root / "cache").touch()
    data = placed(root)
    assert data.location == "17.3 kB of float32 mapped from a cache"
    assert len([*(root.parent / "outputs/cache").glob("*/*.npy")]) == 2
    assert all_features(data.val) == all_features(opened(root).val)


def test_training_works_without_room_for_a_cache(root: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    data = placed(root)
    reason = "needs 11.5 kB, but only 1.0 kB are free"
    outputs = next((root.parent / "outputs/cache").iterdir())
    no_cache = f" (without a cache: {root / 'cache'}: {reason}; {outputs}: {reason})"
    assert data.location == f"17.3 kB of float32 in memory{no_cache}"
    assert all_features(data.train) == all_features(opened(root).train)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    data = placed(root)
    assert data.location == f"read from its files{no_cache}"
    assert all_features(data.train) == all_features(opened(root).train)


def test_pinned_memory_is_counted_as_pytorch_allocates_it(root: Path) -> None:
    """In powers of two, one for each split."""
    data = opened(root)
    splits = (data.train, data.val)
    assert [int(placement._starts(split)[-1]) * 4 * 2 for split in splits] == [5760, 2880]
    assert placement._pinned_bytes(splits, torch.float16) == 8192 + 4096


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gets_the_batches_of_the_files(root: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each place on or near the GPU. The host never waits for a batch that the GPU makes."""
    device, files = torch.device("cuda:0"), opened(root)
    pinned = "in pinned memory, of which they take 12.3 kB"
    locations = {"on cuda:0": (0.4, 0.25), pinned: (0.0, 0.25), "mapped from a cache": (0.0, 0.0)}
    for location, (gpu_share, memory_share) in locations.items():
        monkeypatch.setattr(placement, "_GPU_SHARE", gpu_share)
        monkeypatch.setattr(placement, "_MEMORY_SHARE", memory_share)
        data = placement.place(files, device, root.parent / "outputs")
        assert data.location == f"8.6 kB of float16 {location}"
        assert data.gpu_bytes == (SIZE // 2 if location == "on cuda:0" else 0)
        for step in range(6):
            batch, wanted = (training_batch(split, 7, 3, seed=0, step=step) for split in (data.train, files.train))
            assert batch.features.device == device
            assert torch.equal(batch.features.cpu(), wanted.features.half().float())
    resident = DeviceRows(all_values(files.train, torch.float16).to(device), files.train)
    with no_waits(device):
        batch = training_batch(replace(files.train, rows=resident), 7, 3, seed=0, step=0)
    wanted = training_batch(files.train, 7, 3, seed=0, step=0)
    assert torch.equal(batch.features.cpu(), wanted.features.half().float())
