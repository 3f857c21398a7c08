"""Locks that end with the process that holds them."""

import os
import socket
from pathlib import Path

import pytest
from filelock import FileLock

from stability.core.errors import StabilityError
from stability.core.locks import is_locked, lock_alone, try_lock


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


def test_who_is_refused_is_told_who_works_there_and_the_file_that_stays_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("Process 1 of an older run, which was killed, and of which more was written than is now\n")
    who = f"^Process {os.getpid()} of {socket.gethostname()} is at work in "
    with lock_alone(path), pytest.raises(StabilityError, match=who):
        lock_alone(path)
    lock_alone(path).close()
