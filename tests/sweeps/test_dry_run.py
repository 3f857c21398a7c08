"""`sweep.dry_run=true`: what a sweep would do is printed, and nothing is done."""

import re
import signal

import pytest

from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.sweeps import FACTORS


@pytest.mark.slow
def test_a_dry_run_lists_the_trials_and_trains_nothing(cli: CommandLine) -> None:
    command = ("--multirun", *FACTORS, "aug=strong,weak", "steps=100", "checkpoint_every=5")
    cli.run("--multirun", "optimizer=official", "aug=weak", "steps=100", "checkpoint_every=5")
    process = cli.start("--multirun", "optimizer=official", "aug=weak", "seed=1", "steps=100", "checkpoint_every=5")
    wait_for(lambda: len([*cli.folder.glob("outputs/single/*/checkpoints/last.pt")]) == 2, process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)
    before = sorted(cli.folder.rglob("outputs/single/*"))
    out = cli.run(*command, "sweep.dry_run=true").out
    assert sorted(cli.folder.rglob("outputs/single/*")) == before
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "epsilon noise seeds"
    assert re.fullmatch(r"0.1 0.25 seed 0: done, seed 1: resumes at step \d+", lines[2])
    assert [lines[1], *lines[3:5]] == [f"{cell} seed 0: new, seed 1: new" for cell in ("0.1 1", "1e-8 1", "1e-8 0.25")]
    assert lines[5] == "8 trials: 1 done, 1 to resume, 6 new"
    assert re.fullmatch(
        r"about \d+ (s|min|h) on this machine, one trial after another \(.* measured just now\)", lines[6]
    )
    assert len(lines) == 7
    out = cli.run(*command, "sweep.dry_run=true", "hydra/launcher=stacked").out
    expected = (
        r"about \d+ (s|min|h) on this machine, in stacks of up to 7 \(.* ms a step and trial, measured just now\)"
    )
    assert re.fullmatch(expected, out.splitlines()[-1])
    out = cli.run("--multirun", "batch.size=8,2", "sweep.dry_run=true", "hydra/launcher=stacked", status=1).out
    assert out.startswith("1 of 2 configurations is invalid; a sweep would train the other one.\n")


def test_a_dry_run_of_one_trial_is_refused(cli: CommandLine) -> None:
    assert "sweep.dry_run=true needs --multirun" in cli.refuse("sweep.dry_run=true")
    assert not (cli.folder / "outputs").exists()
