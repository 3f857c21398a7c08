"""Ctrl-C and SIGTERM at every phase of a command end it with the documented status, and nothing is lost."""

import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine, Forked, ended, rows, wait_for
from tests.support.sweeps import mlflow_runs

STOPPED = "Stopped. The same command goes on from there.\n"
ENDLESS = ("steps=1000000", "diagnosis=default", "checkpoint_every=1000000", "validate_every=1000000")


def found(cli: CommandLine, pattern: str) -> Callable[[], bool]:
    return lambda: any(cli.folder.glob(pattern))


def terminate(process: "subprocess.Popen[str] | Forked", when: Callable[[], bool]) -> str:
    """Send SIGTERM when the time has come, check the exit status, and return the message."""
    wait_for(when, process)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    return ended(process, 75).err


def test_while_packages_are_imported(cli: CommandLine) -> None:
    process = cli.start()

    def handles_it() -> bool:
        status = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)

    assert terminate(process, handles_it) == STOPPED
    assert not (cli.folder / "outputs").exists()


def test_while_data_are_made(cli: CommandLine) -> None:
    process = cli.fork("data.path=sets", "data.synthetic.train_utterances=1000")
    assert terminate(process, found(cli, "sets/*.tmp/*")) == STOPPED
    assert not [*cli.folder.glob("sets/synthetic-*/*")]


@pytest.fixture
def mute_server() -> Iterator[socket.socket]:
    """It accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_while_a_store_does_not_answer(cli: CommandLine, mute_server: socket.socket) -> None:
    uri = f"http://127.0.0.1:{mute_server.getsockname()[1]}"
    process = cli.fork("tracking=mlflow", f"tracking.uri={uri}", *ENDLESS)
    with mute_server.accept()[0]:
        assert terminate(process, lambda: True) == STOPPED
    assert not rows(cli.trial() / "signals.csv"), "it does not train first"


def test_while_the_kernels_are_compiled(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = cli.folder / "compiler"
    compiler.write_text("#!/bin/sh\ntouch compiling\nsleep 1000\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cli.folder / "cache"))
    assert terminate(cli.fork(), found(cli, "compiling")) == STOPPED
    assert not found(cli, "cache/stability/*")()


def test_in_training(cli: CommandLine) -> None:
    message = terminate(cli.fork(*ENDLESS), lambda: any(rows(t) for t in cli.folder.glob("outputs/*/*/signals.csv")))
    trained = len(rows(cli.trial() / "signals.csv"))
    assert message == f"Stopped before step {trained}. The same command goes on from there.\n"


@pytest.mark.slow
def test_in_a_validation(cli: CommandLine) -> None:
    process = cli.fork("data.synthetic.val_utterances=300", "validate_every=1", "steps=200")
    signals = "outputs/*/*/signals.csv"
    assert terminate(process, found(cli, signals)).startswith("Stopped before step ")
    assert len(rows(cli.trial() / "validation.csv")) == len(rows(cli.trial() / "signals.csv"))


def test_while_a_checkpoint_is_written(cli: CommandLine) -> None:
    process = cli.fork("model.units=64", "steps=2000", "checkpoint_every=1")
    message = terminate(process, found(cli, "outputs/*/*/checkpoints/last.pt.part"))
    assert (
        message
        == f"Stopped before step {len(rows(cli.trial() / 'signals.csv'))}. The same command goes on from there.\n"
    )
    assert not found(cli, "outputs/*/*/checkpoints/*.part")()


@pytest.mark.parametrize("launcher", ["basic", pytest.param("stacked", marks=pytest.mark.slow)])
def test_after_the_last_step_of_a_trial(cli: CommandLine, launcher: str) -> None:
    """The trial ends, and no other is trained."""
    one_by_one = ["hydra.launcher.size=1"] if launcher == "stacked" else []
    sweep = ("--multirun", f"hydra/launcher={launcher}", *one_by_one, "seed=0,1", "sweep.claims=null")
    assert terminate(cli.fork(*sweep), found(cli, "outputs/single/*/verdict.json")) == STOPPED
    assert "undecided" in cli.run("seed=0").out
    assert cli.trial().name.count("-seed0-") == 1


@pytest.mark.slow
def test_while_the_report_is_written(cli: CommandLine) -> None:
    sweep = ("--multirun", "hydra/launcher=basic", "seed=0,1", "sweep.claims=null")
    pictures = cli.folder / "outputs/single"
    assert terminate(cli.fork(*sweep), lambda: len([*pictures.glob("*/run.png")]) == 2) == STOPPED
    assert "report    outputs/single/report.html" in cli.run(*sweep).out


@pytest.mark.slow
def test_the_run_of_a_study_that_was_killed_after_its_last_trial_is_closed_by_the_next_call(cli: CommandLine) -> None:
    sweep = ("--multirun", "hydra/launcher=basic", "seed=0,1", "sweep.claims=null", "tracking=mlflow")
    process = cli.fork(*sweep)
    sent = '"finished": true'
    tables = cli.folder / "outputs/single"
    wait_for(lambda: sum(sent in path.read_text() for path in tables.glob("*/tracking.json")) == 2, process)
    process.kill()
    process.communicate()
    assert mlflow_runs(cli)["single"] == "RUNNING"
    assert "report    outputs/single/report.html" in cli.run(*sweep).out
    assert [*mlflow_runs(cli).values()] == 3 * ["FINISHED"]


@pytest.mark.slow
def test_the_run_of_a_study_that_was_stopped_before_its_first_step_is_killed(cli: CommandLine) -> None:
    sweep = ("--multirun", "hydra/launcher=basic", "seed=0,1", "sweep.claims=null", "tracking=mlflow")
    process = cli.fork(*sweep, *ENDLESS)
    wait_for(found(cli, "outputs/single/*/lock"), process)
    process.send_signal(signal.SIGINT)
    assert ended(process, 130).err == STOPPED
    assert {*mlflow_runs(cli).values()} == {"KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_at_random_moments(cli: CommandLine, number: signal.Signals, status: int) -> None:
    """Most of them come while Hydra composes the trials, where libraries fail if they are ended half-way."""
    draws = random.Random(seed := random.randrange(1000))
    print("seed", seed)  # shown if the test fails
    for i in range(40):
        process = cli.fork("--multirun", "hydra/launcher=basic", "seed=0,1,2,3", *ENDLESS, f"study=study{i}")
        process.process.join(draws.uniform(0.1, 2))
        process.send_signal(number)
        assert ended(process, status).err.startswith("Stopped")
