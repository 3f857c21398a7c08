"""Follows the log of a program while it grows. Every format of `python -m stability.diagnose` is read."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stability.core.errors import StabilityError
from stability.diagnosis.readers import Recording, read_log


class LogFollower:
    """Reads a log again when it has changed.

    Args:
        path: The log: a file, or a folder with logs in it. It need not be there yet.
        names: What the log calls a signal, for names that are not known.
    """

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._path, self._names = path, names
        self._seen: object = None

    def look(self) -> Recording | None:
        """Return the last training in the log so far; None if nothing is new, or if no training has begun."""
        if (state := _state(self._path)) == self._seen:
            return None
        self._seen = state
        with suppress(StabilityError):
            return self.read()
        return None

    def read(self) -> Recording:
        """Read the last training in the log.

        Raises:
            StabilityError: There is no log, or no training in it.
        """
        return read_log(self._path, names=self._names)


def _state(path: Path) -> object:
    """What changes when a log grows: the sizes and times of its files."""
    with suppress(OSError):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return [(file, stat.st_size, stat.st_mtime_ns) for file in files if (stat := file.stat())]
    return None
