"""A sweep of somebody else's Hydra app as a study, by the real command line."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.support.apps import App
from tests.support.mlflow_runs import PARENT, read_runs


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App.write(tmp_path)


def verdicts(app: App) -> dict[str, str]:
    found = {name: folder / "verdict.json" for name, folder in app.jobs().items()}
    return {name: json.loads(path.read_text())["outcome"] for name, path in found.items() if path.exists()}


def test_a_grid_is_a_study_that_is_continued(app: App) -> None:
    """In the first run two jobs crash. The second runs these alone, and has the whole report."""
    grid = ("lr=0.1,5", "seed=0,1", "fault=crash")
    first = app.sweep(*grid, status=1)
    assert first.err.startswith("error: 2 trials have no verdict. Run the same command again")
    assert "ValueError: no such data (multirun/train/lr=0.1" in first.err
    assert "sys.exit('no such data') ended it (multirun/train/lr=5" in first.err
    assert len(re.findall(r"^running", first.out, re.MULTILINE)) == 4, "a crash stops no other job"
    assert re.search(r"^\[\d/4\] stable  .*WER 0\.10", first.out, re.MULTILINE), first.out
    (app.folder / "mended").touch()
    again = app.sweep(*grid)
    assert len(re.findall(r"^running", again.out, re.MULTILINE)) == 2
    assert again.err == ""
    assert "2 of 4 trials are unhealthy (2 exploded); lr has the largest effect on this." in again.out
    assert (app.folder / "multirun" / "train" / "report.html").exists()
    assert verdicts(app)["lr=5,seed=1,fault=crash"] == "exploded"
    names = {path.name for path in app.jobs()["lr=0.1,seed=0,fault=crash"].iterdir()}
    assert {"signals.csv", "validation.csv", "verdict.json", "run.png", "log.csv", ".hydra"} <= names


def test_a_dry_run_lists_the_jobs_and_leaves_no_trace(app: App) -> None:
    before = {*app.folder.iterdir()}
    shown = app.sweep("lr=0.1,5", "seed=0,1", "+hydra.callbacks.stability.dry_run=true")
    assert "4 jobs: 0 done, 4 to do, in multirun/train" in shown.out
    assert re.search(r"^ 0\.1 +seed 0: to do, seed 1: to do", shown.out, re.MULTILINE)
    assert not {path for path in {*app.folder.iterdir()} - before if not path.name.startswith("tmp")}


def test_an_app_without_monitor_and_log_is_said_to_have_none(app: App) -> None:
    ended = app.sweep("log=false", "lr=0.1,5")
    assert "2 jobs have no verdict: no Monitor watched it, and its folder has no log that can be read" in ended.out
    assert "? no verdict 2" in ended.out
    again = app.sweep("log=false", "lr=0.1,5")
    assert "running" not in again.out


def test_what_depends_on_a_jobs_number_is_refused(tmp_path: Path) -> None:
    app = App.write(tmp_path, shuffle="${hydra:job.num}")
    error = app.sweep("lr=0.1,5", status=1).err
    assert error.startswith("error: 2 of 2 configurations are invalid; no job was started:")
    assert "shuffle depends on hydra.job.num" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweep.subdir=${lr}", "hydra.sweep.subdir gives the folder multirun/train/0.1 to several jobs"),
        ("hydra.sweep.dir=multirun/${lr}", "hydra.sweep.dir gives jobs folders of their own, such as multirun/5"),
    ],
)
def test_folders_that_are_not_one_for_a_job_and_one_for_all_are_refused(app: App, override: str, message: str) -> None:
    assert message in app.sweep("lr=0.1,5", "seed=0,1", override, status=1).err


def test_the_processes_of_one_training_run_no_sweep_each(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert "Start the sweep in one process" in app.sweep("lr=0.1,5", status=1).err


def test_settings_of_other_types_are_levels_of_one_factor(app: App) -> None:
    ended = app.sweep("width=4,wide,null", "+copy=${width}")
    assert re.search(r"^ width 4 +width wide +width null *\n +1S +1S +1S", ended.out, re.MULTILINE), ended.out


@pytest.mark.slow
def test_jobs_are_below_their_study_in_mlflow_wherever_their_folders_are(app: App) -> None:
    given = ("lr=0.1,5", "hydra.callbacks.stability.tracking=mlflow", "hydra.job.chdir=true")
    app.sweep(*given, "hydra.sweep.subdir=rates/${lr}")
    found = {run.name: run for run in read_runs(f"sqlite:///{app.folder}/multirun/mlflow.db", "train")}
    study = found.pop("train")
    assert {name.rpartition("-")[0]: run.tags["outcome"] for name, run in found.items()} == {
        "lr=0.1": "stable",
        "lr=5": "exploded",
    }
    assert {run.tags[PARENT] for run in found.values()} == {study.id}
    assert [*app.folder.rglob("mlflow.db")] == [app.folder / "multirun/mlflow.db"]


@pytest.mark.slow
def test_the_bisection_finds_the_largest_healthy_value_of_any_number(app: App) -> None:
    ended = app.sweep("hydra/sweeper=bisection", "hydra.sweeper.setting=lr", "seed=0,1", "hydra.sweeper.highest=100")
    with (app.folder / "multirun" / "train" / "boundary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["low"]) <= 2.5 <= float(row["high"])
    assert "The largest healthy lr, with its 95 % interval:" in ended.out
    again = app.sweep("hydra/sweeper=bisection", "hydra.sweeper.setting=lr", "seed=0,1", "hydra.sweeper.highest=100")
    assert "running" not in again.out
