"""Exceptions that end a command with a message instead of a traceback."""

import traceback
from pathlib import Path

from stability.core.files import ERROR, write_atomically
from stability.core.text import printable


class StabilityError(Exception):
    """A problem outside the program: the message says what is wrong, where, and how to correct it."""

    def __str__(self) -> str:
        # Names in it may come from somebody else's files, and must not command the terminal.
        return "\n".join(map(printable, super().__str__().split("\n")))


class TrialBusy(StabilityError):
    """Another process is training the trial."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the training, after its checkpoint was written. The message says how to go on.

    It is not an `Exception`, so that it ends a sweep too: no other trial of the sweep is trained.
    """

    exit_status = 130  # what shells report for a command that Ctrl-C ended


class Terminated(Interrupted):
    """SIGTERM stopped the training: not a person, but a scheduler that takes the machine away."""

    exit_status = 75  # EX_TEMPFAIL: run the command again


class CallbackError(BaseException):
    """Carries an error out of a Hydra callback.

    Hydra makes a warning of an `Exception` in a callback, and goes on. It lets a `BaseException` pass.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def write_error(place: object, error: OSError) -> StabilityError:
    """Return the error for a folder that is full, read-only or missing.

    Args:
        place: The folder or file, as the message names it.
        error: Why it cannot be written.
    """
    return StabilityError(
        f"Cannot write in {place}: {error.strerror or error}. Free some space, or give another folder with "
        "outputs=FOLDER. In the same folder, the same command goes on from the last checkpoint."
    )


def keep_error(folder: Path, error: BaseException) -> None:
    """Write into a trial's folder why it crashed: the traceback, and the reason in the last line."""
    reason = " ".join(str(error).split())
    if not isinstance(error, StabilityError):
        reason = f"{type(error).__name__}: {reason}"
    text = f"{''.join(traceback.format_exception(error))}\n{reason}\n"
    write_atomically(folder / ERROR, text.encode(errors="backslashreplace"))  # names of files may be no Unicode
