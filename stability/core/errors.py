"""What ends a command without a traceback: what a user can mend, and what a user asked for."""


class StabilityError(Exception):
    """Something outside the program is wrong. The message says what, where, and the mend; no traceback is shown."""


class TrialBusy(StabilityError):
    """Another process is training the trial."""


class Interrupted(KeyboardInterrupt):
    """The trial was asked to stop and has written its checkpoint. The message says how to go on.

    No `Exception`: a sweep must end with it, and not go on to its next trial.
    """

    exit_status = 130  # what shells give a command that Ctrl-C ended


class Terminated(Interrupted):
    """As Interrupted, but by SIGTERM: not a person stopped it, a scheduler takes its machine away."""

    exit_status = 75  # EX_TEMPFAIL: the command is to be run again


class CallbackError(BaseException):
    """An error in a wrapping that gets it through Hydra, which makes a warning of an `Exception` in a callback."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def write_error(place: object, error: OSError) -> StabilityError:
    """A folder that is full, read-only or not there."""
    return StabilityError(
        f"Cannot write in {place}: {error.strerror or error}. Make room, or give another place with outputs=FOLDER; "
        "in the same place, the same command goes on from the last checkpoint."
    )
