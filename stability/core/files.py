"""A trial's files: their names, writing them so that a crash leaves the old one or the new one, and showing them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# In a trial's folder, beside the tables of signals.
CONFIG, VERDICT, FIGURE = "config.yaml", "verdict.json", "run.png"
EXCLUDED, TRACKING = "excluded.txt", "tracking.json"
ERROR = "error.txt"  # why a trial of a sweep crashed: the traceback, and in its last line the reason
LOCK = "lock"  # held by the process that trains the trial
CHECKPOINTS = Path("checkpoints")
LAST, BEST = CHECKPOINTS / "last.pt", CHECKPOINTS / "best.pt"
FLIGHT = Path("flight")  # what is left of a failed step, to make it again; flight.json is written last
FLIGHT_RECORD, FLIGHT_STATE = FLIGHT / "flight.json", FLIGHT / "state.pt"

REPORT = "report"  # in a study's folder, how the names of its reports and of the folders of their figures begin


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Put `data` in the place of `path`. A crash, or a full disk, in between leaves `path` as it was."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` at the end of the `with` statement, unless that ends in an exception."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)  # noqa: PTH105 - the call whose atomicity is documented
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk it would take what room is left
        raise


def short_path(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    path = here / path
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
