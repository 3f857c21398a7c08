"""Runs of somebody else's program: what a log of each says, and the forms in which such runs are kept."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STEPS = range(0, 400, 10)
METRICS = ("train/loss", "grad_norm", "val/wer")


class MadeRun(NamedTuple):
    """A run: its settings, and a row for each step with as many values as there are METRICS."""

    settings: dict[str, Any]
    rows: Sequence[tuple[int, float, float, float | None]]

    @property
    def name(self) -> str:
        return "-".join(f"{name}{level}" for name, level in self.settings.items())


def grid(
    lr: Iterable[Any] = (0.1, 3.0), opt: Iterable[str] = ("adam", "sgd"), seed: Iterable[int] = range(6)
) -> list[MadeRun]:
    """Runs of which those with sgd and a rate above 1 explode."""
    settings = ({"lr": r, "opt": o, "seed": s} for r, o, s in product(lr, opt, seed))
    return [MadeRun(own, rows(own["seed"], explodes=own["opt"] == "sgd" and own["lr"] > 1)) for own in settings]


def rows(seed: int, *, explodes: bool = False) -> list[tuple[int, float, float, float | None]]:
    """Step, training loss, gradient norm and, at some steps, the error rate of a run."""
    rng, x = np.random.default_rng(seed), np.arange(len(STEPS)) / len(STEPS)
    growth = np.exp(np.maximum(0, x - 0.3) * 25) if explodes else np.ones(len(x))
    loss = (3 * np.exp(-3 * x) + rng.normal(0, 0.03, len(x))) * growth
    norm = np.exp(rng.normal(0, 0.1, len(x)) - x) * growth**2
    rate = np.where(explodes & (x > 0.4), 1.0, np.clip(1 - 1.2 * x, 0.1, 1))
    return [
        (step, float(loss[i]), float(norm[i]), float(rate[i]) if i % 5 == 4 else None) for i, step in enumerate(STEPS)
    ]


def write_log(path: Path, run: MadeRun) -> Path:
    """Write the log of a run as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_csv(path, ["step", *METRICS], run.rows)


def write_csv(path: Path, titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(rows)
    return path


def write_table(folder: Path, runs: Sequence[MadeRun]) -> Path:
    """Write a table with a row for each run, and the logs in a folder beside it."""
    for run in runs:
        write_log(folder / "logs" / f"{run.name}.csv", run)
    names = [*dict.fromkeys(name for run in runs for name in run.settings)]
    cells = ([run.name, *(run.settings.get(name) for name in names), f"logs/{run.name}.csv"] for run in runs)
    return write_csv(folder / "runs.csv", ["run", *names, "log"], cells)


def write_jobs(folder: Path, runs: Sequence[MadeRun]) -> Path:
    """Write the folders of a Hydra app's jobs, as Hydra leaves them in multirun/DATE/TIME."""
    for number, run in enumerate(runs):
        job = folder / "2026-11-29" / "10-11-12" / str(number)
        hydra = job / ".hydra"
        hydra.mkdir(parents=True)
        optimizer = {"name": run.settings["opt"], "lr": run.settings["lr"]}
        config = {"optimizer": optimizer, "trainer": {"seed": run.settings["seed"], "dir": "${hydra:run.dir}"}}
        (hydra / "config.yaml").write_text("".join(f"{group}: {json.dumps(own)}\n" for group, own in config.items()))
        words = [f"optimizer={run.settings['opt']}", f"optimizer.lr={run.settings['lr']}", f"trainer.seed={number}"]
        (hydra / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
        (hydra / "hydra.yaml").write_text(
            f"hydra:\n  runtime:\n    choices:\n      optimizer: {run.settings['opt']}\n      hydra/env: default\n"
            "  verbose: false\n"
        )
        (job / "train.log").touch()
        write_log(job / "metrics.csv", run)
    return folder


def write_charts(folder: Path, runs: Sequence[MadeRun]) -> Path:
    """Write what W&B's page exports: a table of the runs, and a chart of each metric."""
    folder.mkdir()
    meta: Mapping[str, str] = {"State": "finished", "Notes": "", "User": "me", "Created": "2026", "Runtime": "9"}
    titles = ["Name", *meta, *runs[0].settings, *METRICS]
    last = [
        [next(row[place] for row in reversed(run.rows) if row[place] is not None) for place in (1, 2, 3)]
        for run in runs
    ]
    write_csv(
        folder / "export.csv",
        titles,
        ([run.name, *meta.values(), *run.settings.values(), *own] for run, own in zip(runs, last, strict=True)),
    )
    for place, metric in enumerate(METRICS, 1):
        chart = ["Step", *(f"{run.name} - {metric}{end}" for run in runs for end in ("", "__MIN", "__MAX"))]
        cells = ([step, *(run.rows[i][place] for run in runs for _ in range(3))] for i, step in enumerate(STEPS))
        write_csv(folder / f"chart {place}.csv", chart, cells)
    return folder


def write_events(folder: Path, runs: Sequence[MadeRun], *, hparams: bool) -> Path:
    """Write a folder with TensorBoard's event files of each run."""
    from torch.utils.tensorboard import SummaryWriter

    for number, run in enumerate(runs):
        place = f"run{number}" if hparams else ",".join(f"{name}={level}" for name, level in run.settings.items())
        with SummaryWriter(str(folder / place)) as writer:
            for step, *values in run.rows:
                for metric, value in zip(METRICS, values, strict=True):
                    if value is not None:
                        writer.add_scalar(metric, value, step)
            if hparams:
                writer.add_hparams(run.settings, {"hparam/wer": 0.5})
    return folder


def log_to_mlflow(uri: str, experiment: str, runs: Sequence[MadeRun], names: Sequence[str] = METRICS) -> str:
    """Log runs to MLflow as any program would. Return the source."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    identity = found.experiment_id if found else client.create_experiment(experiment)
    for run in runs:
        params = [Param(name, str(level)) for name, level in run.settings.items()]
        metrics = [
            Metric(metric, value, 0, step)
            for step, *values in run.rows
            for metric, value in zip(names, values, strict=True)
            if value is not None
        ]
        info = client.create_run(identity, run_name=run.name).info
        client.log_batch(info.run_id, metrics, params)
        client.set_terminated(info.run_id)
    return f"mlflow:{experiment}"
