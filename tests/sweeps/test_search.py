"""Searches by Optuna on the command line: `experiment=search`."""

import shutil

import optuna
import pytest

from tests.support.commandline import CommandLine, wait_for
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
