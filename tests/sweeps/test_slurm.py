"""Workers on a real Slurm cluster, of which one machine will do: `tests/slurm.sh` makes it."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.commandline import CommandLine, ended, rows, wait_for
from tests.support.sweeps import BASIC, FACTORS, LONG, STACKED, assert_same_trials, started_trials

SLURM = (*STACKED, *FACTORS, "study=stacked", "hydra.launcher.cluster=slurm", "hydra.launcher.workers=2")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _cluster() -> None:
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("there is no Slurm here")


def jobs() -> list[str]:
    """The numbers of the jobs that wait, run or are about to end."""
    command = ["squeue", "--me", "--name=stability", "--noheader", "--format=%A"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_sweep_on_a_cluster_has_the_same_results_although_a_job_is_killed(cli: CommandLine) -> None:
    cli.run(*BASIC, *FACTORS, *LONG, "study=basic")
    process = cli.start(*SLURM, *LONG, "hydra.launcher.size=1")
    wait_for(lambda: started_trials(cli, 7) == 2, process)
    subprocess.run(["scancel", "--signal=KILL", min(jobs(), key=int)], check=True)
    assert ended(process, 0).out.count("A worker was killed") == 1
    assert_same_trials(cli, 4)
    for folder in folders(cli):
        assert (folder / ".hydra/overrides.yaml").read_text()
        assert (folder / "train.log").exists()
    assert not jobs()


def test_a_job_whose_time_is_up_is_replaced_and_ctrl_c_cancels_all(cli: CommandLine) -> None:
    limit = [f"+hydra.launcher.parameters.{one}" for one in ("timeout_min=2", "slurm_signal_delay_s=60")]
    process = cli.start(*SLURM, *limit, "steps=1000000")
    assert process.stdout
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert all(line.startswith("A worker ran out of time") for line in lines), lines
    made = max(steps(cli))
    wait_for(lambda: min(steps(cli)) > made, process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)
    assert not jobs()
    for folder, made in zip(folders(cli), steps(cli), strict=True):
        state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
        assert state["stability"]["step"] == made, "no step was lost"


def test_a_sweep_does_not_wait_for_a_job_without_work(cli: CommandLine) -> None:
    """One of the machine's two processors is taken, and the job that waits for it is not to begin."""
    taken = ["sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600"]
    other = subprocess.run(taken, capture_output=True, text=True, check=True).stdout.strip()
    try:
        process = cli.start(*SLURM)
        wait_for(lambda: len(jobs()) == 2, process)
        subprocess.run(["scontrol", "hold", max(jobs(), key=int)], check=True)
        assert "A worker" not in ended(process, 0).out
        assert len(steps(cli)) == 4
    finally:
        subprocess.run(["scancel", other], check=True)
    assert not jobs()


def folders(cli: CommandLine) -> list[Path]:
    return sorted(cli.folder.glob("outputs/stacked/eps*"))


def steps(cli: CommandLine) -> list[int]:
    """Return how many steps each trial has made."""
    return [len(rows(folder / "signals.csv")) for folder in folders(cli)]
