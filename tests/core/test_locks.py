"""Locks that end with the process that holds them."""

from pathlib import Path

from filelock import FileLock

from stability.core.locks import is_locked, try_lock


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    assert is_locked(path)
    held.close()
    assert not is_locked(path)


def test_a_training_is_seen_that_holds_its_lock_by_filelock(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")
