"""`command.json` in the folder of a trial that a command trains: each run of the program, and how it ended."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stability.core.files import RUNS, write_atomically
from stability.core.text import load_json


@contextmanager
def noted(folder: Path, words: Sequence[str]) -> Iterator[Callable[[str, int], int]]:
    """Note a run of the program of a trial, after the earlier ones.

    Args:
        folder: The trial's folder.
        words: The program and its arguments.

    Returns:
        A context manager. It gives a function that takes how the run ended and its exit status, and returns the status.
    """
    begun, earlier = time.monotonic(), _read(folder)
    run: dict[str, Any] = {"command": [*words], "started": datetime.now(UTC).isoformat(timespec="seconds")}

    def note(how: str, status: int) -> int:
        run.update(how=how, exit_status=status, seconds=round(time.monotonic() - begun, 3))
        return status

    def write() -> None:
        write_atomically(folder / RUNS, json.dumps([*earlier, run], indent=2).encode())

    write()  # if this process is killed, that is all that is known of the run
    try:
        yield note
    finally:
        write()


def seconds_run(folder: Path) -> float:
    """Return how long the program of a trial has run, over all its runs; 0 if that is not known."""
    seconds = [run.get("seconds") for run in _read(folder)]
    return float(sum(number for number in seconds if isinstance(number, int | float)))


def _read(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError):
        found = load_json((folder / RUNS).read_text())
        if isinstance(found, list):
            return [run for run in found if isinstance(run, dict)]
    return []
