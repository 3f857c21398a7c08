"""Workers on this machine: `hydra.launcher.workers=2`."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from stability.core.errors import StabilityError
from stability.sweeps.workers import run_in_workers
from tests.support.commandline import CommandLine, ended, rows, wait_for
from tests.support.sweeps import (
    BASIC,
    FACTORS,
    LONG,
    STACKED,
    assert_same_trials,
    begun_trials,
    mlflow_runs,
    started_trials,
    trials,
)

WORKERS = (*STACKED, *FACTORS, *LONG, "study=stacked", "hydra.launcher.workers=2")


@pytest.mark.slow
def test_new_workers_continue_the_work_of_those_that_were_killed(cli: CommandLine) -> None:
    """One is killed, and the other receives the signal that its time is up."""
    cli.run(*BASIC, *FACTORS, *LONG, "study=basic")
    process = cli.start(*WORKERS, "hydra.launcher.size=1", "fresh=true")
    wait_for(lambda: len(workers(process)) == 2 and started_trials(cli, 7) == 2, process)
    for worker, number in zip(workers(process), (signal.SIGKILL, signal.SIGUSR2), strict=True):
        worker.send_signal(number)
    out = ended(process, 0).out
    assert [out.count(f"A worker {why} (") for why in ("was killed", "ran out of time")] == [1, 1]
    assert_same_trials(cli, 4)


@pytest.mark.slow
def test_trials_whose_workers_were_all_killed_are_listed(cli: CommandLine) -> None:
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
    assert mlflow_runs(cli) == {"stacked": "FAILED", **dict.fromkeys(begun_trials(cli), "KILLED")}
    assert cli.run(*WORKERS, "tracking=mlflow").out.count("/4] ") == 4
    assert {*mlflow_runs(cli).values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_worker_trains_what_another_has_not_started(cli: CommandLine) -> None:
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


@pytest.mark.slow
def test_a_worker_that_fails_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"^A worker failed: ZeroDivisionError: division by zero \(.*\.err\)$"):
        run_in_workers(divide, lambda: False, count=2, cluster="local", folder=tmp_path, parameters={})


def divide(number: int, sharing: int) -> float:
    return sharing / number


def test_a_missing_cluster_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StabilityError, match=r"hydra.launcher.cluster=slurm: .*srun"):
        start_worker("slurm", tmp_path)


def test_missing_submitit_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(StabilityError, match=re.escape("pip install 'training-stability[cluster]'")):
        start_worker("local", tmp_path)


def start_worker(cluster: str, folder: Path) -> None:
    run_in_workers(
        lambda number, sharing: None, lambda: False, count=1, cluster=cluster, folder=folder / "logs", parameters={}
    )
