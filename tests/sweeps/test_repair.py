"""Repairs on the real command line: of a program that nobody here touched, and of the decoder."""

import json
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.programs import command, runs, write_program

PROGRAM = ("trainer=command", command(), "trainer.log=log.csv")
REPAIR = ("--multirun", "hydra/sweeper=repair", "hydra/launcher=stacked", "study=mend")


@pytest.fixture(autouse=True)
def _program(cli: CommandLine) -> None:
    write_program(cli.folder)


def asked(failed: str) -> tuple[str, ...]:
    """The overrides that ask for a repair."""
    return *REPAIR, f"hydra.sweeper.failed='{failed}'"


def repair(cli: CommandLine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cli.folder / "outputs/mend/repair.json").read_text())
    return found


def trained(cli: CommandLine) -> list[int]:
    """How often the program of each trial was started."""
    return [len(runs(path.parent)) for path in cli.folder.glob("outputs/mend/*/command.json")]


def test_the_smallest_change_is_found_confirmed_and_told_after_a_budget_too(cli: CommandLine) -> None:
    out = cli.run(
        *asked("settings.lr=3"), *PROGRAM, "hydra.sweeper.trials=3", "trainer.grace=5"
    ).out  # which changes no result
    assert "It was stopped after 3 trials and" in out
    assert not repair(cli)["finished"]

    out = cli.run(*asked("settings.lr=3"), *PROGRAM).out
    assert "settings.lr=0.3 mends it: it is healthy in 3 of 3 seeds, 2 of which were not used to choose it" in out
    assert "--lr {lr} --seed {seed}' trainer.log=log.csv settings.lr=0.3\n" in out, "the command to train with it"
    found = repair(cli)
    assert found["finished"]
    assert found["answer"]["settings"] == {"settings.lr": 0.3}
    assert [trial["seed"] for trial in found["answer"]["trials"]] == [0, 1, 2]
    assert [(one["change"], len(one["trials"])) for one in found["tried"]] == [
        ("", 2),
        ("settings.lr=1", 1),
        ("settings.lr=0.3", 3),
    ]
    assert trained(cli) == [1] * 6, "none is trained again"

    page = (cli.folder / "outputs/mend/repair.html").read_text()
    assert "settings.lr=0.3 mends it" in page
    assert "<h2>Train with the change</h2>" in page
    assert page.count('<span class="sign fresh"') == 2, "the fresh seeds of the answer"
    assert "exploded: unknown" in page, "what is wrong with FAILED"
    assert 'class="answer"' in page
    assert "&#39;trainer.command=" in page, "commands are quoted once, as they are typed"
    assert "&#34;&#39;" not in page
    assert re.search("<pre>python -m stability.repair settings.lr=3 --seeds=2 [^<]*study=mend", page), "how it was made"

    dry = cli.run(*asked("settings.lr=3"), *PROGRAM, "sweep.dry_run=true").out
    assert "FAILED is trained first" in dry
    message = cli.refuse(*asked("settings.lr=4"), *PROGRAM)
    assert "repair.json is of another training" in message
    assert "study=OTHER" in message


@pytest.mark.slow
def test_it_goes_on_after_a_kill_as_if_there_had_been_none(cli: CommandLine) -> None:
    killed = cli.fork(*asked("settings.lr=3"), *PROGRAM)
    wait_for(lambda: len(trained(cli)) > 2, killed)
    killed.kill()
    killed.communicate()
    out = cli.run(*asked("settings.lr=3"), *PROGRAM).out
    assert "settings.lr=0.3 mends it" in out
    assert len(trained(cli)) == repair(cli)["cost"]["trials"] == 6
    written = (cli.folder / "outputs/mend/repair.json").read_bytes()
    assert cli.run(*asked("settings.lr=3"), *PROGRAM).out.endswith(out[out.index("FAILED: ") :])
    assert (cli.folder / "outputs/mend/repair.json").read_bytes() == written


def test_a_training_that_does_not_fail_is_said_with_its_rate(cli: CommandLine) -> None:
    end = cli.run(*asked("settings.lr=0.1"), *PROGRAM, status=1)
    assert end.err == "error: Nothing can be repaired: see above.\n"
    out = end.out
    assert "FAILED is healthy in 2 of 2 seeds, and did not fail: there is little to repair. This took 2 trials" in out


def test_a_fault_that_no_setting_mends_is_said_after_one_training(cli: CommandLine) -> None:
    text = (cli.folder / "train.py").read_text()
    (cli.folder / "train.py").write_text(text.replace("{3 * size * noise},{size * noise},{wer}", "0.0,0.0,"))
    end = cli.run(*asked("settings.lr=3"), *PROGRAM, status=1)
    assert "FAILED: not_training, zero_loss. No setting mends this. The training loss is exactly 0" in end.out
    assert "This took 1 trial and" in end.out
    assert end.err == "error: Nothing can be repaired: see above.\n"


@pytest.mark.slow
def test_where_no_setting_helps_it_says_what_was_tried(cli: CommandLine) -> None:
    text = (cli.folder / "train.py").read_text()
    (cli.folder / "train.py").write_text(text.replace("given.lr < 1 ", "given.lr < 1e-9 "))
    out = cli.run(*asked("settings.lr=3"), *PROGRAM).out
    assert "None of 8 changes mends it, so none of these alone is to blame: learning rate." in out
    assert repair(cli)["answer"] is None


def test_the_folder_of_a_trial_has_its_cause_so_nothing_is_trained_to_know_it(cli: CommandLine) -> None:
    cli.run(*PROGRAM, "settings.lr=3", "seed=5")
    folder = cli.trial()
    of_folder = (*asked(str(folder)), *PROGRAM[:1])
    out = cli.run(*of_folder, "sweep.dry_run=true").out
    assert "exploded: unknown" in out
    assert "8 changes may mend it, tried in this order:\n  settings.lr=1       updates are 3 times smaller\n" in out

    verdict = json.loads((folder / "verdict.json").read_text())
    wrong = {"outcome": "bad_data", "cause": "blank_in_labels", "advice": "Renumber the labels."}
    (folder / "verdict.json").write_text(json.dumps(verdict | wrong))
    assert "bad_data, blank_in_labels. No setting mends this. Renumber the labels." in cli.refuse(*of_folder)
    (folder / "verdict.json").write_text(json.dumps(verdict | {"outcome": "stable", "cause": None}))
    assert "is healthy" in cli.refuse(*of_folder)
    assert not (cli.folder / "outputs/mend").exists()


@pytest.mark.slow
def test_the_configuration_of_a_folder_is_kept_where_one_setting_follows_another(cli: CommandLine) -> None:
    cli.run("steps=3", "schedule.warmup_steps=50", "model.time_scale=1", "lr=1")
    folder = cli.trial()
    exploded = {"outcome": "exploded", "cause": "rate_too_high"}
    verdict = json.loads((folder / "verdict.json").read_text())
    (folder / "verdict.json").write_text(json.dumps(verdict | exploded))
    cli.run(*asked(str(folder)), "tracking=none", "hydra.sweeper.trials=1")
    changed = yaml.safe_load((cli.trial("mend") / "config.yaml").read_text())
    given = yaml.safe_load((folder / "config.yaml").read_text())
    assert changed["schedule"] == given["schedule"] | {"lr_max": 0.333, "lr_max_day": 0.333}
    assert {name for name in given if changed[name] != given[name]} <= {"schedule", "diagnosis", "study", "tracking"}


@pytest.mark.slow
def test_the_folder_of_a_trial_on_recorded_data_is_repaired_on_them(cli: CommandLine) -> None:
    cli.run("steps=3", "study=makes_the_set")
    recorded = next(path for path in cli.sets.iterdir() if path.is_dir())
    cli.run("data=t15", f"data.path={recorded}", "steps=3", "lr=1")
    folder, before = cli.trial(), {*recorded.iterdir()}
    verdict = json.loads((folder / "verdict.json").read_text())
    exploded = {"outcome": "exploded", "cause": "rate_too_high"}
    (folder / "verdict.json").write_text(json.dumps(verdict | exploded))
    ended(cli.fork_plain(*asked(str(folder)), "tracking=none", "hydra.sweeper.trials=1"), 0)
    changed = yaml.safe_load((cli.trial("mend") / "config.yaml").read_text())
    assert changed["data"] == yaml.safe_load((folder / "config.yaml").read_text())["data"]
    assert {*recorded.iterdir()} == before, "nothing is written among the recordings"


def test_overrides_may_be_longer_than_the_name_of_a_file(cli: CommandLine) -> None:
    failed = " ".join(f"lr={1 + number / 1000:.3f}" for number in range(60))
    assert "FAILED is trained first" in cli.run(*asked(failed), "sweep.dry_run=true").out


@pytest.mark.parametrize(
    ("failed", "more", "part"),
    [
        ("aug=weaker", (), "FAILED is no valid configuration"),
        ("nowhere", (), "FAILED: there is no folder nowhere"),
        ("lr=1", ("seed=3",), "repair chooses the seeds itself: remove seed="),
        ("lr=1", ("hydra.sweeper.seeds=0",), "hydra.sweeper.seeds=0: give a whole number of 1 or more"),
    ],
)
def test_wrong_questions_are_refused(cli: CommandLine, failed: str, more: tuple[str, ...], part: str) -> None:
    assert part in cli.refuse(*asked(failed), *more)
    assert not (cli.folder / "outputs").exists()


def test_without_failed_the_message_says_how_it_is_given(cli: CommandLine) -> None:
    assert "Give overrides or the folder of a trial" in cli.refuse(*REPAIR)


@pytest.mark.slow
def test_a_decoder_whose_rate_is_too_high_learns_with_the_change(cli: CommandLine) -> None:
    small = ("model.units=32", "batch.size=16", "steps=300", "optimizer=adam_default", "aug=weak")
    data = ("data.synthetic.features=32", "data.synthetic.train_utterances=100")
    cli.run(*asked("lr=1"), *small, *data)
    found = repair(cli)
    assert (found["verdict"]["outcome"], found["verdict"]["cause"]) == ("exploded", "rate_too_high")
    assert found["answer"]["roles"] == ["learning rate"]
    assert 0.001 < found["answer"]["settings"]["schedule.lr_max"] < 0.5
    assert [trial["failed"] for trial in found["answer"]["trials"]] == [False] * 3
    assert all(one["trials"][0]["steps"] < 300 for one in found["tried"][:2]), "what explodes ends early"
