"""Show long work before training: by a progress bar, or by a note that another process holds a lock."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

_QUIET_SECONDS = 2.0  # nothing is shown for work or waits that are shorter


@contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on the terminal while the `with` block runs; show nothing elsewhere.

    Args:
        what: The work, for example "checking the data".
        total: Its size, in any unit.

    Yields:
        A function to call with the amount of work that was just done.
    """
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
    """Hold a lock file while the `with` block runs. If another process holds it, wait, and print a line that says so.

    Args:
        path: The lock file.
        what: What the other process does, for example "writing data".
    """
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
