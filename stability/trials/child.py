"""A program that runs beside this process, in a process group of its own, of which nothing stays when either ends."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stability.core.errors import StabilityError
from stability.core.locks import try_lock
from stability.core.stopping import STOPPED, stop_requested

# The program begins after a line, so that the guard is there first. If this process has ended, the line never comes.
_BEGIN = 'read -r _ || exit; exec "$@" < /dev/null'

# Another shell waits until this process has ended, however that happens: then `read` finds the end of the pipe. It ends
# the program's group as `Child.stop` does. It is in a session of its own, so that nothing else ends it.
_GUARD = 'read -r _; kill -TERM "-$1"; sleep "$2"; kill -KILL "-$1"'

_PAUSE = 0.05  # seconds between two looks whether a group has ended


class Child(AbstractContextManager["Child"]):
    """Starts a program. Use it in a `with` statement: at its end, the program and all that it has left is ended.

    Ctrl-C in the terminal does not reach the program, because its process group is another one.

    Args:
        words: The program and its arguments.
        folder: Where it runs.
        output: The file to which its output and its errors are appended.
        environment: Its environment.
        grace: Seconds from SIGTERM to SIGKILL when it is stopped.
        lock: A file that stays open, and locked, until the program has ended.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        output: Path,
        environment: Mapping[str, str],
        grace: float,
        lock: IO[str],
    ) -> None:
        self._grace = grace
        with output.open("ab") as printed:
            self._process = _shell(
                _BEGIN,
                *words,
                cwd=folder,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
        nowhere = subprocess.DEVNULL
        self._guard = _shell(_GUARD, str(self._process.pid), f"{grace:g}", stdout=nowhere, stderr=nowhere)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as begin:
            begin.write(b"begin\n")

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._guard.kill()
        self._guard.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def wait(self, seconds: float) -> int | None:
        """Wait for the end of the program, at most so long.

        Returns:
            Its exit status, -N if signal N killed it; None if it still runs.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int:
        """End the program and all of its process group: SIGTERM, and after the grace SIGKILL. Return its status."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + self._grace
        while time.monotonic() < end and self._is_any_left():
            time.sleep(_PAUSE)
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def _is_any_left(self) -> bool:
        self._process.poll()  # or it would stay in its group as a zombie
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(self._process.pid, number)


@contextmanager
def only_program(path: Path, patience: float) -> Iterator[IO[str]]:
    """Wait until no other program holds the lock of a trial's folder, and hold it.

    A program whose parent was killed is being ended by its guard, and must not write into the folder of the next run.

    Args:
        path: The file of the lock.
        patience: Seconds to wait at most.

    Returns:
        A context manager. It gives the open file, which a program inherits.

    Raises:
        StabilityError: The other program has not ended.
        Interrupted: Ctrl-C or SIGTERM came.
    """
    end = time.monotonic() + patience
    while (file := try_lock(path)) is None:
        if interruption := stop_requested():
            raise interruption(STOPPED)
        if time.monotonic() > end:
            raise StabilityError(f"A program of an earlier run still runs in {path.parent}: end it, or wait for it.")
        time.sleep(_PAUSE)
    with file:
        yield file


def _shell(script: str, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a script of the shell in a session of its own. It reads from a pipe, which ends with this process."""
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *words], stdin=subprocess.PIPE, start_new_session=True, **options
    )
