"""Charts that were exported one by one. What those in one folder say of a run is one training."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from stability.core.errors import StabilityError
from stability.diagnosis.readers import tensorboard_csv, wandb
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording

_FORMATS: tuple[tuple[Callable[[Log], str], Callable[[Sequence[Log]], list[Recording]]], ...] = (
    (tensorboard_csv.kind, tensorboard_csv.read_charts),
    (wandb.kind, wandb.read_charts),
)


def group_charts(files: Sequence[Path]) -> list[list[Path]]:
    """Group the charts that may be read together: those of a kind in a folder. Each other path is its own group."""
    groups = list[list[Path]]()
    begun = dict[tuple[Path, str], list[Path]]()
    for file in files:
        kind = _kind(file)
        own = begun.get((file.parent, kind), [])
        if not own:
            groups.append(own)
        if kind:
            begun[file.parent, kind] = own
        own.append(file)
    return groups


def read_charts(files: Sequence[Path], progress: Callable[[int, int], None]) -> list[Recording]:
    """Read the charts of such a group.

    Raises:
        StabilityError: A line cannot be read.
        OSError: A file cannot be read.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(Log(file, progress)) for file in files]
        return next(read(logs) for kind, read in _FORMATS if kind(logs[0]))


def _kind(file: Path) -> str:
    if not file.is_file():
        return ""  # a pipe can be read only once
    with suppress(OSError, StabilityError), Log(file, lambda read, size: None) as log:
        return next((found for kind, _ in _FORMATS if (found := kind(log))), "")
    return ""
