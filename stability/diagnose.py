"""Say what became of a training, from its log: the official trainer's, a CSV or JSONL of metrics, or a trial's folder.

python -m stability.diagnose training_log
python -m stability.diagnose runs:/RUN_ID --uri http://localhost:5000
python -m stability.diagnose --replay outputs/single/TRIAL      makes the step again in which a trial of ours failed
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from stability.core.errors import StabilityError
from stability.diagnosis.display import reading, show_outcome
from stability.diagnosis.finding import measured
from stability.diagnosis.readers.logs import Recording, from_metrics, read_log
from stability.diagnosis.run_figure import draw
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import judge
from stability.tracking.api import read_run
from stability.trials.display import show_replay

_HEALTHY = Path(__file__).parent / "diagnosis" / "healthy.csv"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 for a log that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m stability.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "log",
        nargs="?",
        help="a training_log, a CSV or JSONL with a step a row, a trial's folder, or an MLflow run, runs:/RUN_ID",
    )
    subject.add_argument("--replay", type=Path, metavar="FOLDER", help="a failed trial's folder, with its flight/")
    parser.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="the run's store (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="where the figure goes (default: LOG.png, here)")
    parser.add_argument("--device", default="auto", help="where a replay runs: auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    try:
        if options.replay is not None:
            from stability.trials.replay import replay  # late: a log is diagnosed without PyTorch

            show_replay(options.replay, replay(options.replay, options.device))
            return 0
        run = options.log.removeprefix("runs:/")
        with reading() as progress:
            log = Path(options.log)
            recording = read_log(log, progress) if run == options.log else from_metrics(*read_run(run, options.uri))
        diagnose(recording, options.figure or Path(f"{recording.name}.png"))
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def diagnose(recording: Recording, figure: Path) -> None:
    """Print the verdict on a recording, compare it with the healthy official run, and draw it."""
    console = Console(highlight=False, soft_wrap=True)
    verdict = judge(recording.signals, recording.validation)
    console.print(f"{recording.name}, steps {recording.signals.steps[0]} to {recording.signals.steps[-1]}")
    for note in recording.notes:
        console.print(f"  [dim]{note}[/]")
    show_outcome(verdict)
    healthy = read_table(_HEALTHY) if recording.official else None
    if healthy is not None:
        _show_beside_healthy(console, recording, healthy)
    draw(figure, recording.name, recording.signals, recording.validation, asdict(verdict), healthy=healthy)
    console.print(f"[dim]figure[/] {figure}")


def _show_beside_healthy(console: Console, recording: Recording, healthy: Table) -> None:
    """The recording's readings beside those of healthy official runs, at the steps that both have."""
    table = TextTable(
        "step", "loss", "healthy", "gradient norm", "healthy", "PER", "healthy", box=None, header_style="dim"
    )
    places = {"loss": recording.signals, "grad_norm": recording.signals, "per": recording.validation}
    for at, step in enumerate(healthy.steps.tolist()):
        cells = [str(step)]
        for name, source in places.items():
            steps, values = measured(source, name)
            cells.append(f"{values[steps == step][0]:.4g}" if step in steps else "")
            low, high = healthy[f"{name}_low"][at], healthy[f"{name}_high"][at]
            cells.append("" if np.isnan(low) else f"{low:.4g}" if low == high else f"{low:.4g}–{high:.4g}")
        if any(cells[1::2]):
            table.add_row(*cells)
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
