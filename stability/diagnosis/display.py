"""Prints a verdict, and shows a progress bar while a log is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from stability.core.text import printable
from stability.diagnosis.outcomes import style_of
from stability.diagnosis.verdict import Verdict


def show_outcome(verdict: Verdict, unit: str = "step") -> None:
    """Print the outcome, the cause, the evidence and the advice of a verdict.

    Args:
        verdict: The verdict.
        unit: What its steps count: `step`, `epoch` or `row`.
    """
    console = Console(highlight=False, soft_wrap=True)
    head, *rest = (Text(printable(line)) for line in verdict.lines(unit))
    head.stylize(style_of(verdict.outcome), 0, len(verdict.outcome))
    for line, name in zip(rest, verdict.evidence, strict=False):  # the advice comes after the evidence
        line.stylize("dim", 0, 2 + len(name))
    console.print(head, *rest, sep="\n")


def shown(value: object) -> str:
    """Return a path, or what was read from a file, as `rich` prints it on one line and without change."""
    return escape(printable(value))


def unsure(verdict: Verdict) -> str:
    """Return what to print after a verdict that is not sure, in the words of rich."""
    return "" if verdict.confidence == "high" else f" [dim]({verdict.confidence} confidence)[/]"


@contextmanager
def reading_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar while a `with` statement reads a log.

    Yields:
        A function to call with the amount read so far and the whole amount.
    """
    console = Console()
    bar = Progress(
        TextColumn("reading"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", visible=False)  # invisible at first: a short log needs no bar
    with bar:
        yield lambda read, size: bar.update(task, completed=read, total=size, visible=True)
