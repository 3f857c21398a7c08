"""The door `python -m stability.send`."""

from pathlib import Path

from tests.support.commandline import run_module
from tests.support.mlflow_runs import add_rows, make_trial, read_runs, store_uri, write_verdict


def test_the_room_of_tracking_is_the_same_command() -> None:
    assert run_module("stability.tracking", "--help").stdout == run_module("stability.send", "--help").stdout


def test_trials_trained_without_tracking_are_sent(tmp_path: Path) -> None:
    folder = make_trial(tmp_path / "study" / "trial")
    add_rows(folder, 0, 10)
    write_verdict(folder)
    done = run_module("stability.send", tmp_path / "study", "--uri", store_uri(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder}: MLflow: run `")
    (run,) = read_runs(store_uri(tmp_path))
    assert (run.name, run.status, run.steps("loss")) == ("trial", "FINISHED", [*range(10)])


def test_what_cannot_be_sent_is_named_and_fails(tmp_path: Path) -> None:
    make_trial(tmp_path / "untracked")
    add_rows(tmp_path / "untracked", 0, 3)
    (tmp_path / "empty").mkdir()
    done = run_module("stability.send", tmp_path / "empty", tmp_path / "absent", tmp_path / "untracked")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'empty'} is not the folder of a trial or study, and holds none.",
        f"error: {tmp_path / 'absent'} is not the folder of a trial or study, and holds none.",
        f"error: {tmp_path / 'untracked'} was never sent to MLflow. Give a store with --uri.",
    ]
    done = run_module("stability.send", tmp_path, "--uri", "foo://")
    assert done.returncode == 1
    assert done.stderr.startswith("error: tracking.uri=foo:// is not a store.")
