"""Locks that a process holds while it works in a folder. They end with the process, however it ends.

They are those of the package filelock on POSIX, which a training uses, without the package.
"""

import fcntl
from pathlib import Path
from typing import IO


def try_lock(path: Path) -> IO[str] | None:
    """Lock a file, which is made if it does not exist.

    Returns:
        The file, whose lock ends when it is closed; None if another process holds it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    if not path.exists():
        return False
    file = try_lock(path)
    if file is not None:
        file.close()
    return file is None
