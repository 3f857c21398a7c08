"""The files of a trial and of a study: their names, writing them atomically, and showing their paths."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

# In a trial's folder.
CONFIG = "config.yaml"
SIGNALS_FILE, VALIDATION_FILE = "signals.csv", "validation.csv"
DATA = "data.json"  # which utterances it was trained and validated on
VERDICT = "verdict.json"
FIGURE = "run.png"
EXCLUDED = "excluded.txt"  # the utterances that were left out
TRACKING = "tracking.json"  # what has been sent to MLflow; a study has one too
ERROR = "error.txt"  # why a trial of a sweep crashed: the traceback, and the reason in its last line
LOCK = "lock"  # held by the process that trains the trial
CHECKPOINTS = Path("checkpoints")
LAST, BEST = CHECKPOINTS / "last.pt", CHECKPOINTS / "best.pt"
PREVIOUS = CHECKPOINTS / "previous.pt"  # the one before the last, in case the last is damaged
# Of a trial that a command trained.
WORK = "work"  # the folder in which the program runs
OUTPUT = "output.log"  # what it prints
PROGRAM_LOCK = "program.lock"  # held by the program while it runs
RUNS = "command.json"  # how often it was started, with what, and how it ended
RECORDING = "recording.json"  # what its log calls the error rate, and what its steps count
FLIGHT = Path("flight")  # everything that is needed to repeat a step that failed
FLIGHT_RECORD, FLIGHT_STATE = FLIGHT / "flight.json", FLIGHT / "state.pt"  # flight.json is written last

# In the folder of a job of a Hydra app, instead of CONFIG.
HYDRA_CONFIG, HYDRA_OVERRIDES = Path(".hydra", "config.yaml"), Path(".hydra", "overrides.yaml")
RETURNED = "returned.json"  # what the job returned: it is finished
HYDRA_OWN = Path(".hydra", "hydra.yaml")  # the settings of Hydra itself

# In the folder of a Monitor's flight recording.
MONITOR_RECORD, MONITOR_SIGNALS, MONITOR_STATE = "flight.json", "flight.csv", "flight.pt"

# In a study's folder.
EXPLANATION = "explanation.json"  # what an explanation decides, and what it has found
REPAIR = "repair.json"  # what a repair has tried and found
REPORT = "report"  # the beginning of the names of its reports, and of the folders with their figures


def config_of(folder: Path) -> Path:
    """Return the file with the settings of a trial, or of a job of a Hydra app."""
    return folder / (HYDRA_CONFIG if (folder / HYDRA_CONFIG).exists() and not (folder / CONFIG).exists() else CONFIG)


def cache_folder() -> Path:
    """Return the user's folder for what this program makes once for a machine, such as compiled kernels.

    Raises:
        RuntimeError: The user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stability"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace the content of a file. After a crash or on a full disk, the file is as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` at the end of the `with` block, unless the block raises."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the renaming, or a power cut could leave an empty file under the name
        os.replace(part, path)  # noqa: PTH105 - Python documents that this call is atomic
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk it would occupy the space that is left
        raise


def open_to_read(path: Path) -> BufferedReader:
    """Open a file whose kind is not known. A named pipe that nobody writes to is empty: a plain `open` would hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return open(descriptor, "rb")  # noqa: PTH123 - there is no path any more


def is_folder(text: str) -> bool:
    """Return whether a text is the path of a folder. It may be anything, and longer than any path."""
    return os.path.isdir(text)  # noqa: PTH112 - a Path raises if the text is too long


def exists(path: Path) -> bool:
    """Return whether there is such a file or folder. A table or a tracker may call anything a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def short_path(path: Path) -> str:
    """Return a path as one would type it here: relative to the current folder if it is inside."""
    here = Path.cwd()
    path = here / path
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
