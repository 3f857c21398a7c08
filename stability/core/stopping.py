"""Ctrl-C and SIGTERM: when they end a command, and how.

Ctrl-C raises Interrupted and SIGTERM raises Terminated, at once or a little later:

    signals_handled   around a whole command: at once, wherever it is
    postponed         around a training: when the training asks, so that no step is left half done
    at_once           within it, around what may take long and has nothing to keep: at once again
    time_limit        around what waits for others: the waiting ends first

A second Ctrl-C always acts at once, as KeyboardInterrupt. A second SIGTERM does nothing: the schedulers of clusters
send several, and later kill the process.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from stability.core.errors import Interrupted, Terminated

STOPPED = "Stopped. The same command goes on from there."
_AGAIN = 1.0  # seconds until a time limit fires again, if a library has swallowed its exception
_LATER = 0.01  # seconds until a time limit fires because of a signal


class _Expired(BaseException):
    """Ends a block whose time is up. It is not an `Exception`, or a library could take it for a failure to repeat."""


@dataclass
class _Signals:
    requested: type[Interrupted] | None = None  # how the process has to end
    postponed: bool = False  # it waits to be asked for
    after_signal: float | None = None  # seconds that a signal leaves to the current time limit, if there is one


_signals = _Signals()


def stop_requested() -> type[Interrupted] | None:
    """Return the exception that a signal asks to end with; None while none has come."""
    return _signals.requested


@contextmanager
def signals_handled() -> Iterator[None]:
    """Let Ctrl-C raise Interrupted and SIGTERM raise Terminated in the block. Inside another such block: no change."""
    if signal.getsignal(signal.SIGTERM) is _note:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    hook = sys.unraisablehook

    def raise_again(ignored: Any) -> None:
        """Raise it a little later if a signal came in a destructor, where Python ignores exceptions."""
        if not issubclass(ignored.exc_type, KeyboardInterrupt | _Expired):
            hook(ignored)
            return
        if _signals.after_signal is None:  # a time limit has a handler of its own
            signal.signal(signal.SIGALRM, lambda number, frame: None if _signals.postponed else _raise())
        signal.setitimer(signal.ITIMER_REAL, _LATER)

    signal.signal(signal.SIGINT, _note)
    signal.signal(signal.SIGTERM, _note)
    sys.unraisablehook = raise_again
    try:
        yield
        if _signals.requested:  # it was swallowed
            _raise()
    finally:
        _signals.requested = None
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed() -> Iterator[None]:
    """Only note signals in the block. What was noted is raised at its end, unless the block raises itself."""
    with signals_handled(), _reaction(postponed=True):
        yield
    if _signals.requested and not _signals.postponed:
        _raise()


@contextmanager
def at_once() -> Iterator[None]:
    """Within `postponed`: raise what was noted, and what comes in the block."""
    if _signals.requested:
        _raise()
    with _reaction(postponed=False):
        yield


@contextmanager
def time_limit(seconds: float, *, after_signal: float = 0) -> Iterator[None]:
    """End the block when its time is up, whatever it waits for.

    A signal that comes in the block is raised only after it, or when it is asked for.

    Args:
        seconds: The time.
        after_signal: The time that is left when a signal comes.

    Raises:
        TimeoutError: The time was up.
        InterruptedError: A signal ended the block.
    """
    armed, begun, came = True, time.monotonic(), _signals.requested

    def expire(number: int, frame: FrameType | None) -> None:
        if armed:
            raise _Expired

    handler, (left, interval) = signal.signal(signal.SIGALRM, expire), signal.getitimer(signal.ITIMER_REAL)
    try:
        with _reaction(postponed=True, after_signal=after_signal):
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
            try:
                yield
            finally:
                armed = False
    except _Expired:
        if _signals.requested is not came:
            raise InterruptedError from None
        raise TimeoutError(f"no complete answer within {seconds:g} seconds") from None
    finally:
        signal.signal(signal.SIGALRM, handler)
        # An outer limit, such as that of a test, goes on.
        signal.setitimer(signal.ITIMER_REAL, left and max(0.001, left - (time.monotonic() - begun)), interval)
        if _signals.requested is not came and not _signals.postponed:
            _raise()


def _note(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C and SIGTERM."""
    first = _signals.requested is None
    _signals.requested = Terminated if number == signal.SIGTERM else _signals.requested or Interrupted
    if not first:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
    elif _signals.after_signal is not None:
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        signal.setitimer(signal.ITIMER_REAL, max(_LATER, min(left, _signals.after_signal)), _AGAIN)
    elif not _signals.postponed:
        _raise()


def _raise() -> NoReturn:
    assert _signals.requested
    raise _signals.requested(STOPPED)


@contextmanager
def _reaction(*, postponed: bool, after_signal: float | None = None) -> Iterator[None]:
    """How signals act in the block."""
    before = _signals.postponed, _signals.after_signal
    _signals.postponed, _signals.after_signal = postponed, after_signal
    try:
        yield
    finally:
        _signals.postponed, _signals.after_signal = before
