"""Say what became of a training, from its log.

python -m stability.diagnose training_log                                       a log of any program: text, CSV, JSON
python -m stability.diagnose *.csv                                              several: a line each, and a table
python -m stability.diagnose metrics.csv --run 2                                the second run in the log
python -m stability.diagnose metrics.csv --map loss=train_loss_avg              a name that is not known
python -m stability.diagnose outputs/single/TRIAL                               a trial's folder
python -m stability.diagnose runs:/RUN_ID --uri http://localhost:5000           a run in MLflow
python -m stability.diagnose --replay outputs/single/TRIAL                      repeat the step in which a trial failed
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from stability.core.errors import StabilityError
from stability.core.extras import require
from stability.core.text import counted
from stability.diagnosis.display import reading_bar, show_outcome, shown, unsure
from stability.diagnosis.finding import readings
from stability.diagnosis.judge_log import epoch_of, healthy_runs, judge_recording
from stability.diagnosis.outcomes import style_of
from stability.diagnosis.readers import Recording, group_charts, read_metrics, read_together
from stability.diagnosis.readers.names import name_in_log
from stability.diagnosis.table import Table

_WIDE = 200  # characters of a line that goes to a file
_RUN = "runs:/"  # how MLflow writes the address of a run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if a log cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "logs",
        nargs="*",
        metavar="LOG",
        help="a text log, CSV, JSON, TensorBoard's events, a folder of logs, a trial's folder, or runs:/RUN_ID",
    )
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="the folder of a failed trial, with its flight/")
    parser.add_argument("--run", type=int, metavar="NUMBER", help="show only this one of the runs in the log, from 1")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        type=name_in_log,
        metavar="SIGNAL=NAME",
        help="what the log calls step, loss, grad_norm, lr, per or val_loss (may be repeated)",
    )
    parser.add_argument("--uri", help="the run's store (default: MLFLOW_TRACKING_URI, or sqlite:///outputs/mlflow.db)")
    parser.add_argument(
        "--figure",
        type=Path,
        help="where to write the figure (default: LOG.png here; of a folder, FOLDER/diagnosis.png)",
    )
    parser.add_argument("--device", default="auto", help="the device of a replay: auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    if bool(options.logs) == (options.replay is not None):
        parser.error("give one or more logs, or --replay FOLDER")
    if options.replay is not None:
        return _replay(options.replay, options.device)
    runs, failed, figure = list[Recording](), False, Path()
    for log, *more in _grouped(options.logs):
        try:
            if log.startswith(_RUN):
                found = [_read_run(log, options.uri)]
            else:
                found = _read_logs([log, *more], dict(options.map))
            runs += found if options.run is None else [_pick(found, options.run, log)]
            figure = (
                Path(log, "diagnosis.png") if Path(log).is_dir() else Path(f"{runs[-1].name.replace('/', '_')}.png")
            )
        except StabilityError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if len(runs) > 1:
        summarise(runs)
    elif runs:
        figure = options.figure or figure
        try:
            diagnose(runs[0], figure)
        except OSError as error:
            reason = error.strerror or error
            print(f"error: Cannot write {figure}: {reason}. Give another place with --figure FILE.", file=sys.stderr)
            failed = True
    return int(failed)


def diagnose(recording: Recording, figure: Path) -> None:
    """Print the verdict on a recording, compare it with healthy official runs if it is one, and draw its figure."""
    console = Console(highlight=False, soft_wrap=True)
    verdict = judge_recording(recording)
    first, last = _first_and_last_step(recording)
    heading = f"{shown(recording.name)}, {recording.unit}s {first} to {last}"
    if recording.epochs is not None:
        heading += f", epochs {epoch_of(recording.epochs, first):.4g} to {epoch_of(recording.epochs, last):.4g}"
    console.print(heading)
    for note in recording.notes:
        console.print(f"  [dim]{shown(note)}[/]")
    show_outcome(verdict, recording.unit)
    healthy = healthy_runs() if recording.official else None
    if healthy is not None:
        _compare_with_healthy(console, recording, healthy)
    from stability.diagnosis.run_figure import draw  # late: matplotlib takes a while to import

    draw(
        figure,
        recording.name,
        recording.signals,
        recording.validation,
        verdict=asdict(verdict),
        healthy=healthy,
        metric=recording.metric,
        unit=recording.unit,
    )
    console.print(f"[dim]figure[/] {shown(figure)}")


def summarise(runs: Sequence[Recording]) -> None:
    """Print a line for each of several recordings, and a table of them."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
    columns = ("run", "outcome", "cause", "since", "steps", "readings", "first loss", "last loss", "error rate")
    table = TextTable(*columns, box=None, header_style="dim")
    for run in runs:
        verdict = judge_recording(run)
        cause = f": {verdict.cause}" if verdict.cause else ""
        since = "" if verdict.onset_step is None else str(verdict.onset_step)
        console.print(
            f"{shown(run.name)}: [{style_of(verdict.outcome)}]{verdict.outcome}[/]{cause}"
            + (f", since {run.unit} {since}" if since else "")
            + unsure(verdict)
        )
        for note in run.notes:
            console.print(f"  [dim]{shown(note)}[/]")
        first, last = _first_and_last_step(run)
        _, losses = readings(run.signals, "loss")
        _, rates = readings(run.validation, "per")
        table.add_row(
            shown(run.name),
            verdict.outcome,
            verdict.cause or "",
            since,
            f"{first}–{last}" if run.unit == "step" else f"{run.unit}s {first}–{last}",
            str(len(run.signals.steps)),
            *(f"{losses[place]:.4g}" if len(losses) else "" for place in (0, -1)),
            f"{run.metric} {rates[-1]:.4g}" if len(rates) else "",
        )
    console.print()
    console.print(table)
    console.print("[dim]One of them in full: one LOG, and --run NUMBER if it holds several.[/]")


def _first_and_last_step(recording: Recording) -> tuple[int, int]:
    steps = [*recording.signals.steps[[0, -1]]] if len(recording.signals.steps) else []
    steps = steps or [*recording.validation.steps[[0, -1]]]
    return int(steps[0]), int(steps[1])


def _pick(runs: list[Recording], number: int, log: str) -> Recording:
    if 1 <= number <= len(runs):
        return runs[number - 1]
    raise StabilityError(f"{log} has no run {number}: it holds {counted(len(runs), 'run')}, numbered from 1.")


# What follows is imported late: a log is diagnosed without PyTorch, and without the packages that only training needs.


def _replay(folder: Path, device: str) -> int:
    try:
        require("train")
        from stability.trials.display import show_replay
        from stability.trials.replay import replay

        show_replay(folder, replay(folder, device))
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _read_run(address: str, uri: str | None) -> Recording:
    require("train")
    from stability.tracking.api import read_run

    with reading_bar():
        return read_metrics(*read_run(address.removeprefix(_RUN), uri))


def _grouped(logs: Sequence[str]) -> list[list[str]]:
    """The logs, those together that are read together."""
    return [[*map(str, group)] for group in group_charts([*map(Path, logs)])]


def _read_logs(logs: Sequence[str], names: dict[str, str]) -> list[Recording]:
    with reading_bar() as progress:
        return read_together([*map(Path, logs)], progress, names)


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
