"""A server that asks for a name and a password."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine
from tests.support.mlflow_runs import make_trial, open_tracker


@contextmanager
def _server(logins: set[str | None]) -> Iterator[str]:
    """A server that refuses everybody and keeps how they logged in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.add(self.headers["Authorization"])
            self.send_error(403)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _secrets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_the_environment_has_the_password_and_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    logins: set[str | None] = set()
    folder = make_trial(tmp_path / "trial")
    with _server(logins) as host:
        for _ in range(2):  # the second one continues
            tracker = open_tracker(folder, tmp_path, f"http://{host}")
            tracker.finish()
    assert logins == {f"Basic {base64.b64encode(b'me:secret').decode()}"}
    assert f"--uri http://{host}" in tracker.where
    assert "secret" not in caplog.text + tracker.where
    assert not _secrets(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tracking.uri=http://me:secret@host"],
        ["++tracking.uri='http://me:secret@host'"],
        ["tracking.uri=http://me:sec/secret@host"],
        ["tracking.uri=http://secret@host", "--cfg", "job"],
        ["tracking.uri=http://me:secret@a,http://b", "--multirun"],
        ["tracking.url=http://me:secret@host"],
        ["tracking.uri=[http://me:secret@host"],
        ["hydra.sweeper.storage=postgresql://me:secret@host/db", "--multirun", "experiment=search"],
        ["tracking.uri=${oc.env:MY_STORE}"],
        ["tracking.uri=${oc.env:MY_STORE}", "--multirun", "seed=0,1"],
    ],
)
def test_a_password_in_a_setting_is_refused_before_anything_is_written(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_STORE", "http://me:secret@host")
    message = cli.refuse("tracking=mlflow", *arguments)
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "secret" not in message + "".join(capfd.readouterr())
    assert not _secrets(cli.folder)
    assert not (cli.folder / "outputs").exists()
