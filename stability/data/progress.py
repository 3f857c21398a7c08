"""What a person sees of work that takes long before training: a bar, or that another process is waited for."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

_QUIET_SECONDS = 2.0  # what is shorter than this shows nothing


@contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar, on a terminal only; in a `with` statement, gives what to call with how much more of the total is done."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True)
    task = bar.add_task(what, total=total)
    start = time.monotonic()
    with ExitStack() as shown:

        def advance(done: float) -> None:
            bar.update(task, advance=done)
            late = time.monotonic() - start > _QUIET_SECONDS
            if late and console.is_terminal and not bar.live.is_started:
                shown.enter_context(bar)

        yield advance


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; where another process has it for long, say that it is doing `what`, and wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_QUIET_SECONDS)
    except Timeout:
        print(f"Another process is {what}: waiting for it.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
