"""Explanations on the real command line: of a program that nobody here touched, and of the decoder."""

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from stability.analysis.beliefs import Difference
from stability.sweeps.explain import show_question
from stability.sweeps.question import Question, digest
from tests.support.commandline import CommandLine, ended, run_module, wait_for
from tests.support.programs import PROGRAM as PROGRAM_TEXT
from tests.support.programs import command, runs, write_program

PROGRAM = ("trainer=command", command("--lr {lr} --steps {steps} --seed {seed}"), "trainer.log=log.csv")
EXPLAIN = ("--multirun", "hydra/sweeper=explain", "hydra/launcher=stacked", "study=why")


@pytest.fixture(autouse=True)
def _program(cli: CommandLine) -> None:
    write_program(cli.folder)


def asked(failed: str, healthy: str) -> tuple[str, ...]:
    """The overrides that ask why one fails and the other does not."""
    return *EXPLAIN, f"hydra.sweeper.failed='{failed}'", f"hydra.sweeper.healthy='{healthy}'"


LR = asked("settings.lr=3 settings.steps=40", "settings.lr=0.1 settings.steps=60")


def explanation(cli: CommandLine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cli.folder / "outputs/why/explanation.json").read_text())
    return found


def trained(cli: CommandLine) -> dict[str, int]:
    """How often the program of each trial was started."""
    return {path.parent.name: len(runs(path.parent)) for path in cli.folder.glob("outputs/why/*/command.json")}


@pytest.mark.slow
def test_a_budget_is_kept_and_the_same_command_goes_on_from_there(cli: CommandLine) -> None:
    out = cli.run(*LR, *PROGRAM, "hydra.sweeper.trials=2").out
    assert "Not decided: FAILED failed in 1 of 1 trial and HEALTHY failed in 0 of 1 trial." in out
    assert "It was stopped after 2 trials and" in out
    found = explanation(cli)
    assert [*found][:2] == ["sha256", "statement"]
    assert found["sha256"] == digest(found["statement"])
    assert found["statement"]["failed"]["settings"]["settings.lr"] == 3
    assert found["cost"]["trials"] == 2
    assert {one["name"]: one["role"] for one in found["differences"]} == {
        "settings.lr": "undecided",
        "settings.steps": "undecided",
    }
    assert "Nothing is claimed yet" in (cli.folder / "outputs/why/explanation.html").read_text()

    cli.run(*LR, *PROGRAM, "hydra.sweeper.steps=160", "trainer.grace=5")  # which changes no result
    assert explanation(cli)["cost"]["trials"] == 3
    assert explanation(cli)["cost"]["steps"] <= 160
    assert {*trained(cli).values()} == {1}, "none is trained again"

    assert "differ in 2 settings" in cli.run(*LR, *PROGRAM, "sweep.dry_run=true").out
    other = (*asked("settings.lr=4", "settings.lr=0.1"), "settings.steps=60")
    message = cli.refuse(*other, *PROGRAM)
    assert "outputs/why/explanation.json states another question" in message
    assert "study=OTHER" in message
    found["statement"]["method"] = 1
    (cli.folder / "outputs/why/explanation.json").write_text(json.dumps(found))
    assert "explanation.json was begun by another version of explain" in cli.refuse(*LR, *PROGRAM)
    (cli.folder / "outputs/why/explanation.json").write_text("{")
    assert "outputs/why/explanation.json is damaged. Delete it" in cli.refuse(*LR, *PROGRAM)


@pytest.mark.slow
def test_a_second_process_in_the_same_folder_is_refused_and_goes_on_when_the_first_was_killed(cli: CommandLine) -> None:
    program = cli.folder / "train.py"
    program.write_text(
        f"import os, time\nwhile not os.path.exists('{cli.folder / 'go'}'): time.sleep(0.01)\n{PROGRAM_TEXT}"
    )
    first = cli.start_plain("tracking=none", *LR, *PROGRAM)
    wait_for(lambda: bool(trained(cli)), first)
    before = (cli.folder / "outputs/why/explanation.json").read_bytes()
    who = f"Process {first.pid} of {socket.gethostname()} is at work in outputs/why: wait for its end, or"
    assert who in cli.fail(*LR, *PROGRAM)
    assert (cli.folder / "outputs/why/explanation.json").read_bytes() == before
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    (cli.folder / "go").touch()
    assert "It was stopped after 1 trial" in cli.run(*LR, *PROGRAM, "hydra.sweeper.trials=1").out


@pytest.mark.slow
def test_the_cause_is_found_confirmed_and_told_after_a_kill_too(cli: CommandLine) -> None:
    killed = cli.fork(*LR, *PROGRAM)
    wait_for(lambda: len(trained(cli)) > 12, killed)
    killed.kill()
    killed.communicate()
    out = cli.run(*LR, *PROGRAM).out
    assert re.search(r"FAILED failed in (\d) of \1 trials and HEALTHY failed in 0 of \d trials\.\nround ", out)
    assert "The cause is lr: HEALTHY fails with FAILED's 3 in place of 0.1, and flips between 0." in out
    assert "FAILED is healthy with HEALTHY's lr 0.1; steps has no part. The chance that any of this is wrong" in out
    found = explanation(cli)
    assert found["confirmed"]
    (flip,) = found["flips"]
    assert flip["healthy"] < 1 <= flip["fails"]
    assert flip["holds"]
    assert sum(count > 1 for count in trained(cli).values()) <= 8, "only what the kill interrupted"
    assert len(trained(cli)) == found["cost"]["trials"]
    page = (cli.folder / "outputs/why/explanation.html").read_text()
    assert "The cause is lr" in page
    assert "alone a cause" in page
    written = (cli.folder / "outputs/why/explanation.json").read_bytes()
    assert cli.run(*LR, *PROGRAM).out.endswith(out[out.index("The cause") :])
    assert (cli.folder / "outputs/why/explanation.json").read_bytes() == written


@pytest.mark.slow
def test_a_side_that_ended_otherwise_than_was_said_is_told_with_its_rate(cli: CommandLine) -> None:
    sides = asked("settings.lr=0.2", "settings.lr=0.1"), asked("settings.lr=3", "settings.lr=2")
    problems = "FAILED does not fail again: FAILED failed in 0 of ", "HEALTHY fails too: FAILED failed in "
    for number, (question, problem) in enumerate(zip(sides, problems, strict=True)):
        end = cli.run(*question, *PROGRAM, "settings.steps=30", f"study=why{number}", status=1)
        assert problem in end.out
        assert "So nothing can be explained" in end.out
        page = (cli.folder / f"outputs/why{number}/explanation.html").read_text()
        assert "Nothing is claimed, since there is nothing to explain." in page
        assert end.err == "error: Nothing can be explained: see above.\n"


@pytest.mark.slow
def test_crashes_in_all_trials_of_a_side_are_said_and_are_no_failures(cli: CommandLine) -> None:
    program = (cli.folder / "train.py").read_text().replace("random.seed", "assert given.lr < 1\nrandom.seed")
    (cli.folder / "train.py").write_text(program)
    out = cli.run(*LR, *PROGRAM, status=1)
    assert "FAILED crashed in 4 of 4 trials." in out.out
    assert "4 trials crashed, which are not counted as failures of training." in out.out
    assert "4 trials have no verdict." in out.err


def test_a_dry_run_lists_the_differences_and_the_cost_and_trains_nothing(cli: CommandLine) -> None:
    failed = "optimizer=adam_default schedule=conservative steps=30 tracking=tensorboard"
    end = cli.run(*asked(failed, "optimizer=official schedule=official"), "sweep.dry_run=true")
    assert "differ in 4 settings" in end.out
    assert "optimizer.epsilon      1e-8 in FAILED, 0.1 in HEALTHY" in end.out
    assert "Not tried on their own, since they follow others: schedule.lr_max_day." in end.out
    assert "Left out, since they change no result: tracking.backend." in end.out
    assert "trials if one of them is the cause" in end.out
    assert "To find between which two values a number flips takes 20 to 60 trials more." in end.out
    assert not (cli.folder / "outputs").exists()


def test_a_cost_by_chance_is_that_of_a_typical_experiment_and_not_of_an_unlucky_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    differences = tuple(Difference(name, "bad", "good", name) for name in "abcdef")
    show_question(Question("F", "H", (), (), differences, (), (), (), ({}, {})))
    found = re.search(r"in 7 of 10 seeds: about (\d+) trials", capsys.readouterr().out)
    assert found
    assert 40 <= int(found[1]) <= 120  # medians of 15 simulations are near 70; the longest took 200


@pytest.mark.parametrize(
    ("failed", "healthy", "more", "parts"),
    [
        ("aug=weak", "aug=weak", (), ["are the same training", "nothing to explain"]),
        ("aug=weak validate_every=3", "aug=weak", (), ["they differ in validate_every, which changes no result"]),
        ("aug=weaker", "aug=weak", (), ["FAILED is no valid configuration", "aug/weaker", "\n  weak"]),
        ("nowhere", "aug=weak", (), ["FAILED: there is no folder nowhere", "overrides"]),
        ("experiment=test1", "aug=weak", (), ["FAILED: experiment=test1: an experiment is a sweep"]),
        ("lr=1 {", "lr=0.1", (), ["FAILED: Cannot read {"]),
        ('lr=1 "aug=weak', "lr=0.1", (), ['FAILED: lr=1 "aug=weak: No closing quotation']),
        ("lr=1,2", "lr=0.1", (), ["FAILED: schedule.lr_max=1,2 has several values: give one"]),
        ("lr=1", "lr=0.1 study=other", (), ["HEALTHY: study=other is no setting of a training: give it outside"]),
        ("lr=1", "lr=0.1", ("aug=weak,none",), ["aug=weak,none has several values: give one"]),
        ("aug=weak", "aug=none", ("seed=3",), ["chooses the seeds itself: remove seed="]),
        ("aug=weak", "aug=none", ("hydra.sweeper.trials=0",), ["hydra.sweeper.trials=0: give a whole number"]),
    ],
)
def test_wrong_questions_are_refused(
    cli: CommandLine, failed: str, healthy: str, more: tuple[str, ...], parts: list[str]
) -> None:
    message = cli.refuse(*asked(failed, healthy), *more)
    assert all(part in message for part in parts), message
    assert not (cli.folder / "outputs").exists()


def test_an_experiment_is_no_setting_of_all_trials(cli: CommandLine) -> None:
    end = ended(cli.fork_plain(*asked("lr=1", "lr=0.1"), "experiment=test1"), 1)
    assert end.err == "error: experiment=test1: an experiment is a sweep. Give the settings of one trial of it.\n"


@pytest.mark.parametrize("door", ["explain", "repair"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: FAILED"),
        (("lr=1", "lr=0.1", "--trials", "0"), "argument --trials: 0: give a whole number of 1 or more."),
        (("lr=1", "lr=0.1", "--steps", "many"), "argument --steps: many: give a whole number of 1 or more."),
    ],
)
def test_a_wrong_command_line_is_said_in_its_own_words(door: str, words: tuple[str, ...], message: str) -> None:
    end = run_module(f"stability.{door}", *words)
    assert end.returncode == 2
    assert message in end.stderr
    assert "OVERRIDE" not in end.stderr.splitlines()[-1], "further settings are not required"


def test_without_both_sides_the_message_says_how_they_are_given(cli: CommandLine) -> None:
    assert "Give both, each as overrides or as the folder of a trial" in cli.refuse(*EXPLAIN)


@pytest.mark.slow
def test_folders_of_trials_are_compared_with_their_outcomes(cli: CommandLine, tmp_path: Path) -> None:
    cli.run("--multirun", "hydra/launcher=stacked", *PROGRAM, "settings.lr=3,0.1", "settings.steps=40", "seed=5")
    folders = {
        name: str(path) for name in ("lr3", "lr0.1") for path in (cli.folder / "outputs/single").glob(f"{name}-*")
    }
    end = cli.run(*asked(folders["lr3"], folders["lr0.1"]), "trainer=command", "sweep.dry_run=true")
    assert "differ in 1 setting:\n  settings.lr  3 in FAILED, 0.1 in HEALTHY\n" in end.out
    app = cli.folder / "app/0/.hydra"
    app.mkdir(parents=True)
    (app / "config.yaml").write_text("lr: 3")
    assert "app/0 is of a Hydra app of your own" in cli.refuse(*asked("app/0", folders["lr0.1"]), "trainer=command")
    swapped = cli.refuse(*asked(folders["lr0.1"], folders["lr3"]), "trainer=command")
    assert "is healthy. Give as FAILED one that failed." in swapped
    (Path(folders["lr3"]) / "verdict.json").unlink()
    assert "is no finished trial: no verdict" in cli.refuse(*asked(folders["lr3"], folders["lr0.1"]), "trainer=command")
