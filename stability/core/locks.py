"""Locks that a process holds while it works in a folder. They end with the process, however it ends.

They are those of the package filelock on POSIX, which a training uses, without the package.
"""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from stability.core.errors import StabilityError
from stability.core.files import short_path


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


def lock_alone(path: Path) -> IO[str]:
    """Lock a file for this process alone, and write into it which process of which host that is.

    Returns:
        The file, whose lock ends when it is closed.

    Raises:
        StabilityError: Another process holds it.
    """
    file = try_lock(path)
    if file is None:
        holder = path.read_text().strip() or "Another process"  # it has locked the file, and not written into it yet
        raise StabilityError(
            f"{holder} is at work in {short_path(path.parent)}: wait for its end, or end it, or give this one a folder "
            "of its own: study=OTHER."
        )
    file.truncate(0)
    file.write(f"Process {os.getpid()} of {socket.gethostname()}\n")
    file.flush()
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    if not path.exists():
        return False
    file = try_lock(path)
    if file is not None:
        file.close()
    return file is None
