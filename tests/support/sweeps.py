"""Sweeps on the real command line: what several tests run, and what they read from the studies' folders."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from stability.core.checkout import ROOT
from tests.support.commandline import CommandLine, rows
from tests.support.trial_folders import assert_same_trial

FACTORS = ("optimizer=official,adam_default", "seed=0,1")
LONG = ("steps=60", "checkpoint_every=5", "validate_every=20")
BASIC = ("--multirun", "hydra/launcher=basic", "sweep.claims=null")
STACKED = ("--multirun", "hydra/launcher=stacked", "sweep.claims=null")


def trials(cli: CommandLine, study: str = "single") -> dict[str, Path]:
    """The folders of a study's finished trials, by name."""
    return {path.parent.name: path.parent for path in sorted(cli.folder.glob(f"outputs/{study}/*/verdict.json"))}


def started_trials(cli: CommandLine, steps: int) -> int:
    """Count the trials of the study `stacked` that have made more than this number of steps."""
    return sum(len(rows(table)) > steps for table in cli.folder.glob("outputs/stacked/*/signals.csv"))


def assert_same_trials(cli: CommandLine, count: int) -> None:
    """Check that the studies `stacked` and `basic` have the same `count` finished trials."""
    assert len(trials(cli, "stacked")) == count
    for name, folder in trials(cli, "basic").items():
        assert_same_trial(trials(cli, "stacked")[name], folder)


def begun_trials(cli: CommandLine) -> list[str]:
    """The names of the trials of the study `stacked` that have been started."""
    return [path.parent.name for path in cli.folder.glob("outputs/stacked/*/config.yaml")]


def mlflow_runs(cli: CommandLine) -> dict[str, str]:
    """The runs in MLflow, with their status."""
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        found = store.execute("SELECT name, status FROM runs").fetchall()
    assert len(dict(found)) == len(found), "each is there once"
    return dict(found)


def run_without_heavy_imports(cli: CommandLine, *command: str) -> str:
    """Run a command where PyTorch, MLflow and HDF5 cannot be imported, and return what it prints."""
    blocked = cli.folder / "blocked"
    for package in ("torch", "mlflow", "h5py"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text("raise ImportError('this command must not import it')")
    paths = f"{blocked}:{os.environ.get('PYTHONPATH', '')}:{ROOT}"
    return cli.run(*command, env=os.environ | {"PYTHONPATH": paths}).out
