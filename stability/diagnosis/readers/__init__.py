"""Read a training from a log, whatever program wrote it.

Each format has a file of its own here. To add one, write a module with a function `read(log)`, which returns the
recording, or None if the log is of another format, and add that function to `_FORMATS`.
"""

from collections.abc import Callable
from pathlib import Path

from stability.core.errors import StabilityError
from stability.diagnosis.readers import delimited, folder, jsonl, official
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.metrics import read_metrics
from stability.diagnosis.readers.recording import Recording

__all__ = ["Recording", "read_log", "read_metrics"]

# In this order. The official trainer's comes last: its lines may stand anywhere in other output.
_FORMATS: tuple[Callable[[Log], Recording | None], ...] = (jsonl.read, delimited.read, official.read)


def read_log(path: Path, progress: Callable[[int, int], None] = lambda read, size: None) -> Recording:
    """Read a training from a log file or from a trial's folder.

    A file is read as a stream, in constant memory. If it is long, the newest rows and a sample of the others are kept.

    Args:
        path: The official trainer's `training_log`, a CSV or JSONL file with a step per row, or a trial's folder.
        progress: Called every 10,000 lines with the number of characters read so far and the file's size in bytes.

    Returns:
        The last run that the log contains.

    Raises:
        StabilityError: The file cannot be read, or contains no training. The message says where and why.
    """
    try:
        if path.is_dir():
            return folder.read(path)
        with Log(path, progress) as log:
            return next(recording for read in _FORMATS if (recording := read(log)) is not None)
    except OSError as error:
        raise StabilityError(f"{error.filename or path} cannot be read: {error.strerror}.") from None
