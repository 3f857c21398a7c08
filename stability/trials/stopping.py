"""Notes Ctrl-C and SIGTERM when they come, so that training can stop between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stability.core.errors import Interrupted, Terminated


@contextmanager
def stop_requests() -> Iterator[Callable[[], type[Interrupted] | None]]:
    """Note Ctrl-C and SIGTERM instead of acting on them, so that no step is left half done.

    A second Ctrl-C acts at once. A second SIGTERM does nothing: the schedulers of clusters send several, and later
    kill the process.

    Returns:
        A context manager. It gives a function that returns the exception to end with; None while no signal has come.
    """
    requested: type[Interrupted] | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if number == signal.SIGINT:
            requested = requested or Interrupted
            signal.signal(number, previous[number])
        else:
            requested = Terminated

    previous = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
