"""Write an HDF5 file that appears only when it is complete, on any disk that may become full."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py


@contextlib.contextmanager
def replacing_hdf5(target: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Open an HDF5 file that replaces `target` at the end of the `with` block, unless the block raises.

    Args:
        target: The file. Its folder is made if it is missing.

    Returns:
        A context manager. It gives the open file, and a function that raises the error if a write has failed: call it
        now and then, as writing to the file itself never fails.

    Raises:
        OSError: The file cannot be written. An earlier one stays.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _Sink(temporary, "w+") as sink, h5py.File(sink, "w") as file:
            yield file, sink.check
        sink.check()  # again, as HDF5 writes the last bytes when it closes the file
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class _Sink(io.FileIO):
    """A file that keeps its first write error and raises it only in `check`.

    HDF5 must never see a write error. After one it cannot close the file any more, and the whole process crashes.
    """

    _error: OSError | None = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self._error is None:  # a raw file may write less than it was given
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self.tell()
