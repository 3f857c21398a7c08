"""Stores that are fresh, wrong, damaged, silent or gone: no training waits for one or ends because of one."""

import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Thread

import pytest

from stability import send
from stability.core.errors import StabilityError
from stability.tracking import sender
from stability.tracking.api import close_study
from stability.tracking.store import import_mlflow
from tests.support.commandline import run_module
from tests.support.mlflow_runs import (
    PARENT,
    add_rows,
    be_impatient,
    make_trial,
    open_study,
    open_tracker,
    read_runs,
    store_uri,
    study_and_trials,
    write_verdict,
)


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
def test_a_uri_that_is_not_a_store(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StabilityError, match=r"tracking\.uri=.* is not a store\. Give http://HOST:PORT"):
        open_tracker(make_trial(tmp_path / "trial"), tmp_path, uri)


@pytest.mark.parametrize("name", ["a%20b", "%(x)s", "100%", "a#b?c=d&e"])
def test_a_percent_sign_in_a_path_is_no_code(outputs: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    inside = outputs / name
    folder = make_trial(inside / name / "trial")
    shutil.copy(outputs / "mlflow.db", inside / "mlflow.db")
    tracker = open_tracker(folder, inside)
    add_rows(folder, 0, 10)
    tracker.finish()
    assert caplog.text == ""
    assert {*outputs.rglob("*.db")} == {outputs / "mlflow.db", inside / "mlflow.db"}
    shown = re.search("sqlite:///[^` ']*", tracker.where)
    assert shown
    (run,) = read_runs(shown[0])
    assert run.steps("loss") == [*range(10)]
    assert (inside / "mlflow-artifacts" / run.id / "artifacts" / "config.yaml").exists()


def _one_of_four(barrier: Barrier, folder: Path, outputs: Path) -> None:
    be_impatient()
    import_mlflow()
    barrier.wait(120)  # so that all open the store at the same moment
    open_study(folder.parent, outputs)
    tracker = open_tracker(folder, outputs)
    for first in range(0, 100, 20):
        add_rows(folder, first, first + 20)
        tracker.update()
    write_verdict(folder)
    tracker.finish()
    sys.exit(json.loads((folder / "tracking.json").read_text())["finished"] is not True)


@pytest.mark.slow
def test_four_processes_of_two_studies_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    folders = [make_trial(tmp_path / study / trial) for study in ("one", "two") for trial in ("a", "b")]
    processes = [context.Process(target=_one_of_four, args=(barrier, folder, tmp_path)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    runs = read_runs(store_uri(tmp_path))
    studies = {run.id: run.name for run in runs if PARENT not in run.tags}
    assert sorted(studies.values()) == ["one", "two"]
    trials = [run for run in runs if run.id not in studies]
    assert sorted((studies[run.tags[PARENT]], run.name) for run in trials) == [
        *(("one", "a"), ("one", "b"), ("two", "a"), ("two", "b"))
    ]
    assert all(run.steps("lr") == list(range(100)) and run.status == "FINISHED" for run in trials)


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_of_a_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trial = make_trial(tmp_path / "trial")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        tracker = open_tracker(trial, tmp_path)
        add_rows(trial, 0, 10)
        write_verdict(trial)
        tracker.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Cannot send to MLflow" in caplog.text
    assert not (tmp_path / "mlflow.db").exists()
    assert send.main([str(trial)]) == 0
    assert read_runs(store_uri(tmp_path))[0].steps("loss") == list(range(10))


def _open_fresh(outputs: Path) -> None:
    import_mlflow()
    open_study(outputs / "study", outputs)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_kill_leaves_no_half_of_a_store(tmp_path: Path, share: float) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_open_fresh, args=(tmp_path,))
    process.start()
    while process.is_alive() and not (tmp_path / "mlflow.db.lock").exists():
        time.sleep(0.001)
    time.sleep(3 * share)
    process.kill()
    process.join()
    open_tracker(make_trial(tmp_path / "study" / "trial"), tmp_path).finish()
    assert "FINISHED" in {run.status for run in read_runs(store_uri(tmp_path))}


def _overwrite(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)


def _make_a_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


def _lose_a_part(database: Path) -> None:
    """As a kill left it when MLflow made it in its place."""
    with closing(sqlite3.connect(database)) as store, store:
        store.execute("DELETE FROM alembic_version")
        store.execute("DROP TABLE webhooks")


@pytest.mark.parametrize("spoil", [_overwrite, _lose_a_part])
def test_a_damaged_store_is_named_with_the_mend(
    outputs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(outputs)
    spoil(outputs / "mlflow.db")
    open_tracker(make_trial(outputs / "trial"), outputs).finish()
    (message,) = caplog.messages
    assert "mlflow.db is damaged or incomplete (" in message
    assert "Move it away" in message
    assert "`python -m stability.send . --uri sqlite:///mlflow.db`" in message


@pytest.mark.slow
def test_a_new_store_gets_all_that_folders_hold(outputs: Path) -> None:
    folder = make_trial(outputs / "study" / "trial")
    open_study(folder.parent, outputs)
    add_rows(folder, 0, 10)
    write_verdict(folder)
    open_tracker(folder, outputs).finish()
    close_study(folder.parent, [], "")
    (outputs / "mlflow.db").unlink()
    for _ in range(2):
        assert run_module("stability.send", outputs, "--uri", store_uri(outputs)).returncode == 0
        study, (trial,) = study_and_trials(store_uri(outputs))
        assert (study.status, trial.status, trial.steps("loss")) == ("FINISHED", "FINISHED", list(range(10)))


@pytest.mark.parametrize("spoil", [_overwrite, _make_a_folder])
@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_spoilt_store_does_not_stop_the_training(
    outputs: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], when: str
) -> None:
    folder = make_trial(outputs / "trial")
    uri = store_uri(outputs).replace("mlflow.db", f"{spoil.__name__}{when}.db")  # MLflow keeps stores open
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
    write_verdict(folder)
    tracker.finish()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert f"Cannot send to MLflow at {uri}: " in warned[0].getMessage()
    assert "stability.send" in tracker.where
    assert send.main([str(folder), "--uri", store_uri(outputs)]) == 0
    assert read_runs(store_uri(outputs))[0].steps("loss") == list(range(80))


def test_a_server_that_does_not_answer_delays_training_once(
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
    assert all("stability.send" in tracker.where for tracker in trackers)


def _drip(listening: socket.socket) -> None:
    """Answer each request by a byte at a time, and never completely."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # it was closed
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n")
        with suppress(OSError), connection:
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)


def test_a_server_that_drips_holds_up_training_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "_LIMIT_AT_END", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=_drip, args=(listening,), daemon=True).start()
        tracker = open_tracker(
            make_trial(tmp_path / "trial"), tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}"
        )
        tracker.update()
        tracker.finish()
        listening.shutdown(socket.SHUT_RDWR)
    (message,) = caplog.messages
    assert "no complete answer within 1 seconds. The training goes on." in message
    assert "stability.send" in tracker.where


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


@pytest.mark.slow
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
        assert read_runs(uri)[0].steps("loss") == list(range(40))
        assert tracker.where.startswith(f"MLflow: {uri}/#/experiments/")
        assert not caplog.records
    begun = time.monotonic()
    second = open_tracker(late, outputs, uri)
    for first in (40, 60, 80):
        for folder, each in ((early, tracker), (late, second)):
            add_rows(folder, first, first + 20)
            each.update()
    for folder, each in ((early, tracker), (late, second)):
        write_verdict(folder)
        each.finish()
        assert f"-m stability.send {folder}" in each.where
    assert time.monotonic() - begun < 15
    assert len(caplog.records) == 1
    assert "The training goes on." in caplog.text

    done = run_module("stability.send", outputs / "study", "--uri", uri)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: Cannot send {folder} to {uri}: [Errno 111] Connection refused." for folder in (early, late)
    ]
    with server(outputs, port):
        done = run_module("stability.send", outputs / "study", "--uri", uri)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split(": MLflow: ")[0] for line in done.stdout.splitlines()] == [str(early), str(late)]
        for _ in range(2):
            runs = {run.name.split()[0]: run for run in read_runs(uri)}
            assert runs["early"].steps("loss") == list(range(100))
            assert runs["late"].steps("loss") == list(range(40, 100))
            for run in runs.values():
                assert (run.status, run.tags["outcome"]) == ("FINISHED", "exploded")
                assert run.artifacts == {"config.yaml", "verdict.json", "run.png"}
                assert run.params["epsilon"] == "1e-08"
            assert send.main([str(outputs / "study"), "--uri", uri]) == 0  # again, which changes nothing
