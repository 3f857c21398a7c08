"""Trials and studies from start to end, and what is left to send later."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stability import send
from stability.config.schema import Tracking
from stability.core.checkout import ROOT
from stability.core.errors import StabilityError
from stability.diagnosis.readers.metrics import read_metrics
from stability.diagnosis.table import read_table
from stability.tracking import api
from stability.tracking.api import close_study, read_run
from stability.tracking.store import forget_failures
from tests.support.commandline import CommandLine
from tests.support.mlflow_runs import (
    PARENT,
    add_rows,
    add_validation,
    columns_of_views,
    make_trial,
    names_behind,
    open_study,
    open_tracker,
    read_runs,
    signal_values,
    store_uri,
    study_and_trials,
    write_verdict,
)


def test_a_trial_is_sent_from_start_to_end(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_trial(outputs / "study" / "epsilon=1e-8,seed=0")
    settings = Tracking("mlflow", None, "study")
    tracker = api.open_tracker(settings, folder, outputs=outputs)
    for first in range(0, 100, 25):
        add_rows(folder, first, first + 25)
        tracker.update()
        assert read_runs(store_uri(outputs))[0].steps("loss") == list(range(first + 25))
    assert read_runs(store_uri(outputs))[0].status == "RUNNING"
    add_validation(folder, 99, 0.25)
    write_verdict(folder)
    tracker.finish()

    (run,) = read_runs(store_uri(outputs))
    assert (run.name, run.status) == ("epsilon=1e-8,seed=0", "FINISHED")
    assert run.params == {
        "epsilon": "1e-08",
        "clip_norm": "null",
        "fused": "true",
        "steps": "100",
        "study": "study",
        "sessions": '["a", "b"]',
        "path": "/data",
    }
    assert PARENT not in run.tags  # no sweep
    assert run.tags["outcome"] == "exploded"
    assert run.tags["cause"] == "learning_rate"
    assert run.tags["onset_step"] == "0"
    assert "detected_step" not in run.tags
    assert run.tags["mlflow.note.content"] == "Lower it."
    assert run.metrics["lr"] == [(step, 0.005) for step in range(100)]
    assert [np.float32(value) for _, value in run.metrics["loss"]] == list(signal_values(100)[:, 0])
    assert run.metrics["validation/per"] == [(99, 0.25)]
    assert run.artifacts == {"config.yaml", "verdict.json", "run.png"}
    assert (outputs / "mlflow-artifacts" / run.id).is_dir()
    assert f"mlflow ui --backend-store-uri {store_uri(outputs)}" in tracker.where
    assert run.id in tracker.where
    assert capfd.readouterr() == ("", "")


def test_a_sweep_is_sent_from_start_to_end(cli: CommandLine, empty_store: Path) -> None:
    outputs = cli.folder / "outputs"
    folder = outputs / "sweep"
    outputs.mkdir()
    shutil.copy(empty_store, outputs / "mlflow.db")
    uri = store_uri(outputs)
    program = (
        "import sys; from pathlib import Path; from tests.support.mlflow_runs import open_study\n"
        "open_study(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, folder, outputs], check=True, cwd=ROOT)
    open_study(folder, outputs)  # again, after that process's end
    (parent,) = read_runs(uri)
    assert (parent.name, parent.status, parent.params) == ("sweep", "RUNNING", {})
    settings = ["study=sweep", "tracking=mlflow", "tracking.experiment=study", "optimizer.clip_norm=null"]
    out = cli.run("--multirun", *settings, "schedule.lr_max=0.005,1e6", "diagnosis=eager").out
    assert f"/runs/{parent.id}?" in out
    closed, trials = study_and_trials(uri)
    assert closed.id == parent.id
    assert {(run.params["epsilon"], run.params["lr"]) for run in trials} == {("0.1", "0.005"), ("0.1", "1000000.0")}
    assert closed.status == "FINISHED"
    assert closed.artifacts == {"report.html", *(path.name for path in (folder / "report").iterdir())}
    outcomes = Counter(run.tags["outcome"] for run in trials)
    assert {f"outcome/{name}": [(0, count)] for name, count in outcomes.items()}.items() <= closed.metrics.items()
    assert sum(count for ((_, count),) in closed.metrics.values()) == 2
    assert {name: value for name, value in closed.tags.items() if "factor" in name} == {"factor.lr": "0.005, 1e6"}
    (columns,) = columns_of_views(uri)
    assert columns == ["tags.`outcome`", "tags.`cause`", "metrics.`validation/per`", "params.`lr`"]
    dataset = json.loads(next(folder.glob("*/data.json")).read_text())
    assert {trial.datasets for trial in trials} == {((dataset["name"], dataset["digest"]),)}
    assert {"grad_norm", "grad_norm/gru.0", "grad_norm/day"} <= trials[0].metrics.keys()
    found = read_run(trials[0].id, uri)
    assert read_metrics(*found).signals.names == read_table(folder / trials[0].name / "signals.csv").names

    note = closed.tags["mlflow.note.content"]
    answer = " ".join(out[out.index("\n\n") + 2 :].splitlines()[:3])
    assert note.startswith("Trials: [all](#/experiments/")
    assert note.endswith(f"\n\n{answer}")
    by_error = [run.name for run in sorted(trials, key=lambda run: run.metrics["validation/per"][-1][1])]
    links = dict(re.findall(r"\[([^]]+)\]\(([^)]+)\)", note))
    assert sorted(names_behind(links.pop("all"), uri)) == sorted(by_error)
    for text, link in links.items():
        count, outcome = text.split()
        assert outcomes.pop(outcome) == int(count)
        assert sorted(names_behind(link, uri)) == sorted(r.name for r in trials if r.tags["outcome"] == outcome)
    assert not outcomes


@pytest.mark.parametrize(
    ("status", "files", "stopped"),
    [
        ("KILLED", [], False),  # before its first trial
        ("KILLED", ["config.yaml"], False),
        ("KILLED", ["config.yaml", "verdict.json"], True),
        ("FINISHED", ["config.yaml", "verdict.json"], False),
        ("FAILED", ["config.yaml", "error.txt"], False),
    ],
)
def test_the_status_of_a_study_says_how_it_ended(outputs: Path, status: str, files: list[str], stopped: bool) -> None:
    folder = outputs / "sweep"
    open_study(folder, outputs)
    assert read_runs(store_uri(outputs))[0].status == "RUNNING"
    (folder / "trial").mkdir()
    for name in files:
        (folder / "trial" / name).touch()
    close_study(folder, [], f"It is {status}.", stopped=stopped)
    (run,) = read_runs(store_uri(outputs))
    assert run.status == status
    assert run.tags["mlflow.note.content"].endswith(f".\n\nIt is {status}.")


def test_outcomes_are_logged_once_however_often_a_study_is_closed(outputs: Path) -> None:
    trial = make_trial(outputs / "sweep" / "trial")
    open_study(trial.parent, outputs)
    close_study(trial.parent, [], "", stopped=True)
    assert not read_runs(store_uri(outputs))[0].metrics
    write_verdict(trial)
    for _ in range(2):
        open_study(trial.parent, outputs)
        close_study(trial.parent, [], "")
        assert read_runs(store_uri(outputs))[0].metrics["outcome/exploded"] == [(0, 1)]


def test_a_run_that_was_made_just_before_a_kill_is_found_again(outputs: Path) -> None:
    trial = make_trial(outputs / "trial")
    open_tracker(trial, outputs).abort("KILLED")
    written = json.loads((trial / "tracking.json").read_text())
    (trial / "tracking.json").write_text(json.dumps(written | {"run_id": None, "page": "", "finished": False}))
    open_tracker(trial, outputs).finish()
    (run,) = read_runs(store_uri(outputs))
    assert (run.id, run.status) == (written["run_id"], "FINISHED")


def test_a_trial_makes_the_parent_that_an_outage_prevented(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, away = outputs / "sweep", outputs / "away.db"
    away.mkdir()  # no store can be there
    uri = f"sqlite:///{away}"
    api.open_study(Tracking("mlflow", uri, "study"), folder, outputs=outputs)
    assert f"stability.send {folder}" in caplog.text
    away.rmdir()
    shutil.copy(outputs / "mlflow.db", away)
    forget_failures()
    for name in ("a", "b"):
        open_tracker(make_trial(folder / name), outputs, uri).finish()
    study, trials = study_and_trials(uri)
    assert (study.name, study.status) == ("sweep", "RUNNING")
    assert sorted(run.name for run in trials) == ["a", "b"]


def test_a_study_can_be_sent_after_its_end(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    folder = outputs / "sweep"
    api.open_study(Tracking("mlflow", uri, "study"), folder, outputs=outputs)
    trial = make_trial(folder / "trial")
    tracker = open_tracker(trial, outputs, uri)
    add_rows(trial, 0, 10)
    write_verdict(trial)
    tracker.finish()
    (folder / "report.html").write_text("")
    assert f"stability.send {folder} --uri {uri}`" in close_study(folder, [folder / "report.html"], "The answer.")
    assert send.main([str(folder), "--uri", uri]) == 1
    assert f"Cannot send {folder} to http" in capsys.readouterr().err
    for _ in range(2):
        assert send.main([str(folder), "--uri", store_uri(outputs)]) == 0
        study, (child,) = study_and_trials(store_uri(outputs))
        assert (child.name, child.steps("loss")) == ("trial", list(range(10)))
        assert (study.status, study.artifacts) == ("FINISHED", {"report.html"})
        assert study.metrics["outcome/exploded"] == [(0, 1)]
        assert study.tags["mlflow.note.content"].endswith(".\n\nThe answer.")


def test_trials_sent_before_their_study_become_its_children(outputs: Path) -> None:
    trial = make_trial(outputs / "sweep" / "trial")
    open_tracker(trial, outputs).finish()
    open_study(trial.parent, outputs)
    assert send.main([str(trial.parent)]) == 0
    study, (child,) = study_and_trials(store_uri(outputs))
    assert (study.name, child.name) == ("sweep", "trial")


@pytest.fixture
def named_store(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that the environment names, and an experiment."""
    (outputs / "shared").mkdir()
    shutil.move(outputs / "mlflow.db", outputs / "shared" / "mlflow.db")
    uri = store_uri(outputs / "shared")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    return uri


def test_the_store_and_the_experiment_that_the_environment_names_come_before_the_default(
    named_store: str, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ["tags={team: speech, ticket: '42'}", "note=After the fix.", "epsilon=0.1"]
    cli.run("tracking=mlflow", "study=sweep", *mine)
    assert not (cli.folder / "outputs" / "mlflow.db").exists()
    (run,) = read_runs(named_store, "ours")
    place = f"{cli.folder.name}/outputs"
    assert run.name.endswith(f" in {place}")
    assert run.tags["folder"].endswith(f"/{place}/sweep/{run.name.split()[0]}")
    assert run.tags["mlflow.user"]
    assert run.tags["mlflow.source.name"] == "stability.train"
    assert (run.tags["team"], run.tags["ticket"]) == ("speech", "42")
    assert run.tags["mlflow.note.content"].startswith("After the fix.\n\n")


def test_send_goes_to_the_store_that_the_environment_names(
    named_store: str, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untracked, foreign = (make_trial(outputs / "study" / name) for name in ("untracked", "foreign"))
    add_rows(untracked, 0, 10)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_tracker(foreign, outputs, "http://127.0.0.1:9").finish()
    assert send.main([str(untracked)]) == 1
    assert send.main([str(foreign)]) == 1  # the folder names a store, and its user does not
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named_store)
    assert send.main([str(outputs / "study")]) == 0, capsys.readouterr().err
    for name, experiment in (("untracked", "ours"), ("foreign", "study")):
        (run,) = read_runs(named_store, experiment)
        assert run.name == f"{name} in {outputs.parent.name}/{outputs.name}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mlruns", r"MLFLOW_TRACKING_URI=mlruns is not a store\..* or unset it for"),
        ("http://me:secret@host", r"MLFLOW_TRACKING_URI holds a user name or a password"),
    ],
)
def test_an_environment_that_names_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    with pytest.raises(StabilityError, match=message) as error:
        open_tracker(make_trial(tmp_path / "trial"), tmp_path)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(StabilityError, match=r"^tracking\.experiment is empty"):
        api.open_tracker(Tracking("mlflow", None, ""), tmp_path, outputs=tmp_path)


def test_system_metrics_by_one_switch(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    folder = make_trial(outputs / "trial")
    tracker = api.open_tracker(Tracking("mlflow", None, "study", system_metrics=True), folder, outputs=outputs)
    time.sleep(0.5)
    write_verdict(folder)
    tracker.finish()
    (run,) = read_runs(store_uri(outputs))
    assert run.status == "FINISHED"
    assert "system/cpu_utilization_percentage" in run.metrics


def test_a_study_that_grows_shows_all_its_levels(outputs: Path) -> None:
    folder, settings = outputs / "sweep", Tracking("mlflow", None, "study")
    for levels in (["0.1"], ["1e-8", "0.1"], [f"{n}" for n in range(20)]):
        api.open_study(settings, folder, outputs=outputs, factors={"epsilon": levels, "seed": ["0", "1"]})
        (run,) = read_runs(store_uri(outputs))
        assert run.tags["factor.seed"] == "0, 1"
        assert run.tags["factor.epsilon"] == (", ".join(levels) if len(levels) < 20 else "0 … 19 (20 levels)")
    assert columns_of_views(store_uri(outputs))[0][-2:] == ["params.`epsilon`", "params.`seed`"]


def test_without_tracking_nothing_is_imported_or_written(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stability.config.schema import Tracking\n"
        "from stability.tracking import api\n"
        "here = Path(sys.argv[1])\n"
        "t = api.open_tracker(Tracking('none', None, 's'), here, outputs=here)\n"
        "t.update(); t.finish(); t.abort('FAILED'); print(t.where)\n"
        "api.open_study(Tracking('none', None, 's'), here / 'study', outputs=here)\n"
        "print(api.close_study(here / 'study', [], '')); assert 'mlflow' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tracking=none: the trial is only in its folder.",
        "tracking=none: the study is only in its folder.",
    ]
    assert not list(tmp_path.iterdir())


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"tracking\.backend=aim: choose mlflow, tensorboard, wandb or none"):
        api.open_tracker(Tracking("aim", None, "s"), tmp_path, outputs=tmp_path)  # type: ignore[arg-type]
