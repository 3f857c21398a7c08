"""`kill -9` at random moments: all folders stay whole, the same command goes on, and every run in MLflow is closed."""

import json
import random
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import torch

from stability.core.files import BEST, LAST, SIGNALS_FILE, TRACKING, VALIDATION_FILE, VERDICT
from stability.diagnosis.table import read_table
from stability.tracking.state import read_state
from tests.support.commandline import CommandLine, Forked, ended
from tests.support.trial_folders import assert_same_trial

KILLS = 20  # for each launcher
SWEEP = (
    *("--multirun", "optimizer=official,adam_default", "seed=0,1", "sweep.claims=null"),
    *("steps=60", "checkpoint_every=7", "validate_every=20"),
)
LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "stacked": ("hydra/launcher=stacked", "hydra.launcher.size=3"),
    "workers": ("hydra/launcher=stacked", "hydra.launcher.size=1", "hydra.launcher.workers=2"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_that_is_killed_again_and_again_loses_nothing(cli: CommandLine, launcher: str) -> None:
    """A sweep that ends before it is killed is followed by the same one in another study."""
    seed = random.randrange(1000)
    print("seed", seed)  # shown if the test fails
    draw = random.Random(seed)
    cli.run(*SWEEP, "hydra/launcher=stacked", "study=undisturbed")
    sweep = (*SWEEP, *LAUNCHERS[launcher], "tracking=mlflow")
    kills, studies, longest = 0, ["study0"], 8.0
    while kills < KILLS:
        process = cli.fork(*sweep, f"study={studies[-1]}")
        begun = time.monotonic()
        process.process.join(draw.uniform(0, longest))
        if process.poll() is not None:
            ended(process, 0)
            longest = time.monotonic() - begun
            studies.append(f"study{len(studies)}")
            continue
        kill(process, with_workers=draw.random() < 0.5)
        kills += 1
        for folder in (cli.folder / "outputs" / studies[-1]).glob("*/"):
            assert_whole(folder)
    cli.run(*sweep, f"study={studies[-1]}")
    reference = {path.parent.name: path.parent for path in cli.folder.glob("outputs/undisturbed/*/verdict.json")}
    assert len(reference) == 4
    for study in studies:
        for name, folder in reference.items():
            assert_same_trial(cli.folder / "outputs" / study / name, folder)
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        runs = store.execute(
            "SELECT experiments.name, runs.name, status FROM runs JOIN experiments USING (experiment_id)"
        )
        assert sorted(runs.fetchall()) == sorted(
            (study, name, "FINISHED") for study in studies for name in (study, *reference)
        )
        points = store.execute("SELECT key, count(*) FROM metrics WHERE key = 'loss' GROUP BY run_uuid").fetchall()
        assert points == 4 * len(studies) * [("loss", 60)]


def kill(process: Forked, *, with_workers: bool) -> None:
    """Kill a sweep, and wait until its workers have ended. They end themselves if they are not killed."""
    workers = psutil.Process(process.process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    if with_workers:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive


def assert_whole(folder: Path) -> None:
    """Check that every file of a trial that is there can be read."""
    for name in (SIGNALS_FILE, VALIDATION_FILE):
        read_table(folder / name)
    for checkpoint in (folder / LAST, folder / BEST):
        if checkpoint.exists():
            torch.load(checkpoint, weights_only=True)
    if (folder / VERDICT).exists():
        json.loads((folder / VERDICT).read_text())
    if (folder / TRACKING).exists():
        read_state(folder)
