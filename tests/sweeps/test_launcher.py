"""`hydra/launcher=stacked` on the command line: what is trained in stacks ends as one by one."""

import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from stability.config.hydra import resolve_config
from stability.core.errors import StabilityError
from stability.sweeps.launcher import StackedLauncher, kind
from stability.sweeps.workers import run_in_workers
from stability.trials.run import run_trial
from tests.support.commandline import CommandLine, ended, rows, wait_for
from tests.support.configs import tiny
from tests.support.sweeps import (
    BASIC,
    FACTORS,
    LONG,
    STACKED,
    assert_same_trials,
    run_without_heavy_imports,
    started_trials,
    trials,
)
from tests.support.trial_folders import assert_same_trial, without_figure


def test_trials_of_a_sweep_end_as_alone(cli: CommandLine) -> None:
    """Two cells are one, one diverges, and one cannot be."""
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
def test_what_cannot_share_a_stack_gets_others_and_what_cannot_begin_keeps_nobody(cli: CommandLine) -> None:
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
            assert ours[name].read_text().replace("stacked", "basic") == theirs[name].read_text(), name


def files(cli: CommandLine, study: str) -> dict[str, Path]:
    """All files of a study, by their place in it."""
    root = cli.folder / "outputs" / study
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def test_what_has_other_data_gets_another_stack() -> None:
    """Where what is too short after the longest cut is left out of the data."""
    kinds = [
        kind(tiny(f"data.on_bad_utterance={how}", f"aug.max_cut={cut}"))
        for how in ("exclude", "error")
        for cut in (0, 3)
    ]
    assert len({*kinds}) == 3
    assert kinds[2] == kinds[3]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_written_keeps_only_its_own_trial(cli: CommandLine, workers: int) -> None:
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
def test_a_verdict_that_cannot_be_read_keeps_nobody(cli: CommandLine) -> None:
    cli.run(*STACKED, "seed=0,1", "study=stacked", "tracking=mlflow")
    damaged = next(iter(trials(cli, "stacked").values()))
    (damaged / "verdict.json").write_text("")
    err = cli.run(*STACKED, "seed=0,1,2", "study=stacked", "tracking=mlflow", status=1).err
    assert len(trials(cli, "stacked")) == 3
    assert f"{damaged.name}: " in err
    assert {*runs(cli).values()} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_passes_over_a_folder_that_cannot_be_written(cli: CommandLine, workers: int) -> None:
    search = (*SEARCH, "batch.size=8", "hydra.sweeper.n_jobs=2", f"hydra.launcher.workers={workers}")
    cli.run(*search)
    first = min(trials(cli, "search").values(), key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)
    shutil.rmtree(cli.folder / "outputs")
    first.parent.mkdir(parents=True)
    first.touch()
    err = cli.run(*search, status=1).err
    assert err.count("Cannot write in ") == 1
    assert len(trials(cli, "search")) == 3


@pytest.mark.slow
def test_a_bisection_says_why_a_trial_cannot_be(cli: CommandLine) -> None:
    search = (*STACKED, "hydra/sweeper=bisection", "hydra.sweeper.highest=0.01")
    cli.run(*search)
    first = next(iter(trials(cli).values()))
    shutil.rmtree(first)
    first.touch()
    err = cli.run(*search, status=1).err
    assert err.count(f"Cannot write in outputs/single/{first.name}: File exists") == 1
    assert "1 of 1 search ended early" in err
    by_number = cli.run(*search, "hydra.sweep.subdir=${hydra.job.num}", status=1).err
    assert "hydra.job.num" in by_number


@pytest.mark.slow
def test_a_trial_too_large_for_the_memory_is_told_of_and_the_others_are_done(cli: CommandLine) -> None:
    memory = 3 << 30
    limited = partial(resource.setrlimit, resource.RLIMIT_AS, (memory, memory))
    end = cli.run(*STACKED, "model.units=8,4000000", status=1, preexec_fn=limited)
    assert end.err.count("The memory of device=auto does not hold one trial: give a smaller batch.size or model.") == 1
    assert len(trials(cli)) == 1


@pytest.mark.slow
def test_a_sweep_interrupted_in_mid_stack_goes_on_alone_and_in_a_stack(cli: CommandLine) -> None:
    cli.run(*BASIC, *FACTORS, *LONG, "study=basic")
    command = (*STACKED, *FACTORS, *LONG, "study=stacked", "tracking=mlflow", "hydra.launcher.size=3")
    process = cli.start(*command)
    wait_for(lambda: started_trials(cli, 12) == 3, process)
    process.send_signal(signal.SIGINT)
    assert "The same command goes on from there." in ended(process, 130).err
    assert runs(cli) == {"stacked": "KILLED", **dict.fromkeys(begun_trials(cli), "KILLED")}
    assert len([*cli.folder.glob("outputs/stacked/*/checkpoints/last.pt")]) == 3
    cli.run("optimizer=official", "seed=0", *LONG, "study=stacked", "tracking=mlflow")
    cli.run(*command)
    assert_same_trials(cli, 4)
    assert runs(cli) == {"stacked": "FINISHED", **dict.fromkeys(trials(cli, "stacked"), "FINISHED")}


def runs(cli: CommandLine) -> dict[str, str]:
    """The runs in MLflow, with their status."""
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        found = store.execute("SELECT name, status FROM runs").fetchall()
    assert len(dict(found)) == len(found), "each is there once"
    return dict(found)


def begun_trials(cli: CommandLine) -> list[str]:
    """The names of the trials of the study `stacked` that have been begun."""
    return [path.parent.name for path in cli.folder.glob("outputs/stacked/*/config.yaml")]


@pytest.mark.slow
def test_a_search_has_its_batches_trained_together(cli: CommandLine) -> None:
    end = cli.run(*SEARCH, "batch.size=8")
    assert "[4/4]" in end.out
    assert len(trials(cli, "search")) == 4
    assert "The best of 4 trials: 1 " in end.out


SEARCH = (*STACKED, "experiment=search", "hydra.sweeper.n_trials=4")


@pytest.mark.slow
def test_a_trial_of_a_search_that_cannot_be_is_told_of_after_the_others(cli: CommandLine) -> None:
    end = cli.run(*SEARCH, "optimizer.beta1=choice(0.9,1.0)", status=1)
    done = len(trials(cli, "search"))
    assert 0 < done < 4
    _, *lines = end.err.splitlines()
    assert end.err.startswith("error: 1 configuration is" if done == 3 else f"error: {4 - done} configurations are")
    assert lines[0] == "  optimizer.beta1=1.0: it has to be at least 0 and below 1.", "the reason once"
    assert all("optimizer.beta1=1.0" in line for line in lines[1:])
    assert len(lines[1:]) == 4 - done, "and each trial"
    out = cli.run(*SEARCH[:-1], f"hydra.sweeper.n_trials={done}", "optimizer.beta1=choice(0.9,1.0)").out
    assert f"The search already has {done} trials" in out


@pytest.mark.slow
def test_a_bisection_has_its_rounds_trained_together(cli: CommandLine) -> None:
    search = ("hydra/sweeper=bisection", "hydra.sweeper.tolerance=5", "hydra.sweeper.highest=0.1", "seed=0,1")
    for launcher in (STACKED, BASIC):
        cli.run(*launcher, *search, f"study={launcher[1].rpartition('=')[2]}")
    tables = [(cli.folder / "outputs" / study / "boundary.csv").read_text() for study in ("stacked", "basic")]
    assert tables[0] == tables[1]


WORKERS = (*STACKED, *FACTORS, *LONG, "study=stacked", "hydra.launcher.workers=2")


@pytest.mark.slow
def test_what_killed_workers_had_is_given_to_others(cli: CommandLine) -> None:
    """One is killed outright, the other told by the scheduler that its time is up."""
    cli.run(*BASIC, *FACTORS, *LONG, "study=basic")
    process = cli.start(*WORKERS, "hydra.launcher.size=1", "fresh=true")
    wait_for(lambda: len(workers(process)) == 2 and started_trials(cli, 7) == 2, process)
    for worker, number in zip(workers(process), (signal.SIGKILL, signal.SIGUSR2), strict=True):
        worker.send_signal(number)
    out = ended(process, 0).out
    assert [out.count(f"A worker {why} (") for why in ("was killed", "ran out of time")] == [1, 1]
    assert_same_trials(cli, 4)


@pytest.mark.slow
def test_what_no_worker_lived_to_finish_is_told_of(cli: CommandLine) -> None:
    process = cli.start(*WORKERS, "tracking=mlflow")
    killed = set[int]()
    while process.poll() is None and len(killed) < 6:
        for worker in workers(process):
            if worker.pid not in killed:
                killed.add(worker.pid)
                worker.kill()
        time.sleep(0.1)
    err = ended(process, 1).err
    assert err.startswith("error: 4 trials have no verdict.")
    assert err.count("Every worker that trained it was killed") == 4
    assert not trials(cli, "stacked")
    assert runs(cli) == {"stacked": "FAILED", **dict.fromkeys(begun_trials(cli), "KILLED")}
    assert cli.run(*WORKERS, "tracking=mlflow").out.count("/4] ") == 4
    assert {*runs(cli).values()} == {"FINISHED"}


@pytest.mark.slow
def test_what_a_worker_has_not_begun_is_taken_by_another(cli: CommandLine) -> None:
    process = cli.start(*WORKERS)
    wait_for(lambda: len(workers(process)) == 2, process)
    stuck = workers(process)[0]
    stuck.suspend()
    try:
        wait_for(lambda: len(trials(cli, "stacked")) == 4, process)
    finally:
        stuck.resume()
    assert ended(process, 0).out.count("/4] ") == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_after_a_checkpoint(cli: CommandLine, number: signal.Signals) -> None:
    long = "steps=600"
    cli.run(*BASIC, *FACTORS, *LONG, long, "study=basic")
    process = cli.start(*WORKERS, long, start_new_session=True)
    wait_for(lambda: started_trials(cli, 12) == 4, process)
    below = workers(process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers, too
        ended(process, 130)
    else:
        process.kill()  # and nobody has waited for it when its workers are to end
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
    assert not trials(cli, "stacked")
    for table in cli.folder.glob("outputs/stacked/*/signals.csv"):
        state = torch.load(table.parent / "checkpoints/last.pt", weights_only=True)
        assert state["stability"]["step"] == len(rows(table)), "no step was lost"
    cli.run(*WORKERS, long)
    assert_same_trials(cli, 4)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train for a sweep."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        return [child for child in below if "submitit.core._submit" in child.cmdline()]
    except psutil.Error:  # one has just ended
        return []


@pytest.mark.parametrize(
    ("setting", "told"),
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
def test_a_launcher_that_cannot_be_is_refused(setting: dict[str, Any], told: str) -> None:
    settings: dict[str, Any] = {"size": None, "workers": 1, "cluster": "local", "parameters": {}}
    with pytest.raises(StabilityError, match=re.escape(told)):
        StackedLauncher(**settings | setting)


def test_a_cluster_that_is_not_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StabilityError, match=r"hydra.launcher.cluster=slurm: .*srun"):
        start_worker("slurm", tmp_path)


def test_workers_without_submitit_are_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(StabilityError, match=re.escape("pip install 'training-stability[cluster]'")):
        start_worker("local", tmp_path)


def start_worker(cluster: str, folder: Path) -> None:
    run_in_workers(
        lambda number, sharing: None, lambda: False, count=1, cluster=cluster, folder=folder / "logs", parameters={}
    )
