"""Searches by Optuna on the command line: `experiment=search`."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.postgres import postgres
from tests.support.sweeps import STACKED, trials

SEARCH = ("--multirun", "experiment=search", "steps=30", "checkpoint_every=5", "batch.size=8")
STACKED_SEARCH = (*STACKED, "experiment=search", "hydra.sweeper.n_trials=4")


def search_states(cli: CommandLine) -> list[tuple[str, dict[str, float], float | None]]:
    storage = f"sqlite:///{cli.folder}/outputs/search/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return [(trial.state.name, trial.params, trial.value) for trial in study.trials]


@pytest.mark.slow
def test_a_search_that_was_killed_continues_up_to_its_total(cli: CommandLine) -> None:
    """The three are chosen at once, and trained one after another when it is killed in the second."""
    process = cli.start(*SEARCH, "hydra.sweeper.n_trials=3", "hydra.launcher.size=1")
    wait_for(lambda: len([*cli.folder.glob("outputs/search/*/checkpoints/last.pt")]) == 2, process)
    process.kill()
    process.communicate()
    cli.run(*SEARCH, "hydra.sweeper.n_trials=3")
    states = search_states(cli)
    assert [state for state, _, _ in states].count("COMPLETE") == 3
    assert [state for state, _, _ in states if state != "COMPLETE"] in ([], 3 * ["FAIL"])
    for state, params, _ in states:
        assert state == "COMPLETE" or params in [p for s, p, _ in states if s == "COMPLETE"], "what was half done is"
    assert len(trials(cli, "search")) == 3
    assert all(value == 1.0 for _, _, value in states if value is not None), "none of them is stable"
    out = cli.run(*SEARCH, "hydra.sweeper.n_trials=3").out
    assert "The search already has 3 trials" in out
    assert len(search_states(cli)) == len(states)
    out = cli.run(*SEARCH, "hydra.sweeper.n_trials=5", "sweep.dry_run=true").out
    assert "The sweeper chooses 5 trials while it runs: 3 done, 2 to do" in out
    assert len(search_states(cli)) == len(states)


@pytest.mark.slow
def test_crashed_trials_do_not_count_as_done(cli: CommandLine) -> None:
    end = cli.run(*SEARCH, "hydra.sweeper.n_trials=2", "init_from=nowhere.pt", status=1)
    assert end.err.count("There is no checkpoint at nowhere.pt.") == 2
    assert [state for state, _, _ in search_states(cli)] == ["FAIL", "FAIL"]


@pytest.mark.slow
def test_a_search_trains_its_batches_in_stacks(cli: CommandLine) -> None:
    end = cli.run(*STACKED_SEARCH, "batch.size=8")
    assert "[4/4]" in end.out
    assert len(trials(cli, "search")) == 4
    assert "None of 4 trials is stable (" in end.out
    assert "The lowest PER is " in end.out
    assert "est of 4 trials" not in end.out, "there is none"
    storage = f"sqlite:///{cli.folder}/outputs/search/optuna.db"
    assert len(optuna.get_all_study_names(storage)) == 1
    cli.run(*STACKED_SEARCH, "batch.size=8", "aug.white_noise_std=0.5")  # is not searched with this
    assert len(optuna.get_all_study_names(storage)) == 2


@pytest.mark.slow
def test_invalid_trials_of_a_search_are_listed_at_the_end(cli: CommandLine) -> None:
    end = cli.run(*STACKED_SEARCH, "optimizer.beta1=choice(0.9,1.0)", status=1)
    done = len(trials(cli, "search"))
    assert 0 < done < 4
    _, *lines = end.err.splitlines()
    assert end.err.startswith("error: 1 configuration is" if done == 3 else f"error: {4 - done} configurations are")
    assert lines[0] == "  optimizer.beta1=1.0: it has to be at least 0 and below 1.", "the reason once"
    assert all("optimizer.beta1=1.0" in line for line in lines[1:])
    assert len(lines[1:]) == 4 - done, "and each trial"
    out = cli.run(*STACKED_SEARCH[:-1], f"hydra.sweeper.n_trials={done}", "optimizer.beta1=choice(0.9,1.0)").out
    assert f"The search already has {done} trials" in out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_continues_after_a_folder_that_cannot_be_written(cli: CommandLine, workers: int) -> None:
    search = (*STACKED_SEARCH, "batch.size=8", "hydra.sweeper.n_jobs=2", f"hydra.launcher.workers={workers}")
    cli.run(*search)
    first = min(trials(cli, "search").values(), key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)
    shutil.rmtree(cli.folder / "outputs")
    first.parent.mkdir(parents=True)
    first.touch()
    err = cli.run(*search, status=1).err
    assert err.count("Cannot write in ") == 1
    assert len(trials(cli, "search")) == 3


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database that several processes may search with at once."""
    if request.param == "sqlite":  # under this name it is used as any database
        yield f"sqlite+pysqlite:///{tmp_path}/shared.db"
    else:
        monkeypatch.setenv("PGUSER", "postgres")
        with postgres(tmp_path / "postgres") as address:
            yield address


def shared_study(database: str) -> optuna.Study:
    storage = optuna.storages.RDBStorage(database, {"poolclass": sqlalchemy.NullPool})  # leaves no connection open
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.slow
def test_several_processes_search_together_up_to_the_total(cli: CommandLine, database: str) -> None:
    search = (*SEARCH, f"hydra.sweeper.storage={database}", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=2")
    processes = [cli.fork(*search) for _ in range(3)]
    for process in processes:
        assert not ended(process, 0).err
    states = shared_study(database).trials
    assert [trial.state.name for trial in states] == 8 * ["COMPLETE"]
    assert len({str(trial.params) for trial in states}) == 8
    assert len(trials(cli, "search")) == 8
    assert "The search already has 8 trials" in cli.run(*search).out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_trials_of_a_process_that_ended_early_are_drawn_again(
    cli: CommandLine, database: str, number: signal.Signals
) -> None:
    search = (*SEARCH, f"hydra.sweeper.storage={database}", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    process = cli.fork(*search)
    wait_for(lambda: any(cli.folder.glob("outputs/search/*/signals.csv")), process)
    process.send_signal(number)
    process.communicate()
    if number == signal.SIGKILL:
        assert [trial.state.name for trial in shared_study(database).trials] == ["RUNNING", "RUNNING"]
        let_a_minute_pass(database)
    cli.run(*search)
    found = shared_study(database).trials
    assert [trial.state.name for trial in found] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert sorted(str(trial.params) for trial in found[:2]) == sorted(str(trial.params) for trial in found[2:])


def let_a_minute_pass(database: str) -> None:
    """Make the heartbeats of all trials older."""
    with sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01'"))


@pytest.mark.slow
def test_a_process_that_was_suspended_leaves_its_trials_to_others(cli: CommandLine, database: str) -> None:
    """Its machine slept. It has the locks of the trials, so the others train other trials in the meantime."""
    search = (*SEARCH, f"hydra.sweeper.storage={database}", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    process = cli.fork(*search)
    wait_for(lambda: any(cli.folder.glob("outputs/search/*/signals.csv")), process)
    process.send_signal(signal.SIGSTOP)
    let_a_minute_pass(database)
    cli.run(*search)
    process.send_signal(signal.SIGCONT)
    ended(process, 0)
    assert [trial.state.name for trial in shared_study(database).trials].count("COMPLETE") == 2


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (
            "optuna.db",
            "hydra.sweeper.storage=optuna.db: give sqlite:///PATH, or for several processes at once postgresql",
        ),
        ("nobase://host/db", "hydra.sweeper.storage=nobase://host/db: "),
        ("sqlite+pysqlite:////nowhere/optuna.db", "unable to open database file"),
        ("postgresql+pg8000://127.0.0.1:1/none", "needs a package that is not installed (No module named 'pg8000')"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_message(cli: CommandLine, storage: str, message: str) -> None:
    assert message in cli.refuse("--multirun", "experiment=search", f"hydra.sweeper.storage={storage}")
