"""Apps with Hydra 1.3 and 1.4, with other launchers and sweepers, and what disturbs them."""

import csv
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from stability.core.checkout import ROOT
from tests.support.apps import App
from tests.support.hydra13 import python_with_hydra_13

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LAUNCHERS = ("basic", "joblib", "submitit_local")
GRID = ("lr=0.1,5", "seed=0,1", "fault=crash")


@pytest.fixture(scope="module")
def hydra13(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with_hydra_13(tmp_path_factory.mktemp("hydra") / "1.3")


def is_continued(app: App, python: Path, *overrides: str) -> None:
    """Check a grid of which two jobs crash, and that the same command then runs these two alone."""
    first = app.sweep_with(python, *GRID, *overrides, status=1)
    assert first.err.startswith("error: 2 trials have no verdict. Run the same command again"), first.err
    assert "ValueError: no such data" in first.err
    assert "sys.exit('no such data') ended it" in first.err
    assert re.search(r"\bS stable 1\b", first.out)
    (app.folder / "mended").touch()
    again = app.sweep_with(python, *GRID, *overrides)
    assert len(re.findall(r"^\[\d/4\]", again.out, re.MULTILINE)) == 2
    assert "2 of 4 trials are unhealthy (2 exploded); lr has the largest effect on this." in again.out


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_grid_with_hydra_13(tmp_path: Path, hydra13: Path, launcher: str) -> None:
    is_continued(App.write(tmp_path), hydra13, f"hydra/launcher={launcher}")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_grid_with_hydra_14(tmp_path: Path, launcher: str) -> None:
    package = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}.get(launcher)
    if package is not None and find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")
    is_continued(App.write(tmp_path), Path(sys.executable), f"hydra/launcher={launcher}")


def test_the_bisection_finds_the_largest_healthy_value_of_any_number(tmp_path: Path, hydra13: Path) -> None:
    app = App.write(tmp_path)
    search = ("hydra/sweeper=bisection", "hydra.sweeper.setting=lr", "hydra.sweeper.highest=100")
    for python in (hydra13, Path(sys.executable)):  # with either version: the second one finds the first one's jobs
        ended = app.sweep_with(python, *search, "seed=0,1")
        with (app.folder / "multirun" / "train" / "boundary.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert float(row["low"]) <= 2.5 <= float(row["high"])
        assert "The largest healthy lr is 2." in ended.out
    assert "running" not in ended.out
    with_wrong_name = app.sweep_with(sys.executable, "hydra/sweeper=bisection", "hydra.sweeper.setting=rate", status=1)
    assert with_wrong_name.err.startswith("error: hydra.sweeper.setting=rate: the app has no number of that name.")


def test_a_search_by_optuna_gets_what_finished_jobs_returned(tmp_path: Path) -> None:
    app = App.write(tmp_path)
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "lr=interval(0.01,1)", "hydra.sweeper.sampler.seed=1")
    first = app.sweep_with(sys.executable, *search)
    again = app.sweep_with(sys.executable, *search)
    assert (first.out.count("running"), again.out.count("running")) == (4, 0)
    best = [re.findall(r"best_value: [\d.]+|Best value: .*", ended.out) for ended in (first, again)]
    assert best[0] == best[1] != []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_was_stopped_goes_on(tmp_path: Path, number: int) -> None:
    app = App.write(tmp_path)
    sweep = ("seed=range(4)", "monitor=true", "fault=wait")  # the second job waits for the signal
    command = [sys.executable, "train.py", "--multirun", *sweep]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not [*tmp_path.glob("multirun/train/*/returned.json")] and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        assert err.decode().endswith("Stopped. The same command goes on from there.\n")
    finished = len([*tmp_path.glob("multirun/train/*/returned.json")])
    (app.folder / "mended").touch()
    again = app.sweep_with(sys.executable, *sweep)
    assert finished == 1
    assert again.out.count("running") == 3
    assert len([*tmp_path.glob("multirun/train/*/verdict.json")]) == 4


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_process_that_dies_is_one_message(tmp_path: Path, hydra13: Path, launcher: str) -> None:
    app = App.write(tmp_path)
    ended = app.sweep_with(hydra13, "seed=0,1", "fault=die", f"hydra/launcher={launcher}", status=1)
    assert ended.err.startswith("error: The sweep ended early. ")
    assert "2 trials have no verdict. Run the same command again" in ended.err
    assert "it was not started, or its process was killed" in ended.err
