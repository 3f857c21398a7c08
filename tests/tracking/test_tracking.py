"""Trials reach MLflow once and whole, through kills and outages; no training waits or dies for it."""

import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import numpy as np
import pytest
from numpy.typing import NDArray

from stability.config.schema import Tracking
from stability.core.checkout import ROOT
from stability.core.errors import StabilityError
from stability.diagnosis import table as signals
from stability.tracking import api as tracking
from tests.support.commandline import CommandLine

_PARENT = "mlflow.parentRunId"
_NAMES = ("loss", "lr", "epsilon_dominance")


@dataclass
class Seen:
    """What MLflow holds of a run; `metrics` gives the (step, value) of a name in the order of the steps."""

    id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    artifacts: set[str]

    def steps(self, name: str) -> list[int]:
        return [step for step, _ in self.metrics.get(name, [])]


def look(uri: str, experiment: str = "study") -> list[Seen]:
    """The runs of an experiment, the newest first."""
    from mlflow import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        seen = []
        for run in client.search_runs([found.experiment_id]):
            history = {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            }
            artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
            info = run.info
            seen.append(
                Seen(
                    info.run_id,
                    info.run_name,
                    info.status,
                    run.data.params,
                    run.data.tags,
                    history,
                    artifacts,
                )
            )
        return seen


def values(rows: int) -> NDArray[np.float32]:
    x = np.arange(rows)
    return np.stack([300 / (1 + x), np.full(rows, 0.005), x / 7], axis=1).astype(np.float32)


def add_rows(folder: Path, first: int, stop: int) -> None:
    signals.append_rows(folder / "signals.csv", _NAMES, range(first, stop), values(stop)[first:])


def add_validation(folder: Path, step: int, per: float) -> None:
    signals.append_rows(folder / "validation.csv", ("per", "loss"), [step], np.array([[per, 9]], np.float32))


def end(folder: Path) -> None:
    verdict = {
        "outcome": "exploded",
        "cause": "learning_rate",
        "onset_step": 0,
        "detected_step": None,
        "advice": "Lower it.",
    }
    (folder / "verdict.json").write_text(json.dumps(verdict))
    (folder / "run.png").write_bytes(b"\x89PNG")


def command_line(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stability.tracking.api", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PAUSE", 0.0)
    monkeypatch.setattr(tracking, "_LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(tracking, "_failures", {})
    monkeypatch.setattr(tracking, "_told", set())


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised store: making one takes two seconds."""
    folder = tmp_path_factory.mktemp("store")
    make_trial(folder / "trial")
    tracking.open_tracker(Tracking("mlflow", None, "any"), folder / "trial", outputs=folder).abort("KILLED")
    return folder / "mlflow.db"


@pytest.fixture
def outputs(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def make_trial(folder: Path, steps: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"optimizer:\n  epsilon: 1.0e-08\n  clip_norm: null\n  fused: true\nsteps: {steps}\nstudy: study\n"
        "data:\n  sessions: [a, b]\n  path: /data\ntracking: {backend: mlflow}\noutputs: outputs\n"
    )
    return folder


def open_tracker(folder: Path, outputs: Path, uri: str | None = None) -> tracking.Tracker:
    return tracking.open_tracker(Tracking("mlflow", uri, "study"), folder, outputs=outputs)


def store(outputs: Path) -> str:
    return f"sqlite:///{outputs / 'mlflow.db'}"


def test_a_trial_from_start_to_end(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_trial(outputs / "study" / "epsilon=1e-8,seed=0")
    settings = Tracking("mlflow", None, "study")
    tracker = tracking.open_tracker(settings, folder, outputs=outputs, tags={"factor": "epsilon"})
    for first in range(0, 100, 25):
        add_rows(folder, first, first + 25)
        tracker.update()
        assert look(store(outputs))[0].steps("loss") == list(range(first + 25))
    assert look(store(outputs))[0].status == "RUNNING"
    add_validation(folder, 99, 0.25)
    end(folder)
    tracker.finish()

    (run,) = look(store(outputs))
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
    assert _PARENT not in run.tags  # no sweep
    assert run.tags["outcome"] == "exploded"
    assert run.tags["cause"] == "learning_rate"
    assert run.tags["onset_step"] == "0"
    assert "detected_step" not in run.tags
    assert run.tags["mlflow.note.content"] == "Lower it."
    assert run.tags["factor"] == "epsilon"
    assert run.metrics["lr"] == [(step, 0.005) for step in range(100)]
    assert [np.float32(value) for _, value in run.metrics["loss"]] == list(values(100)[:, 0])
    assert run.metrics["validation/per"] == [(99, 0.25)]
    assert run.artifacts == {"config.yaml", "verdict.json", "run.png"}
    assert (outputs / "mlflow-artifacts" / run.id).is_dir()
    assert f"mlflow ui --backend-store-uri {store(outputs)}" in tracker.where
    assert run.id in tracker.where
    assert capfd.readouterr() == ("", "")


def test_nothing_is_sent_twice(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 0, 60)
    tracker.update()
    tracker.update()
    tracker.abort("KILLED")
    assert look(store(outputs))[0].status == "KILLED"
    signals.truncate(folder / "signals.csv", 30, _NAMES)  # the checkpoint was older
    tracker = open_tracker(folder, outputs)
    assert look(store(outputs))[0].status == "RUNNING"
    add_rows(folder, 30, 45)
    tracker.update()
    add_rows(folder, 45, 100)
    end(folder)
    tracker.finish()
    for _ in range(2):
        assert tracking.main([str(folder)]) == 0
        (run,) = look(store(outputs))
        assert run.steps("loss") == list(range(100))
        assert run.status == "FINISHED"


def _die_after_sending(folder: Path, outputs: Path) -> None:
    """Train to step 60, and be killed when the last rows are in the store but not yet in tracking.json."""
    import mlflow

    tracking._PAUSE = tracking._LONGEST_PAUSE = 0.0
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 0, 40)
    tracker.update()
    add_rows(folder, 40, 60)
    log_batch = mlflow.MlflowClient.log_batch

    def log_and_die(*args: object, **kwargs: object) -> None:
        log_batch(*args, **kwargs)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    mlflow.MlflowClient.log_batch = log_and_die  # type: ignore[method-assign]
    tracker.update()


def test_killed_between_sending_and_noting_it(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    process = multiprocessing.get_context("spawn").Process(target=_die_after_sending, args=(folder, outputs))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((folder / "tracking.json").read_text())["marks"]["signals.csv"]["sent"] == 39
    assert look(store(outputs))[0].steps("loss") == list(range(60))
    signals.truncate(folder / "signals.csv", 30, _NAMES)
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 30, 50)
    time.sleep(0.01)  # another modification time
    tracker.update()
    add_rows(folder, 50, 100)
    tracker.finish()
    (run,) = look(store(outputs))
    assert run.steps("loss") == list(range(100))


def _one_of_four(barrier: Barrier, folder: Path, outputs: Path) -> None:
    tracking._PAUSE = tracking._LONGEST_PAUSE = 0.0
    tracking._import_mlflow()
    barrier.wait(120)  # so that all come upon the store at once
    tracking.open_study(Tracking("mlflow", None, "study"), folder.parent, outputs=outputs)
    tracker = open_tracker(folder, outputs)
    for first in range(0, 100, 20):
        add_rows(folder, first, first + 20)
        tracker.update()
    end(folder)
    tracker.finish()
    sys.exit(json.loads((folder / "tracking.json").read_text())["finished"] is not True)


def test_four_processes_of_two_studies_on_a_fresh_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    folders = [make_trial(tmp_path / study / trial) for study in ("one", "two") for trial in ("a", "b")]
    processes = [context.Process(target=_one_of_four, args=(barrier, folder, tmp_path)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    runs = look(store(tmp_path))
    studies = {run.id: run.name for run in runs if _PARENT not in run.tags}
    assert sorted(studies.values()) == ["one", "two"]
    trials = [run for run in runs if run.id not in studies]
    assert sorted((studies[run.tags[_PARENT]], run.name) for run in trials) == [
        *(("one", "a"), ("one", "b"), ("two", "a"), ("two", "b"))
    ]
    assert all(run.steps("lr") == list(range(100)) and run.status == "FINISHED" for run in trials)


def open_study(folder: Path, outputs: Path) -> None:
    tracking.open_study(Tracking("mlflow", None, "study"), folder, outputs=outputs)


def family(uri: str) -> tuple[Seen, list[Seen]]:
    """The run of the only study, and those of its trials, which are all others."""
    runs = look(uri)
    (parent,) = (run for run in runs if _PARENT not in run.tags)
    children = [run for run in runs if run.tags.get(_PARENT) == parent.id]
    assert len(children) == len(runs) - 1
    return parent, children


def found_by(link: str, uri: str) -> list[str]:
    """The names of the runs that the table shows which this link leads to, in its order."""
    from mlflow import MlflowClient

    experiment = link.split("/")[2]
    query = {name: values[0] for name, values in parse_qs(link.partition("?")[2]).items()}
    client = MlflowClient(tracking_uri=uri)
    if view := query.get("viewStateShareKey"):
        saved = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{view}"])
        assert saved["name"] == "sweep: trials"
        query = json.loads(saved["state"])
    order = [f"{query['orderByKey']} {'ASC' if query['orderByAsc'] == 'true' else 'DESC'}"]
    return [run.info.run_name or "" for run in client.search_runs([experiment], query["searchFilter"], order_by=order)]


def test_a_sweep_from_start_to_end(cli: CommandLine, empty_store: Path) -> None:
    outputs = cli.folder / "outputs"
    folder = outputs / "sweep"
    outputs.mkdir()
    shutil.copy(empty_store, outputs / "mlflow.db")
    uri = store(outputs)
    program = "from tests.tracking.test_tracking import *; open_study(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", program, folder, outputs], check=True, cwd=ROOT)
    open_study(folder, outputs)  # again, after that process's end
    (parent,) = look(uri)
    assert (parent.name, parent.status, parent.params) == ("sweep", "RUNNING", {})
    settings = ["study=sweep", "tracking=mlflow", "tracking.experiment=study", "optimizer.clip_norm=null"]
    out = cli.run("--multirun", *settings, "schedule.lr_max=0.005,1e6", "diagnosis=eager").out
    assert f"/runs/{parent.id}?" in out
    closed, trials = family(uri)
    assert closed.id == parent.id
    assert {(run.params["epsilon"], run.params["lr"]) for run in trials} == {("0.1", "0.005"), ("0.1", "1000000.0")}
    assert closed.status == "FINISHED"
    assert closed.artifacts == {"report.html", *(path.name for path in (folder / "report").iterdir())}
    outcomes = Counter(run.tags["outcome"] for run in trials)
    assert {f"outcome.{name}": [(0, count)] for name, count in outcomes.items()}.items() <= closed.metrics.items()
    assert sum(count for ((_, count),) in closed.metrics.values()) == 2

    note = closed.tags["mlflow.note.content"]
    answer = " ".join(out[out.index("\n\n") + 2 :].splitlines()[:3])
    assert note.startswith("Trials: [all](#/experiments/")
    assert note.endswith(f"\n\n{answer}")
    by_error = [run.name for run in sorted(trials, key=lambda run: run.metrics["validation/per"][-1][1])]
    links = dict(re.findall(r"\[([^]]+)\]\(([^)]+)\)", note))
    assert sorted(found_by(links.pop("all"), uri)) == sorted(by_error)
    for text, link in links.items():
        count, outcome = text.split()
        assert outcomes.pop(outcome) == int(count)
        assert sorted(found_by(link, uri)) == sorted(r.name for r in trials if r.tags["outcome"] == outcome)
    assert not outcomes


def test_how_a_study_ended(outputs: Path) -> None:
    folder = outputs / "sweep"
    for status, left in (("FINISHED", None), ("KILLED", "config.yaml"), ("FAILED", "error.txt")):
        open_study(folder, outputs)
        assert look(store(outputs))[0].status == "RUNNING"
        if left:
            (folder / "trial").mkdir(exist_ok=True)
            (folder / "trial" / left).touch()
        tracking.close_study(folder, [], f"It is {status}.")
        (run,) = look(store(outputs))
        assert run.status == status
        assert run.tags["mlflow.note.content"].endswith(f".\n\nIt is {status}.")


def test_a_trial_makes_the_parent_that_an_outage_has_left_unmade(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, away = outputs / "sweep", outputs / "away.db"
    away.mkdir()  # no store can be there
    uri = f"sqlite:///{away}"
    tracking.open_study(Tracking("mlflow", uri, "study"), folder, outputs=outputs)
    assert f"stability.tracking.api {folder}" in caplog.text
    away.rmdir()
    shutil.copy(outputs / "mlflow.db", away)
    monkeypatch.setattr(tracking, "_failures", {})
    for name in ("a", "b"):
        open_tracker(make_trial(folder / name), outputs, uri).finish()
    study, trials = family(uri)
    assert (study.name, study.status) == ("sweep", "RUNNING")
    assert sorted(run.name for run in trials) == ["a", "b"]


def test_a_study_is_sent_later(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    folder = outputs / "sweep"
    tracking.open_study(Tracking("mlflow", uri, "study"), folder, outputs=outputs)
    trial = make_trial(folder / "trial")
    tracker = open_tracker(trial, outputs, uri)
    add_rows(trial, 0, 10)
    end(trial)
    tracker.finish()
    (folder / "report.html").write_text("")
    assert f"stability.tracking.api {folder}`" in tracking.close_study(folder, [folder / "report.html"], "The answer.")
    assert tracking.main([str(folder)]) == 1
    assert "was not sent to http" in capsys.readouterr().err
    for _ in range(2):
        assert tracking.main([str(folder), "--uri", store(outputs)]) == 0
        study, (child,) = family(store(outputs))
        assert (child.name, child.steps("loss")) == ("trial", list(range(10)))
        assert (study.status, study.artifacts) == ("FINISHED", {"report.html"})
        assert study.metrics["outcome.exploded"] == [(0, 1)]
        assert study.tags["mlflow.note.content"].endswith(".\n\nThe answer.")


def test_trials_that_were_sent_before_their_study(outputs: Path) -> None:
    trial = make_trial(outputs / "sweep" / "trial")
    open_tracker(trial, outputs).finish()
    open_study(trial.parent, outputs)
    assert tracking.main([str(trial.parent)]) == 0
    study, (child,) = family(store(outputs))
    assert (study.name, child.name) == ("sweep", "trial")


def test_what_is_not_finite_and_what_was_not_measured(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    values = np.ones((4, 3), np.float32)
    values[0] = [np.nan, np.inf, -np.inf]
    rows = signals.Table(_NAMES, np.arange(4), values, ~np.eye(4, 3, k=-1, dtype=bool))
    signals.append_table(folder / "signals.csv", rows)
    tracker.finish()
    (run,) = look(store(outputs))
    assert math.isnan(run.metrics["loss"][0][1])
    assert run.metrics["lr"][0][1] > 1e308
    assert run.metrics["epsilon_dominance"][0][1] < -1e308
    assert [run.steps(name) for name in _NAMES] == [[0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_long_trial_is_thinned_by_its_steps_alone(outputs: Path) -> None:
    steps = 64_001  # strides of 201
    values, measured = np.arange(2 * steps, dtype=np.float32).reshape(-1, 2), np.ones((steps, 2), bool)
    measured[np.arange(steps) % 50 != 49, 1] = False  # measured every 50 steps
    for name, cuts in (
        ("at_once", [0, steps]),
        ("in_pieces", [0, 1, 200, 201, 40_000, 40_100, steps - 1, steps]),
    ):
        folder = make_trial(outputs / name, steps)
        tracker = open_tracker(folder, outputs)
        for first, stop in pairwise(cuts):
            some = slice(first, stop)
            rows = signals.Table(("a", "b"), np.arange(steps)[some], values[some], measured[some])
            signals.append_table(folder / "signals.csv", rows)
            tracker.update()
        tracker.finish()
    in_pieces, at_once = look(store(outputs))
    assert in_pieces.metrics == at_once.metrics
    assert at_once.steps("a") == [*range(0, steps, 201), steps - 1]
    assert at_once.steps("b")[:4] == [49, 249, 449, 649]
    assert len(at_once.steps("b")) == 319


@pytest.mark.parametrize(("trials", "pause"), [(1, 5.0), (8, 40.0), (64, 60.0)])
def test_trials_of_one_process_send_less_often_together_than_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int, pause: float
) -> None:
    now, sendings = 0.0, Counter[tracking.Tracker]()
    monkeypatch.undo()
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: now, time_ns=time.time_ns))
    trackers = [open_tracker(make_trial(tmp_path / f"trial{n}"), tmp_path, "http://localhost:9") for n in range(trials)]

    def send(tracker: tracking.Tracker) -> None:
        nonlocal now
        now += 0.1
        sendings[tracker] += 1

    monkeypatch.setattr(tracking, "_failures", {})
    monkeypatch.setattr(tracking._TrialSender, "_send_rows", send)
    while now < 4000:
        for tracker in trackers:
            tracker.update()
        now += 1
    assert sendings.keys() == {*trackers}
    assert all(count == pytest.approx(4000 / pause, rel=0.25) for count in sendings.values())


def test_a_run_deleted_from_the_store_is_sent_anew(outputs: Path) -> None:
    from mlflow import MlflowClient

    folder = make_trial(outputs / "trial")
    add_rows(folder, 0, 30)
    open_tracker(folder, outputs).abort("FAILED")
    (old,) = look(store(outputs))
    assert old.status == "FAILED"
    MlflowClient(tracking_uri=store(outputs)).delete_run(old.id)
    open_tracker(folder, outputs).finish()
    (new,) = look(store(outputs))
    assert new.id != old.id
    assert new.steps("loss") == list(range(30))


def test_without_tracking_nothing_is_imported_or_written(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stability.config.schema import Tracking\n"
        "from stability.tracking import api as tracking\n"
        "here = Path(sys.argv[1])\n"
        "t = tracking.open_tracker(Tracking('none', None, 's'), here, outputs=here)\n"
        "t.update(); t.finish(); t.abort('FAILED'); print(t.where)\n"
        "tracking.open_study(Tracking('none', None, 's'), here / 'study', outputs=here)\n"
        "print(tracking.close_study(here / 'study', [], '')); assert 'mlflow' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tracking=none: the trial is in its folder alone.",
        "tracking=none: the study is in its folder alone.",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "uri",
    [
        "foo://",
        "foo://host",
        "http://",
        "http://host:port",
        "sqlite://",
        "sqlite:///",
        "outputs/mlflow.db",
        "",
    ],
)
def test_a_uri_that_is_none(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StabilityError, match=r"tracking\.uri=.* is no store: give http://HOST:PORT"):
        open_tracker(make_trial(tmp_path / "trial"), tmp_path, uri)


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"tracking\.backend=wandb: there are mlflow and none"):
        tracking.open_tracker(Tracking("wandb", None, "s"), tmp_path, outputs=tmp_path)  # type: ignore[arg-type]


def test_one_process_a_trial(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    with pytest.raises(StabilityError, match="by another process"):
        open_tracker(folder, outputs)
    done = command_line(folder)
    assert done.returncode == 1
    assert done.stderr == f"{folder} is being trained, or sent, by another process.\n"
    tracker.finish()


@pytest.mark.parametrize("state", ["", "[]", '{"marks": {}}', '{"marks": {"signals.csv": {"step": 1}}}'])
def test_a_damaged_note_of_what_was_sent(outputs: Path, state: str) -> None:
    folder = make_trial(outputs / "trial")
    (folder / "tracking.json").write_text(state)
    with pytest.raises(StabilityError, match=r"tracking\.json is not what this version writes"):
        open_tracker(folder, outputs)


def _overwrite(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)


def _make_a_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


@pytest.mark.parametrize("spoil", [_overwrite, _make_a_folder])
@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_spoilt_store_does_not_stop_the_training(
    outputs: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], when: str
) -> None:
    folder = make_trial(outputs / "trial")
    uri = store(outputs).replace("mlflow.db", f"{spoil.__name__}{when}.db")  # MLflow keeps stores open
    shutil.copy(outputs / "mlflow.db", uri.removeprefix("sqlite:///"))
    if when == "before":
        spoil(Path(uri.removeprefix("sqlite:///")))
    tracker = open_tracker(folder, outputs, uri)
    add_rows(folder, 0, 50)
    tracker.update()
    if when == "amid":
        spoil(Path(uri.removeprefix("sqlite:///")))
    for first in (50, 60, 70):
        add_rows(folder, first, first + 10)
        tracker.update()
    end(folder)
    tracker.finish()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert f"MLflow at {uri} cannot be used: " in told[0].getMessage()
    assert "stability.tracking.api" in tracker.where
    assert tracking.main([str(folder), "--uri", store(outputs)]) == 0
    assert look(store(outputs))[0].steps("loss") == list(range(80))


def test_a_silent_server_is_not_waited_for_at_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        trackers = [open_tracker(make_trial(tmp_path / f"trial{n}"), tmp_path, uri) for n in range(4)]
        begun = time.monotonic()
        for tracker in trackers:
            tracker.update()
            tracker.finish()
        assert time.monotonic() - begun < 0.5
    assert len(caplog.records) == 1
    assert all("stability.tracking.api" in tracker.where for tracker in trackers)


def test_command_line_on_what_is_no_trial(tmp_path: Path) -> None:
    make_trial(tmp_path / "untracked")
    add_rows(tmp_path / "untracked", 0, 3)
    (tmp_path / "empty").mkdir()
    done = command_line(tmp_path / "empty", tmp_path / "absent", tmp_path / "untracked")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'empty'} neither is nor holds the folder of a trial.",
        f"{tmp_path / 'absent'} neither is nor holds the folder of a trial.",
        f"{tmp_path / 'untracked'} was trained with tracking=none: name a store with --uri.",
    ]
    done = command_line(tmp_path, "--uri", "foo://")
    assert done.returncode == 1
    assert done.stderr.startswith("tracking.uri=foo:// is no store")


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A real MLflow server; at the end it is killed."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_dies_and_comes_back(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(outputs / "mlflow.db", outputs / "server.db")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    early, late = make_trial(outputs / "study" / "early"), make_trial(outputs / "study" / "late")
    with server(outputs, port):
        tracker = open_tracker(early, outputs, f"{uri}/")
        add_rows(early, 0, 40)
        tracker.update()
        assert look(uri)[0].steps("loss") == list(range(40))
        assert tracker.where.startswith(f"MLflow: {uri}/#/experiments/")
        assert not caplog.records
    begun = time.monotonic()
    second = open_tracker(late, outputs, uri)
    for first in (40, 60, 80):
        for folder, its in ((early, tracker), (late, second)):
            add_rows(folder, first, first + 20)
            its.update()
    for folder, its in ((early, tracker), (late, second)):
        end(folder)
        its.finish()
        assert f"-m stability.tracking.api {folder}" in its.where
    assert time.monotonic() - begun < 15
    assert len(caplog.records) == 1
    assert "The training goes on." in caplog.text

    done = command_line(outputs / "study")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{folder} was not sent to {uri}: [Errno 111] Connection refused." for folder in (early, late)
    ]
    with server(outputs, port):
        done = command_line(outputs / "study")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split(": MLflow: ")[0] for line in done.stdout.splitlines()] == [str(early), str(late)]
        for _ in range(2):
            runs = {run.name: run for run in look(uri)}
            assert runs["early"].steps("loss") == list(range(100))
            assert runs["late"].steps("loss") == list(range(40, 100))
            for run in runs.values():
                assert (run.status, run.tags["outcome"]) == ("FINISHED", "exploded")
                assert run.artifacts == {"config.yaml", "verdict.json", "run.png"}
                assert run.params["epsilon"] == "1e-08"
            assert tracking.main([str(outputs / "study")]) == 0  # again, which changes nothing
