"""The folder that Weights & Biases leaves for a run: `wandb/run-…/` with `run-….wandb` and `files/output.log`.

The history is in the file `.wandb`. W&B has no public function that reads it without a server. What can be read is the
console output that W&B has kept.
"""

from collections.abc import Sequence
from pathlib import Path

_OUTPUT = ("files", "output.log")
NOTE = "The history of this run is in W&B's own file, which is not read. The verdict uses the console output."


def is_history(path: Path) -> bool:
    """Return whether a file is W&B's own history of a run."""
    return path.suffix == ".wandb"


def why_not(path: Path) -> str:
    """Return how to export the history of a run whose own file is `path`."""
    return (
        f"{path} is W&B's own history of a run, which only W&B reads. Send it to a server (wandb sync {path.parent}), "
        "and export the history in Python: pandas.DataFrame(wandb.Api().run('ENTITY/PROJECT/RUN').scan_history())"
        ".to_csv('history.csv')."
    )


def outputs(files: Sequence[Path]) -> tuple[set[Path], list[Path]]:
    """Return the console outputs among the files of W&B's runs, and all files that belong to no such run."""
    runs = {file.parent for file in files if is_history(file)}
    return (
        {run.joinpath(*_OUTPUT) for run in runs}.intersection(files),
        [file for file in files if not runs.intersection(file.parents)],
    )
