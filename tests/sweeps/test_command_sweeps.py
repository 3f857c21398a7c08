"""Sweeps over the settings of a program that nobody here touched."""

from pathlib import Path

import psutil
import pytest

from stability.analysis.trials import read_trials
from stability.diagnosis.table import read_table
from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.programs import command, runs, write_program
from tests.support.sweeps import mlflow_runs, run_without_heavy_imports

SWEEP = ("--multirun", "trainer=command", "trainer.log=log.csv", "study=rates")
LEVELS = ("settings.lr=0.1,3", "settings.steps=60,61", "seed=5")
GIVEN = command("--lr {lr} --seed {seed} --steps {steps}")


@pytest.fixture(autouse=True)
def _program(cli: CommandLine) -> None:
    write_program(cli.folder)


def folders(cli: CommandLine) -> list[Path]:
    return sorted(path.parent for path in cli.folder.glob("outputs/rates/*/config.yaml"))


def test_settings_are_swept_like_any_other_and_the_page_names_the_one_at_fault(cli: CommandLine) -> None:
    planned = run_without_heavy_imports(cli, *SWEEP, GIVEN, *LEVELS, "sweep.dry_run=true")
    assert "4 trials: 0 done, 0 to resume, 4 new" in planned
    assert "train.py --lr 0.1 --seed 5 --steps 60\n" in planned
    assert "not known before the first one has ended" in planned

    out = cli.run(*SWEEP, GIVEN, *LEVELS, "hydra/launcher=stacked", "tracking=mlflow").out
    assert "[4/4]" in out
    assert "lr 3  steps 60  seed 5" in out
    found = read_trials([cli.folder / "outputs/rates"])
    assert len(found.trials) == 4
    assert set(found.factors) == {"settings.lr", "settings.steps"}
    assert {trial.outcome for trial in found.trials if trial.factors["settings.lr"] == 3} == {"exploded"}
    assert found.metric == "WER"
    assert {trial.seed for trial in found.trials} == {5}
    page = (cli.folder / "outputs/rates/report.html").read_text()
    assert "lr" in page
    names = mlflow_runs(cli)
    assert {*names} == {"rates", *(folder.name for folder in folders(cli))}
    assert {*names.values()} == {"FINISHED"}

    again = cli.run(*SWEEP, GIVEN, *LEVELS, "hydra/launcher=stacked", "tracking=mlflow").out
    assert "[4/4]" not in again
    assert all(len(runs(folder)) == 1 for folder in folders(cli)), "none is run again"
    planned = cli.run(*SWEEP, GIVEN, *LEVELS[:2], "seed=5,6", "sweep.dry_run=true").out
    assert "8 trials: 4 done, 0 to resume, 4 new" in planned
    assert "one after another, as long as those that are done" in planned


def test_an_interpolation_follows_the_swept_value(cli: CommandLine) -> None:
    given = (command("--lr {lr} --note {note}"), "settings.lr=0.1,3", "settings.note=${settings.lr}")
    planned = cli.run(*SWEEP, *given, "sweep.dry_run=true").out
    assert "2 trials: 0 done, 0 to resume, 2 new" in planned
    assert "train.py --lr 0.1 --note 0.1\n" in planned


def test_a_program_that_fails_does_not_stop_the_others(cli: CommandLine) -> None:
    (cli.folder / "train.py").write_text("import sys; print('no memory'); sys.exit(sys.argv[2] == '3')")
    message = cli.run(*SWEEP, command("--lr {lr}"), "settings.lr=3,0.1", "hydra/launcher=stacked", status=1).err
    assert "2 trials have no verdict." in message
    assert "lr 3  seed 0: " in message
    assert "ended with exit status 1. The end of its output: no memory" in message
    assert "there is no log at work/log.csv: work is empty" in message


def test_what_is_wrong_with_all_trials_is_said_once_before_any_is_started(cli: CommandLine) -> None:
    message = cli.refuse(*SWEEP, "trainer.command=nothing {lr}", "settings.lr=3,0.1")
    assert "2 of 2 configurations are invalid; no trial was started" in message
    assert message.count("there is no program nothing on the PATH") == 1
    assert not folders(cli)


def test_seeds_of_a_program_that_is_not_told_them_are_noted(cli: CommandLine) -> None:
    out = cli.run(*SWEEP, command("--lr {lr} --steps 30"), "settings.lr=0.1", "seed=0,1").out
    assert "The program is not told the seed, so it chooses its random numbers itself." in out


@pytest.mark.slow
def test_workers_share_the_trials_and_one_that_is_killed_leaves_no_program_behind(cli: CommandLine) -> None:
    given = (*SWEEP, command("--lr {lr} --seed {seed} --pause 0.05"), "settings.lr=0.1", "seed=0,1,2,3")
    sweep = cli.start(*given, "hydra/launcher=stacked", "hydra.launcher.workers=2", "trainer.grace=1")
    wait_for(lambda: len([*cli.folder.glob("outputs/rates/*/work/log.csv")]) == 2, sweep)
    (first, *_) = [p for p in psutil.Process(sweep.pid).children(recursive=True) if "submitit" in " ".join(p.cmdline())]
    first.kill()
    ended(sweep, 0)
    assert len(read_trials([cli.folder / "outputs/rates"]).trials) == 4
    for folder in folders(cli):
        table = read_table(folder / "signals.csv")
        assert [*table.steps] == [*range(60)], "no program wrote into the log of another one"
        assert len((folder / "work/log.csv").read_text().splitlines()) == 61


@pytest.mark.slow
def test_bisection_finds_the_largest_healthy_value_of_a_setting(cli: CommandLine) -> None:
    limits = ("hydra.sweeper.start=0.1", "hydra.sweeper.lowest=0.01", "hydra.sweeper.highest=10")
    given = (*SWEEP, command("--lr {lr} --seed {seed}"), "hydra/sweeper=bisection", "hydra.sweeper.setting=settings.lr")
    out = cli.run(*given, *limits, "hydra.sweeper.tolerance=3", "seed=0,1").out
    assert "The largest healthy lr" in out
    rates = {
        trial.factors["settings.lr"]: trial.outcome for trial in read_trials([cli.folder / "outputs/rates"]).trials
    }
    assert {rate for rate, outcome in rates.items() if outcome == "stable"} == {0.1, 0.316, 0.562} & {*rates}
    assert min(rate for rate, outcome in rates.items() if outcome == "exploded") == 1


@pytest.mark.slow
def test_a_search_in_which_every_trial_crashes_is_one_message(cli: CommandLine) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "settings.lr=interval(0.1,3)")
    message = cli.run(*SWEEP, *search, "trainer.command=sh -c 'echo no data {lr}; exit 1'", status=1).err
    (error,) = [line for line in message.splitlines() if line.startswith("error: ")]
    assert error == "error: 2 trials have no verdict. Run the same command again to train what is missing."
    assert "Traceback" not in message
