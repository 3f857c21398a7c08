"""How fast is the report on runs that exist? Times the command on 10,000 runs from each kind of source.

    python -m experiments.benchmarks.runs_speed [SOURCE ...] [--runs N] [--readings N] [--folder FOLDER]
    make benchmark-runs

The runs are a grid of four factors with 25 seeds, of which some explode. Each has logged a loss and a gradient norm at
each reading, and an error rate at every tenth. They are written once; MLflow itself writes its store, which takes some
minutes. Then the real command reports on them. Its processor time and its memory are those of all its processes
together, memory at the worst moment, with what they share counted for each. Run nothing else on the machine meanwhile.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

_METRICS = ("train/loss", "grad_norm", "val/wer")
_FACTORS: dict[str, tuple[Any, ...]] = {
    "lr": (0.01, 0.03, 0.1, 0.3, 1.0),
    "optimizer": ("adam", "adamw", "sgd", "lion"),
    "dropout": (0.0, 0.1, 0.2, 0.3, 0.4),
    "warmup": (0, 100, 300, 1000),
}
_STEPS_A_READING = 10
_POLL = 0.1  # seconds


class _Run(NamedTuple):
    settings: dict[str, Any]
    rows: list[tuple[float | None, ...]]  # the step, and a value of each metric


def main() -> None:
    """Write what is not there yet, report on it, and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.runs_speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"of {', '.join(_SOURCES)} (default: all)")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--readings", type=int, default=100, help="of each run")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-runs"))
    options = parser.parse_args()
    table = Table(
        "source", "s", "s of processors", "GB, at most", title=f"{options.runs:,} runs with {options.readings} readings"
    )
    for name in options.sources or _SOURCES:
        folder = options.folder / f"{name}-{options.runs}-{options.readings}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _SOURCES[name](folder, track(_runs(options.runs, options.readings), f"{name}: writing", options.runs))
            (folder / "done").touch()
        seconds, busy, memory = _measured(_ARGUMENTS[name], folder)
        table.add_row(name, f"{seconds:.1f}", f"{busy:.1f}", f"{memory / 1e9:.2f}")
    Console().print(table)


def _runs(count: int, readings: int) -> Iterator[_Run]:
    cells = [*product(*_FACTORS.values())]
    for number in range(count):
        seed, cell = divmod(number, len(cells))
        settings = dict(zip(_FACTORS, cells[cell], strict=True))
        explodes = settings["lr"] == 1 and settings["optimizer"] == "sgd" and settings["warmup"] < 300
        yield _Run(settings | {"seed": seed}, _rows(number, readings, explodes=explodes))


def _rows(number: int, readings: int, *, explodes: bool) -> list[tuple[float | None, ...]]:
    rng, x = np.random.default_rng(number), np.arange(readings) / readings
    growth = np.exp(np.maximum(0, x - 0.3) * 25) if explodes else np.ones(readings)
    loss = ((3 * np.exp(-3 * x) + rng.normal(0, 0.03, readings)) * growth).tolist()
    norm = (np.exp(rng.normal(0, 0.1, readings) - x) * growth**2).tolist()
    rate = np.where(explodes & (x > 0.4), 1.0, np.clip(1 - 1.2 * x, 0.1, 1)).tolist()
    return [
        (i * _STEPS_A_READING, loss[i], norm[i], rate[i] if i % 10 == 9 else None) for i in range(readings)
    ]  # fmt: skip


def _write_log(path: Path, run: _Run) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("step", *_METRICS), *run.rows])


def _write_table(folder: Path, runs: Iterator[_Run]) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    with (folder / "runs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*_FACTORS, "seed", "log"])
        for number, run in enumerate(runs):
            _write_log(folder / "logs" / f"{number}.csv", run)
            table.writerow([*run.settings.values(), f"logs/{number}.csv"])


def _write_jobs(folder: Path, runs: Iterator[_Run]) -> None:
    for number, run in enumerate(runs):
        hydra = folder / "multirun" / str(number) / ".hydra"
        hydra.mkdir(parents=True, exist_ok=True)
        own = run.settings
        config = {"optimizer": {"name": own["optimizer"], "lr": own["lr"]}, "seed": own["seed"],
                  "model": {"dropout": own["dropout"]}, "schedule": {"warmup": own["warmup"]}}  # fmt: skip
        (hydra / "config.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()))
        (hydra / "overrides.yaml").write_text("".join(f"- {name}={value}\n" for name, value in own.items()))
        (hydra / "hydra.yaml").write_text(
            f"hydra:\n  runtime:\n    choices:\n      optimizer: {own['optimizer']}\n  verbose: false\n"
        )
        _write_log(hydra.parent / "metrics.csv", run)


def _write_store(folder: Path, runs: Iterator[_Run]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    (folder / "mlflow.db").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        experiment = client.create_experiment("speed")
        for run in runs:
            identity = client.create_run(experiment).info.run_id
            metrics = [
                Metric(name, value, 0, int(step or 0))
                for step, *values in run.rows
                for name, value in zip(_METRICS, values, strict=True)
                if value is not None
            ]
            client.log_batch(identity, metrics, [Param(name, str(value)) for name, value in run.settings.items()])
            client.set_terminated(identity)


_SOURCES: dict[str, Callable[[Path, Any], None]] = {"table": _write_table, "hydra": _write_jobs, "mlflow": _write_store}
_ARGUMENTS = {"table": ["runs.csv"], "hydra": ["multirun"], "mlflow": ["mlflow:speed", "--uri=sqlite:///mlflow.db"]}


def _measured(arguments: Sequence[str], folder: Path) -> tuple[float, float, float]:
    """Seconds that the report takes, those of the processors, and its largest memory in bytes."""
    begun, spent, most = time.perf_counter(), _spent(), 0.0
    command = [sys.executable, "-m", "stability.report", *arguments, "--out=page.html"]
    with (folder / "output.txt").open("w") as output:
        process = psutil.Popen(command, cwd=folder, stdout=output, stderr=output)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                most = max(most, sum(one.memory_info().rss for one in (process, *process.children(recursive=True))))
            time.sleep(_POLL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, (folder / "output.txt").read_text())
    return time.perf_counter() - begun, _spent() - spent, most


def _spent() -> float:
    """Seconds of processors that all processes started from here have taken, as far as they have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
