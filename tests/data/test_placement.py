"""Batches are the same wherever features are kept; what is large has a cache, and goes without one if it has to."""

import resource
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock

from stability.data import placement as store
from stability.data import progress, t15
from stability.data.batches import training_batch, validation_batches
from stability.data.placement import Copied, OnDevice, OnHost, keep
from stability.data.t15 import Dataset, Rows, Split, Trial, open_dataset, write_session
from stability.trials.recorder import hash_of
from tests.support.configs import tiny
from tests.support.stacks import trained

CPU = torch.device("cpu")
SIZE = 4 * (50 + 60 + 70 + 2 * 45) * 4 * 4  # bytes: days, bins, features, float32


def write_day(root: Path, day: int, scale: float = 1.0) -> None:
    rng = np.random.default_rng(day)
    for split, lengths in (("train", [50, 60, 70]), ("val", [45, 45])):
        trials = [
            Trial(scale * rng.normal(size=(length, 4)), rng.permutation(np.arange(1, 41))[:5], "", 0, number)
            for number, length in enumerate(lengths)
        ]
        write_session(root / f"day.{day}", split, trials)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four days of three ragged trials to train and two to validate."""
    for day in range(4):
        write_day(tmp_path / "data", day)
    return tmp_path / "data"


def in_files(root: Path) -> Dataset:
    return open_dataset(root, patch_size=14, patch_stride=4, max_cut=2, index_dir=root.parent / "index")


def kept(root: Path) -> Dataset:
    return keep(in_files(root), CPU, root.parent / "outputs")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any data set is large enough for a cache."""
    monkeypatch.setattr(store, "_CACHED_FROM", 0)


def caches(root: Path) -> set[str]:
    """The splits and dtypes that have a cache."""
    return {path.name.rpartition("-")[0] for path in root.glob("cache/*.npy")}


def features(split: Split) -> list[bytes]:
    return [split.read(i).tobytes() for i in range(len(split.records))]


def all_values(split: Split, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.tensor(split.read(i)) for i in range(len(split.records))]).to(dtype)


KINDS: dict[str, Callable[[torch.Tensor, Split], Rows]] = {
    "on the host": lambda values, split: OnHost(values.numpy(), split),
    "copied ahead": lambda values, split: Copied(values.numpy(), split, CPU, pinned=False),
    "pinned": lambda values, split: Copied(values.numpy(), split, CPU, pinned=True),
    "on the device": OnDevice,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_files(root: Path, kind: str, dtype: torch.dtype) -> None:
    data = in_files(root)
    for split in (data.train, data.val):
        there = replace(split, rows=KINDS[kind](all_values(split, dtype), split))
        of_files = [training_batch(split, 7, 3, 0, step) for step in range(12)]
        ours = [training_batch(there, 7, 3, 0, step) for step in (*range(9), 11, 10, 9)]
        of_files += validation_batches(split, 2)
        ours += validation_batches(there, 2)
        for batch, wanted in zip([*ours[:9], *ours[11:8:-1], *ours[12:]], of_files, strict=True):
            assert batch.trials == wanted.trials
            assert batch.features.dtype == torch.float32
            assert torch.equal(batch.features, wanted.features.to(dtype).float())
            assert torch.equal(batch.bins, wanted.bins)
            assert torch.equal(batch.labels, wanted.labels)
            assert hash_of(batch) == hash_of(wanted)
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


def test_what_is_small_is_read_into_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = features(in_files(root).train)
    data = kept(root)
    assert data.place == "17.3 kB of float32 in memory"
    shutil.rmtree(root / "day.2")
    assert features(data.train) == wanted
    with pytest.raises(ValueError, match="read-only"):
        data.train.read(4)[0, 0] = 1


def test_what_is_small_stays_in_its_files_where_memory_is_short(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for available, place in ((4 * SIZE, "17.3 kB of float32 in memory"), (4 * SIZE - 4, "read from its files")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: SimpleNamespace(available=available))
        assert kept(root).place == place
    assert not (root / "cache").exists()


def test_a_cache_is_written_once_and_mapped(root: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = in_files(root)
    wanted = features(files.train), features(files.val)
    data = kept(root)
    assert data.place == "17.3 kB of float32 mapped from a cache"
    assert caches(root) == {"train-float32", "val-float32"}
    assert (features(data.train), features(data.val)) == wanted
    monkeypatch.delattr(t15._Files, "read")
    assert features(kept(root).train) == wanted[0]
    moved = root.rename(root.with_name("moved"))
    assert features(kept(moved).train) == wanted[0]


def test_a_changed_file_gives_another_cache(root: Path, large: None) -> None:
    data = kept(root)
    before = features(data.train)
    (train,) = root.glob("cache/train-*.npy")
    write_day(root, 2, scale=2.0)
    assert features(data.train) == before  # of a training that is under way
    assert features(kept(root).train) == features(in_files(root).train) != before
    assert not train.exists()
    assert caches(root) == {"train-float32", "val-float32"}


def test_a_cache_that_is_cut_short_is_written_anew(root: Path, large: None) -> None:
    kept(root)
    (train,) = root.glob("cache/train-*.npy")
    train.write_bytes(train.read_bytes()[:5000])
    assert features(kept(root).train) == features(in_files(root).train)


def test_other_days_have_a_cache_of_their_own(root: Path, large: None) -> None:
    kept(root)
    few = open_dataset(
        root, sessions=["day.1", "day.3"], patch_size=14, patch_stride=4, max_cut=2, index_dir=root.parent / "index"
    )
    assert features(keep(few, CPU, root.parent / "outputs").train) == features(few.train)
    assert len([*root.glob("cache/*.npy")]) == 4


def test_a_cache_lies_under_outputs_where_it_cannot_be_beside_the_data(root: Path, large: None) -> None:
    (root / "cache").touch()
    data = kept(root)
    assert data.place == "17.3 kB of float32 mapped from a cache"
    assert len([*(root.parent / "outputs/cache").glob("*/*.npy")]) == 2
    assert features(data.val) == features(in_files(root).val)


def test_without_room_for_a_cache_training_goes_without(
    root: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    data = kept(root)
    reason = "needs 11.5 kB, and 1.0 kB are free"
    outputs = next((root.parent / "outputs/cache").iterdir())
    without = f", as there is no cache ({root / 'cache'}: {reason}; {outputs}: {reason})"
    assert data.place == f"17.3 kB of float32 in memory{without}"
    assert features(data.train) == features(in_files(root).train)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    data = kept(root)
    assert data.place == f"read from its files{without}"
    assert features(data.train) == features(in_files(root).train)


def test_a_disk_that_fills_while_a_cache_is_written_leaves_nothing_of_it(root: Path, large: None) -> None:
    files = in_files(root)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        data = keep(files, CPU, root.parent / "outputs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "in memory, as there is no cache" in data.place
    assert "File too large" in data.place
    assert [path.name for path in (root / "cache").iterdir()] == ["lock"]
    assert features(data.train) == features(files.train)
    assert kept(root).place == "17.3 kB of float32 mapped from a cache"


def test_who_comes_second_waits_and_says_so(
    root: Path, large: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
    (root / "cache").mkdir()
    places: list[str] = []
    second = threading.Thread(target=lambda: places.append(kept(root).place))
    with FileLock(root / "cache/lock"):
        second.start()
        said = ""
        while "waiting" not in said and second.is_alive():
            time.sleep(0.01)
            said += capfd.readouterr().err
        assert said.startswith(f"Another process is writing the cache {root / 'cache/train-float32-'}")
        assert said.endswith(".npy: waiting for it.\n")
        assert not caches(root)
    second.join()
    assert places == ["17.3 kB of float32 mapped from a cache"]


def test_features_beyond_half_precision_are_not_rounded_to_infinity(root: Path, large: None) -> None:
    store._keep(in_files(root), CPU, root.parent / "outputs", torch.float16)
    assert caches(root) == {"train-float16", "val-float16"}
    write_day(root, 3, scale=1e5)
    with pytest.raises(OverflowError):
        store._keep(in_files(root), CPU, root.parent / "outputs", torch.float16)
    assert not (root / "cache/unfinished").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_has_the_batches_of_the_files(root: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose bytes lie on it, are copied to it, and are made on it without the host ever waiting."""
    device, files = torch.device("cuda:0"), in_files(root)
    places = {"on cuda:0": (0.4, 0.25), "in pinned memory": (0.0, 0.25), "mapped from a cache": (0.0, 0.0)}
    for place, (of_gpu, of_host) in places.items():
        monkeypatch.setattr(store, "_OF_GPU", of_gpu)
        monkeypatch.setattr(store, "_OF_HOST", of_host)
        data = keep(files, device, root.parent / "outputs")
        assert data.place == f"8.6 kB of float16 {place}"
        for step in range(6):
            batch, wanted = (training_batch(split, 7, 3, 0, step) for split in (data.train, files.train))
            assert batch.features.device == device
            assert torch.equal(batch.features.cpu(), wanted.features.half().float())
    resident = OnDevice(all_values(files.train, torch.float16).to(device), files.train)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = training_batch(replace(files.train, rows=resident), 7, 3, 0, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.features.cpu(), training_batch(files.train, 7, 3, 0, 0).features.half().float())
