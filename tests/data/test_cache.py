"""A cache is written once, is found again, is renewed when its sources change, and is never half written."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from stability.data import cache
from stability.data.records import Split
from stability.data.t15_reader import FileRows
from tests.support.sessions import all_features, opened, write_ragged_day, write_ragged_days


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_ragged_days(tmp_path / "data")


def mapped(root: Path, split: Split, dtype: torch.dtype = torch.float32) -> bytes:
    return cache.map_split(split, "train", dtype, [root / "cache"]).tobytes()


def from_files(split: Split) -> bytes:
    return b"".join(all_features(split))


def test_a_cache_is_written_once_and_then_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = opened(root).train
    wanted = from_files(split)
    assert mapped(root, split) == wanted
    monkeypatch.delattr(FileRows, "read")
    assert mapped(root, opened(root).train) == wanted
    moved = root.rename(root.with_name("moved"))
    assert mapped(moved, opened(moved).train) == wanted


def test_the_mapped_features_are_read_only(root: Path) -> None:
    values = cache.map_split(opened(root).train, "train", torch.float32, [root / "cache"])
    assert values.shape == (4 * (50 + 60 + 70), 4)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1


def test_a_changed_file_leads_to_another_cache(root: Path) -> None:
    before = cache.map_split(opened(root).train, "train", torch.float32, [root / "cache"])
    content = before.tobytes()
    (old,) = root.glob("cache/train-*.npy")
    write_ragged_day(root, 2, scale=2.0)
    assert mapped(root, opened(root).train) == from_files(opened(root).train) != content
    assert before.tobytes() == content  # for a training that is under way
    assert not old.exists()
    assert len([*root.glob("cache/*.npy")]) == len([*root.glob("cache/*.json")]) == 1


def test_a_cache_that_was_cut_short_is_written_again(root: Path) -> None:
    mapped(root, opened(root).train)
    (file,) = root.glob("cache/train-*.npy")
    file.write_bytes(file.read_bytes()[:5000])
    assert mapped(root, opened(root).train) == from_files(opened(root).train)


def test_other_days_have_a_cache_of_their_own(root: Path) -> None:
    mapped(root, opened(root).train)
    few = opened(root, sessions=["day.1", "day.3"]).train
    assert mapped(root, few) == from_files(few)
    assert len([*root.glob("cache/*.npy")]) == 2


def test_a_disk_that_fills_while_a_cache_is_written_leaves_no_part_of_it(root: Path) -> None:
    split = opened(root).train
    with file_size_limit(2000), pytest.raises(OSError, match="File too large"):
        mapped(root, split)
    assert [path.name for path in (root / "cache").iterdir()] == ["lock"]
    assert mapped(root, split) == from_files(split)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_features_beyond_half_precision_are_not_rounded_to_infinity(root: Path) -> None:
    half = cache.map_split(opened(root).train, "train", torch.float16, [root / "cache"])
    assert half.dtype == np.float16
    write_ragged_day(root, 3, scale=1e5)
    with pytest.raises(OverflowError):
        mapped(root, opened(root).train, torch.float16)
    assert not (root / "cache/unfinished").exists()
