"""`hydra/launcher=stacked` on the command line: trials end in stacks as they end one by one."""

import re
import resource
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from stability.config.hydra import resolve_config
from stability.core.errors import StabilityError
from stability.core.files import VERDICT
from stability.diagnosis.verdict import read_verdict
from stability.sweeps.launcher import StackedLauncher
from stability.trials.run import run_trial
from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.sweeps import (
    BASIC,
    FACTORS,
    LONG,
    STACKED,
    assert_same_trials,
    begun_trials,
    mlflow_runs,
    run_without_heavy_imports,
    started_trials,
    trials,
)
from tests.support.trial_folders import assert_same_trial, without_figure


def test_trials_in_a_stack_end_as_alone_and_an_invalid_one_is_listed(cli: CommandLine) -> None:
    """Two configurations are the same, one diverges, and one is invalid."""
    jobs = ["schedule.warmup_steps=1", "optimizer.clip_norm=null", "schedule.lr_max=0.005,5e-3,1e30"]
    end = cli.run(*STACKED, *jobs[:2], f"{jobs[2]},-1", "study=stacked", status=1)
    reason = "\n  schedule.lr_max=-1.0: it has to be 0 or more.\n    schedule.lr_max=-1\n"
    assert end.out.startswith(f"1 of 4 configurations is invalid; training the other 3.{reason}")
    assert end.err == f"error: 1 configuration is invalid:{reason}"
    assert len(trials(cli, "stacked")) == 2
    for name, folder in trials(cli, "stacked").items():
        alone = resolve_config(DictConfig(OmegaConf.load(folder / "config.yaml")))
        alone.outputs = str(cli.folder)
        run_trial(alone, without_figure(cli.folder / name), quiet=True)
        assert_same_trial(folder, cli.folder / name)
    again = run_without_heavy_imports(cli, *STACKED, *jobs, "study=stacked")  # which finished trials do not need
    assert "/2]" not in again


@pytest.mark.slow
def test_trials_that_explode_have_the_same_outcome_in_a_stack_and_alone(cli: CommandLine) -> None:
    """After an explosion rounding errors grow a thousandfold, and the numbers part. The outcome must not."""
    jobs = ("steps=60", "optimizer.clip_norm=null", "schedule.warmup_steps=5", "schedule.lr_max=10,100,1e4", "seed=0,1")
    for launcher in (STACKED, BASIC):
        cli.run(*launcher, *jobs, f"study={launcher[1].partition('=')[2]}")
    basic, stacked = (
        {name: read_verdict(folder / VERDICT).outcome for name, folder in trials(cli, study).items()}
        for study in ("basic", "stacked")
    )
    assert len(basic) == 6
    assert {*basic.values()} == {"exploded"}
    assert stacked == basic


@pytest.mark.slow
def test_trials_of_different_kinds_get_stacks_of_their_own_and_crashes_stop_no_other(cli: CommandLine) -> None:
    jobs = ("model.units=8,6", "batch.size=8,4", "init_from=first.pt,null")
    stacked = cli.run(*STACKED, *jobs, "study=stacked", status=1)
    basic = cli.run(*BASIC, *jobs, "study=basic", status=1)
    assert stacked.err == basic.err.replace("/basic/", "/stacked/")
    assert stacked.err.count("There is no checkpoint at first.pt.") == 4
    assert_same_files(cli, 4)


def assert_same_files(cli: CommandLine, count: int) -> None:
    """They have the same files, too."""
    assert_same_trials(cli, count)
    ours, theirs = (files(cli, study) for study in ("stacked", "basic"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith((".hydra/config.yaml", ".hydra/overrides.yaml", "train.log")):
            one, other = (re.sub(r"^\[[\d ,:-]+\]", "", path[name].read_text(), flags=re.M) for path in (ours, theirs))
            assert one.replace("stacked", "basic") == other, name


def files(cli: CommandLine, study: str) -> dict[str, Path]:
    """All files of a study, by their place in it."""
    root = cli.folder / "outputs" / study
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_written_stops_only_its_own_trial(cli: CommandLine, workers: int) -> None:
    jobs = (*STACKED, "model.units=8,6", "seed=0,1", f"hydra.launcher.workers={workers}")
    cli.run(*jobs)
    for first in [*trials(cli).values()][:2]:
        shutil.rmtree(first)
        first.touch()
    err = cli.run(*jobs, "fresh=true", status=1).err
    assert err.count("Cannot write in ") == 2
    assert len(trials(cli)) == 2
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_verdict_that_cannot_be_read_stops_no_other_trial(cli: CommandLine) -> None:
    cli.run(*STACKED, "seed=0,1", "study=stacked", "tracking=mlflow")
    damaged = next(iter(trials(cli, "stacked").values()))
    (damaged / "verdict.json").write_text("")
    err = cli.run(*STACKED, "seed=0,1,2", "study=stacked", "tracking=mlflow", status=1).err
    assert len(trials(cli, "stacked")) == 3
    assert f"{damaged.name}: " in err
    assert {*mlflow_runs(cli).values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_trial_too_large_for_the_memory_stops_no_other(cli: CommandLine) -> None:
    memory = 3 << 30
    limited = partial(resource.setrlimit, resource.RLIMIT_AS, (memory, memory))
    end = cli.run(*STACKED, "model.units=8,4000000", status=1, preexec_fn=limited)
    assert end.err.count("The memory of device=auto does not hold one trial: give a smaller batch.size or model.") == 1
    assert len(trials(cli)) == 1


@pytest.mark.slow
def test_a_stack_that_was_interrupted_continues_alone_and_in_a_stack(cli: CommandLine) -> None:
    cli.run(*BASIC, *FACTORS, *LONG, "study=basic")
    command = (*STACKED, *FACTORS, *LONG, "study=stacked", "tracking=mlflow", "hydra.launcher.size=3")
    process = cli.start(*command)
    wait_for(lambda: started_trials(cli, 12) == 3, process)
    process.send_signal(signal.SIGINT)
    assert "The same command goes on from there." in ended(process, 130).err
    assert mlflow_runs(cli) == {"stacked": "KILLED", **dict.fromkeys(begun_trials(cli), "KILLED")}
    assert len([*cli.folder.glob("outputs/stacked/*/checkpoints/last.pt")]) == 3
    cli.run("optimizer=official", "seed=0", *LONG, "study=stacked", "tracking=mlflow")
    cli.run(*command)
    assert_same_trials(cli, 4)
    assert mlflow_runs(cli) == {"stacked": "FINISHED", **dict.fromkeys(trials(cli, "stacked"), "FINISHED")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 0}, "hydra.launcher.size=0: give a whole number of 1 or more, or null."),
        ({"size": 2.5}, "hydra.launcher.size=2.5: give"),
        ({"workers": 0}, "hydra.launcher.workers=0: give a whole number of 1 or more."),
        ({"workers": True}, "hydra.launcher.workers=True: give"),
        ({"workers": None}, "hydra.launcher.workers=None: give"),
        ({"parameters": "gpu"}, "hydra.launcher.parameters=gpu: give names with their values"),
        ({"cluster": "cloud"}, "hydra.launcher.cluster=cloud: give local or slurm."),
    ],
)
def test_wrong_settings_of_the_launcher_are_refused(setting: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"size": None, "workers": 1, "cluster": "local", "parameters": {}}
    with pytest.raises(StabilityError, match=re.escape(message)):
        StackedLauncher(**settings | setting)
