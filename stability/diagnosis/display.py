"""What a person sees of a verdict, and of a log while it is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stability.diagnosis.outcomes import style_of
from stability.diagnosis.verdict import Verdict


def show_outcome(verdict: Verdict) -> None:
    """What became of the trial, and why."""
    console = Console(highlight=False, soft_wrap=True)
    cause = f": {verdict.cause}" if verdict.cause else ""
    since = f", since step {verdict.onset_step}" if verdict.onset_step is not None else ""
    console.print(f"[{style_of(verdict.outcome)}]{verdict.outcome}[/]{cause}{since}")
    for name, value in verdict.evidence.items():
        console.print(f"  [dim]{name:<44}[/] {value if isinstance(value, str) else f'{value:.4g}'}")
    if verdict.advice:
        console.print(f"  {verdict.advice}")


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """A bar while a log is read; in a `with` statement, gives what to call with how much of how much has been read."""
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
    task = bar.add_task("", visible=False)  # a short log is read before it could be seen
    with bar:
        yield lambda read, size: bar.update(task, completed=read, total=size, visible=True)
