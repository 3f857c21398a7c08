"""Folders that somebody else has made: no file of the user, and no password, leaves the machine with them."""

import shutil
import socket
from pathlib import Path

import pytest

from stability import send
from stability.tracking.state import State, write_state
from tests.support.mlflow_runs import add_rows, make_trial, read_runs, store_uri, write_verdict


@pytest.mark.parametrize("kind", ["path", "link to a file", "link to a folder", "folder"])
def test_only_files_inside_the_folder_are_sent(outputs: Path, kind: str) -> None:
    secret = outputs / "private" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("secret")
    study = outputs / "foreign"
    study.mkdir()
    name = {"path": "../private/secret.txt", "link to a folder": "linked/secret.txt"}.get(kind, "report.html")
    write_state(study, State(store_uri(outputs), "study", {}, attachments=[name]))
    if kind == "link to a file":
        (study / "report.html").symlink_to(secret)
    elif kind == "link to a folder":
        (study / "linked").symlink_to(secret.parent)
    elif kind == "folder":
        (study / "report.html").mkdir()
        (study / "report.html" / "secret.txt").symlink_to(secret)
    assert send.main([str(study)]) == 1
    assert "secret" not in "".join(path.name for path in outputs.glob("mlflow-artifacts/**/*"))


@pytest.mark.parametrize("name", ["run.png", "verdict.json", "config.yaml", "signals.csv", "validation.csv"])
def test_a_link_in_a_trial_is_not_followed(outputs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_trial(outputs / "study" / "trial")
    add_rows(folder, 0, 10)
    write_verdict(folder)
    shutil.copy(folder / "config.yaml", outputs / "elsewhere")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outputs / "elsewhere")
    assert send.main([str(folder), "--uri", store_uri(outputs)]) == 1
    assert f"{name} is the file {outputs / 'elsewhere'}, which is outside the folder" in capsys.readouterr().err


def test_a_store_that_a_folder_names_is_asked_for(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_trial(outputs / "study" / "trial")
    with socket.create_server(("127.0.0.1", 0)) as host:
        uri = f"http://127.0.0.1:{host.getsockname()[1]}"
        for store in (uri, f"sqlite:///{outputs / 'foreign' / 'mlflow.db'}"):
            write_state(folder, State(store, "study", {}))
            assert send.main([str(folder.parent)]) == 1
            assert f"If the store is yours, or for another one: --uri {store}" in capsys.readouterr().err
            assert not (outputs / "foreign").exists()
        host.settimeout(0)
        with pytest.raises(BlockingIOError):
            host.accept()
    assert send.main([str(folder.parent), "--uri", store_uri(outputs)]) == 0
    assert send.main([str(folder.parent)]) == 0  # it was asked for before


def test_a_password_of_an_earlier_version_is_not_sent(outputs: Path) -> None:
    folder = make_trial(outputs / "study" / "trial")
    with (folder / "config.yaml").open("a") as file:
        file.write("uri: http://me:secret@host\n")
    write_state(folder, State("http://me:secret@host", "study", {}))
    assert send.main([str(folder), "--uri", store_uri(outputs)]) == 0
    (run,) = read_runs(store_uri(outputs))
    (sent,) = (outputs / "mlflow-artifacts" / run.id).rglob("config.yaml")
    assert sent.read_text() == (folder / "config.yaml").read_text().replace("me:secret@", "")
    assert "secret" not in (folder / "tracking.json").read_text()


@pytest.mark.parametrize("place", ["trial", "."])
def test_no_file_outside_is_emptied_as_a_lock(outputs: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    trial = make_trial(outputs / "study" / "trial")
    outside = outputs / "outside"
    outside.write_text("precious")
    write_state(trial.parent, State(store_uri(outputs), "study", {}))
    write_state(trial, State(store_uri(outputs), "study", {}))
    (trial.parent / place / "tracking.json.lock").symlink_to(outside)
    assert send.main([str(trial.parent)]) == 1
    assert f"tracking.json.lock is the file {outside}, which is outside the folder" in capsys.readouterr().err
    assert outside.read_text() == "precious"
