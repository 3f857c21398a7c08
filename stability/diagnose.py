"""Say what became of a training, from its log.

python -m stability.diagnose training_log                                       the official trainer's log, CSV or JSONL
python -m stability.diagnose outputs/single/TRIAL                               a trial's folder
python -m stability.diagnose runs:/RUN_ID --uri http://localhost:5000           a run in MLflow
python -m stability.diagnose --replay outputs/single/TRIAL                      repeat the step in which a trial failed
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from stability.core.errors import StabilityError
from stability.core.extras import require
from stability.diagnosis.display import reading_bar, show_outcome
from stability.diagnosis.finding import readings
from stability.diagnosis.readers import Recording, read_log, read_metrics
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import judge

_HEALTHY = Path(__file__).parent / "diagnosis" / "healthy.csv"
_RUN = "runs:/"  # how MLflow writes the address of a run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if the log cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "log",
        nargs="?",
        help="a training_log, CSV or JSONL with a step per row, a trial's folder, or an MLflow run, runs:/RUN_ID",
    )
    subject.add_argument("--replay", type=Path, metavar="FOLDER", help="the folder of a failed trial, with its flight/")
    parser.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="the run's store (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="where to write the figure (default: LOG.png in this folder)")
    parser.add_argument("--device", default="auto", help="the device of a replay: auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    try:
        if options.replay is not None:
            _replay(options.replay, options.device)
            return 0
        recording = _read_run(options.log, options.uri) if options.log.startswith(_RUN) else _read_log(options.log)
        diagnose(recording, options.figure or Path(f"{recording.name}.png"))
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def diagnose(recording: Recording, figure: Path) -> None:
    """Print the verdict on a recording, compare it with healthy official runs if it is one, and draw its figure."""
    console = Console(highlight=False, soft_wrap=True)
    verdict = judge(recording.signals, recording.validation)
    console.print(f"{recording.name}, steps {recording.signals.steps[0]} to {recording.signals.steps[-1]}")
    for note in recording.notes:
        console.print(f"  [dim]{note}[/]")
    show_outcome(verdict)
    healthy = read_table(_HEALTHY) if recording.official else None
    if healthy is not None:
        _compare_with_healthy(console, recording, healthy)
    from stability.diagnosis.run_figure import draw  # late: matplotlib takes a while to import

    draw(figure, recording.name, recording.signals, recording.validation, verdict=asdict(verdict), healthy=healthy)
    console.print(f"[dim]figure[/] {figure}")


# What follows is imported late: a log is diagnosed without PyTorch, and without the packages that only training needs.


def _replay(folder: Path, device: str) -> None:
    require("train")
    from stability.trials.display import show_replay
    from stability.trials.replay import replay

    show_replay(folder, replay(folder, device))


def _read_run(address: str, uri: str) -> Recording:
    require("train")
    from stability.tracking.api import read_run

    with reading_bar():
        return read_metrics(*read_run(address.removeprefix(_RUN), uri))


def _read_log(log: str) -> Recording:
    with reading_bar() as progress:
        return read_log(Path(log), progress)


def _compare_with_healthy(console: Console, recording: Recording, healthy: Table) -> None:
    """Print the recording's readings next to those of healthy official runs, at the steps that both have."""
    table = TextTable(
        "step", "loss", "healthy", "gradient norm", "healthy", "PER", "healthy", box=None, header_style="dim"
    )
    sources = {"loss": recording.signals, "grad_norm": recording.signals, "per": recording.validation}
    for row, step in enumerate(healthy.steps.tolist()):
        cells = [str(step)]
        for name, source in sources.items():
            steps, values = readings(source, name)
            cells.append(f"{values[steps == step][0]:.4g}" if step in steps else "")
            cells.append(_range_in_words(healthy[f"{name}_low"][row], healthy[f"{name}_high"][row]))
        if any(cells[1::2]):
            table.add_row(*cells)
    if table.row_count:
        console.print(table)


def _range_in_words(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}"


if __name__ == "__main__":
    sys.exit(main())
