"""Read a training from a log, whatever program wrote it.

Each format has a file of its own here. To add one, write a module with a function `read(log)`, which returns a
recording of each run in the log, or None if the log is of another format, and add that function to `_FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.text import first_of
from stability.diagnosis.readers import (
    console,
    delimited,
    document,
    folder,
    jsonl,
    kraken,
    official,
    table_in_text,
    tensorboard_csv,
    tensorboard_events,
    tesseract,
    text,
    wandb,
    wandb_folder,
)
from stability.diagnosis.readers.charts import group_charts, read_charts
from stability.diagnosis.readers.log import DamagedLogError, Log
from stability.diagnosis.readers.metrics import read_metrics
from stability.diagnosis.readers.names import Naming, known_names, naming
from stability.diagnosis.readers.recording import Recording, last_of

__all__ = [
    "Recording",
    "check_names",
    "group_charts",
    "read_event_files",
    "read_log",
    "read_metrics",
    "read_runs",
    "read_together",
]

# In this order. Those whose lines may stand anywhere in other output come last.
_FORMATS: tuple[Callable[[Log], list[Recording] | None], ...] = (
    document.read,
    jsonl.read,
    tensorboard_csv.read,
    wandb.read,
    delimited.read,
    official.read,
    kraken.read,
    tesseract.read,
    console.read,
    table_in_text.read,
    text.read,
)


def read_log(
    path: Path,
    progress: Callable[[int, int], None] = lambda read, size: None,
    names: Mapping[str, str] | None = None,
) -> Recording:
    """Read a training from a log file or from a trial's folder. If the log holds several, the last one is returned.

    The arguments are those of `read_runs`.
    """
    return last_of(read_runs(path, progress, names))


def read_runs(
    path: Path,
    progress: Callable[[int, int], None] = lambda read, size: None,
    names: Mapping[str, str] | None = None,
) -> list[Recording]:
    """Read all trainings in a log file, in the order of the log, or in a folder.

    A file is read as a stream, in constant memory. If it is long, the newest rows and a sample of the others are kept.

    Args:
        path: The log, in one of the formats in this package, a trial's folder, or a folder of logs.
        progress: Called every 10,000 lines with the number of characters read so far and the file's size in bytes.
        names: What the log calls a signal, for names that are not known: `{"loss": "train_loss_avg"}`.

    Returns:
        The last run that the log contains.

    Raises:
        StabilityError: The file cannot be read, or contains no training. The message says where and why.
    """
    return read_together([path], progress, names)


def read_together(
    paths: Sequence[Path],
    progress: Callable[[int, int], None] = lambda read, size: None,
    names: Mapping[str, str] | None = None,
) -> list[Recording]:
    """Read all trainings in one of the groups that `group_charts` makes: in a file, a folder, or charts of one folder.

    The other arguments, the result and the errors are those of `read_runs`.
    """
    names = names or {}
    check_names(names)
    path, *more = paths

    def read() -> list[Recording]:
        if more:
            return read_charts(paths, progress)
        if path.is_dir():
            return folder.read(path, lambda files: read_together(files, progress, names), progress)
        return _read_file(path, progress)

    return _checked(path.parent if more else path, names, read)


def check_names(names: Mapping[str, str]) -> None:
    """Raise StabilityError if a key of `names`, as `read_runs` takes them, is not a signal."""
    if unknown := [*names.keys() - known_names().keys() - {"val_loss", "epoch"}]:
        raise StabilityError(
            f"{first_of(sorted(unknown), 4)} is not a signal. Choose from {', '.join(known_names())}, val_loss, epoch."
        )


def read_event_files(run: Path, files: Sequence[Path], names: Mapping[str, str]) -> list[Recording]:
    """Read the trainings in TensorBoard's event files of one run, whose folder is `run`, with the names of `read_runs`.

    Raises:
        StabilityError: They cannot be read, or contain no training.
    """
    return _checked(run, names, lambda: tensorboard_events.read(run, files, run.name, lambda read, size: None))


def _checked(path: Path, names: Mapping[str, str], read: Callable[[], list[Recording]]) -> list[Recording]:
    """What `read` finds in a file or folder, with these names; StabilityError if it finds nothing or cannot read."""
    try:
        with naming(names) as seen:
            runs = read()
    except OSError as error:
        raise DamagedLogError(f"{error.filename or path} cannot be read: {error.strerror}.") from None
    if not runs:
        raise StabilityError(_why_not(path, seen))
    return runs


def _read_file(path: Path, progress: Callable[[int, int], None]) -> list[Recording]:
    if tensorboard_events.is_event_file(path):
        return tensorboard_events.read(path.parent, [path], path.name, progress)
    if folder.is_table_of_trial(path):
        return [folder.read_trial(path.parent)]
    if wandb_folder.is_history(path):
        raise StabilityError(wandb_folder.why_not(path))
    with Log(path, progress) as log:
        return next((found for read in _FORMATS if (found := read(log)) is not None), [])


def _why_not(path: Path, seen: Naming) -> str:
    """What to answer if a log contains no training."""
    known = "; ".join(f"{signal}: {', '.join(titles[:6])}" for signal, titles in known_names().items())
    found = f"It has these names: {first_of([*seen.seen], 20)}. " if seen.seen else "It has no names with numbers. "
    return (
        f"{path} contains no training that can be read: no loss or gradient norm was found. {found}Known names are, "
        f"also with val_, eval/ and the like, {known}. Explain other names with --map, such as "
        "--map loss=train_loss_avg."
    )
