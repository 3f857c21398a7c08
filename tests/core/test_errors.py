"""Exceptions that end a command with a message."""

import errno
import os
from pathlib import Path

import pytest

from stability.core.errors import CallbackError, Interrupted, StabilityError, Terminated, keep_error, write_error


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do() -> None:
    error = write_error("outputs/trial", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(error) == (
        "Cannot write in outputs/trial: No space left on device. Free some space, or give another folder with "
        "outputs=FOLDER. In the same folder, the same command goes on from the last checkpoint."
    )


def test_a_name_in_a_message_does_not_command_the_terminal() -> None:
    error = StabilityError("two lines:\n  \x1b[2J\r\u202e ä")
    assert str(error) == "two lines:\n  " + r"\x1b[2J\r\u202e" + " ä"


@pytest.mark.parametrize("kind", [Interrupted, Terminated, CallbackError])
def test_what_ends_a_sweep_is_not_caught_as_an_exception(kind: type[BaseException]) -> None:
    assert not issubclass(kind, Exception)
    assert issubclass(StabilityError, Exception)


def test_exit_statuses_are_those_that_shells_and_schedulers_know() -> None:
    assert (Interrupted.exit_status, Terminated.exit_status) == (130, os.EX_TEMPFAIL)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\nlines"), "ValueError: two lines"),
        (StabilityError("its own words"), "its own words"),
        (FileNotFoundError(os.fsdecode(b"\xff.csv")), "FileNotFoundError: \\udcff.csv"),
    ],
)
def test_why_a_trial_crashed_is_the_last_line_of_its_file(tmp_path: Path, error: Exception, reason: str) -> None:
    keep_error(tmp_path, error)
    assert (tmp_path / "error.txt").read_text().splitlines()[-1] == reason
