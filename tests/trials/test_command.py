"""Trials of programs that nobody here touched, by the real command line."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import read_verdict
from tests.support.commandline import CommandLine, ended, wait_for
from tests.support.programs import command, is_running, runs, write_program
from tests.support.trial_folders import without_figure

COMMAND = ("trainer=command", "trainer.log=log.csv", "settings.lr=0.1")


@pytest.fixture(autouse=True)
def _program(cli: CommandLine) -> None:
    write_program(cli.folder)


def signals_of(cli: CommandLine) -> list[Path]:
    return [*cli.folder.glob("outputs/single/*/signals.csv")]


def shell(text: str) -> str:
    """The override that starts a script of the shell."""
    return f"trainer.command=sh -c '{text}'"


def test_a_program_is_started_with_its_settings_in_a_folder_of_its_own(cli: CommandLine) -> None:
    out = cli.run(*COMMAND, command("--lr {lr} --seed {seed} --note {note}"), "settings.note='two words'", "seed=7").out
    trial = cli.trial()
    words = [sys.executable, "-S", "-E", str(cli.folder / "train.py")]
    (run,) = runs(trial)
    assert run["command"] == [*words, "--lr", "0.1", "--seed", "7", "--note", "two words"]
    assert (run["how"], run["exit_status"]) == ("ended", 0)
    assert "note='two words'" in (trial / "output.log").read_text()
    assert [path.name for path in (trial / "work").iterdir()] == ["log.csv"]
    assert len(read_table(trial / "signals.csv").steps) == 60
    assert read_table(trial / "validation.csv").names == ("per",)
    assert read_verdict(trial / "verdict.json").outcome == "stable"
    assert "WER 0.1" in out
    (loss,) = re.findall(r"^step 9 +loss (\S+)", out, re.MULTILINE)
    assert float(loss) == pytest.approx(read_table(trial / "signals.csv")["loss"][9], rel=1e-3)
    assert str(trial.relative_to(cli.folder) / "output.log") in out
    assert (trial / "run.png").is_file()
    settings = (trial / "config.yaml").read_text()
    assert "optimizer" not in settings
    assert (
        "fresh=true"
        in cli.run(
            *COMMAND, command("--lr {lr} --seed {seed} --note {note}"), "settings.note='two words'", "seed=7"
        ).out
    )


def test_what_is_doomed_is_ended_if_stop_on_says_so(cli: CommandLine) -> None:
    given = (*COMMAND, "settings.lr=3", command("--lr {lr} --pause 0.02 --steps 3000"), "trainer.steps=3000")
    out = cli.run(*given, "diagnosis.stop_on=[exploded]").out
    verdict = read_verdict(cli.trial() / "verdict.json")
    assert verdict.outcome == "exploded"
    saved = verdict.evidence["steps saved"]
    assert isinstance(saved, int)
    assert f"stopped at step {3000 - saved} of 3000: exploded" in out
    (run,) = runs(cli.trial())
    assert (run["how"], run["exit_status"]) == ("ended as doomed", 143)


def test_a_program_that_ignores_sigterm_is_killed_with_all_that_it_started(cli: CommandLine) -> None:
    stubborn = 'trap "" TERM; sleep 1000 & echo $! > pid; echo step,loss > log.csv; wait; wait; sleep 1000'
    process = cli.fork(*COMMAND[:2], shell(stubborn), "trainer.grace=0.3")
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/work/log.csv")), process)
    inner = int((cli.trial() / "work/pid").read_text())
    process.send_signal(signal.SIGINT)
    assert "Stopped the program. The same command runs the program anew." in ended(process, 130).err
    assert not is_running(inner)
    (run,) = runs(cli.trial())
    assert (run["how"], run["exit_status"]) == ("stopped by a signal", -9)


def test_what_a_program_has_left_running_is_ended(cli: CommandLine) -> None:
    script = 'sleep 1000 & echo $! > pid; printf "step,loss\\n0,1\\n1,2\\n" > log.csv'
    cli.run(*COMMAND[:2], shell(script))
    assert not is_running(int((cli.trial() / "work/pid").read_text()))
    assert [(run["how"], run["exit_status"]) for run in runs(cli.trial())] == [("ended", 0)]


def test_a_killed_parent_leaves_no_program_behind(cli: CommandLine) -> None:
    process = cli.fork(*COMMAND[:2], shell("sleep 1000 & echo $! > pid; echo $$ > log.csv; wait"), "trainer.grace=0.1")
    wait_for(lambda: any(path.read_text() for path in cli.folder.glob("outputs/single/*/work/log.csv")), process)
    numbers = [int((cli.trial() / "work" / name).read_text()) for name in ("pid", "log.csv")]
    assert all(map(is_running, numbers))
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(map(is_running, numbers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_running, numbers))


def test_a_new_run_waits_until_the_program_of_a_killed_one_has_ended(cli: CommandLine) -> None:
    old = 'trap "" TERM; while sleep 0.02; do echo old >> $(pwd)/log.csv; done'
    new = 'printf "step,loss\\n0,1\\n1,2\\n" > log.csv; sleep 0.2'
    script = f"if [ -e {cli.folder}/new ]; then {new}; else {old}; fi"
    process = cli.fork(*COMMAND[:2], shell(script), "trainer.grace=1")
    wait_for(lambda: bool([*cli.folder.glob("outputs/single/*/work/log.csv")]), process)
    process.kill()
    process.communicate()
    (cli.folder / "new").touch()
    cli.run(*COMMAND[:2], shell(script), "trainer.grace=1")
    assert (cli.trial() / "work/log.csv").read_text() == "step,loss\n0,1\n1,2\n"
    assert [run.get("how") for run in runs(cli.trial())] == [None, "ended"]


def test_a_stopped_program_is_run_anew_in_an_empty_folder(cli: CommandLine) -> None:
    process = cli.fork(*COMMAND, command("--lr {lr} --pause 0.1"))
    wait_for(lambda: bool(signals_of(cli)), process)
    process.send_signal(signal.SIGTERM)
    ended(process, 75)
    assert not (cli.trial() / "verdict.json").exists()
    (cli.trial() / "work/log.csv").write_text("step,loss\n1000,5\n")
    cli.run(*COMMAND, command("--lr {lr} --pause 0.1").replace("0.1", "0.0"), "study=other")
    without_figure(cli.trial())
    (cli.folder / "train.py").write_text((cli.folder / "train.py").read_text().replace("time.sleep", "float"))
    cli.run(*COMMAND, command("--lr {lr} --pause 0.1"))
    assert [run["how"] for run in runs(cli.trial())] == ["stopped by a signal", "ended"]
    assert read_table(cli.trial() / "signals.csv").steps[-1] == 59
    assert not (cli.trial() / "work/state").exists(), "what the first run left is gone"


def test_a_stopped_program_is_resumed_by_its_own_means(cli: CommandLine) -> None:
    resume = command("--lr {lr} --pause 0.001 --resume").replace("trainer.command", "trainer.resume")
    given = (*COMMAND, command("--lr {lr} --pause 0.1"), resume)
    process = cli.fork(*given)
    wait_for(lambda: bool(signals_of(cli)) and len(read_table(signals_of(cli)[0]).steps) > 3, process)
    process.send_signal(signal.SIGTERM)
    assert "The same command goes on from there." in ended(process, 75).err
    made = int((cli.trial() / "work/state").read_text())
    assert "(resumed)" in cli.run(*given).out
    table = read_table(cli.trial() / "signals.csv")
    assert [*table.steps] == [*range(60)]
    assert (cli.trial() / "output.log").read_text().count("trained with") == 1
    assert 3 < made < 60
    assert "--resume" in runs(cli.trial())[1]["command"]


def test_the_programs_own_configuration_file_is_rewritten(cli: CommandLine) -> None:
    (cli.folder / "settings.json").write_text('{"lr": 5, "seed": 0, "steps": 20, "model": {"rate": 1}}')
    given = ("trainer=command", "trainer.log=log.csv", command("--config {config}"), "trainer.config=settings.json")
    cli.run(*given, "settings.lr=0.1", "settings.seed={seed}", "settings.model.rate=2.5", "seed=4")
    written = json.loads((cli.trial() / "work/settings.json").read_text())
    assert written == {"lr": 0.1, "seed": 4, "steps": 20, "model": {"rate": 2.5}}
    assert len(read_table(cli.trial() / "signals.csv").steps) == 20
    assert json.loads((cli.folder / "settings.json").read_text())["lr"] == 5


def test_yaml_is_rewritten_with_its_types_and_other_values(cli: CommandLine) -> None:
    (cli.folder / "a.yaml").write_text("gpu: '1'  # a text\nlr: 1e-3\ndata: {sessions: [a, b], dir: x}\nout: null\n")
    (cli.folder / "data").mkdir()
    script = 'cat a.yaml; printf "step,loss\\n0,1\\n1,2\\n" > log.csv'
    overrides = (
        "trainer.config=a.yaml",
        "settings.data.sessions=[c]",
        "settings.data.dir=./data",
        "settings.out={folder}/o",
    )
    cli.run("trainer=command", "trainer.log=log.csv", shell(script), *overrides)
    trial = cli.trial()
    printed = (trial / "output.log").read_text()
    folder = cli.folder
    assert printed.startswith("gpu: '1'\nlr: 0.001\ndata:\n  sessions:\n  - c\n")
    assert f"dir: {folder}/data\n" in printed
    assert f"out: {trial}/work/o\n" in printed


def test_without_a_log_what_the_program_prints_is_read(cli: CommandLine) -> None:
    cli.run("trainer=command", shell('for i in 1 2 3 4; do echo "step $i loss: 1.5"; done'), "study=printed")
    assert [*read_table(cli.trial("printed") / "signals.csv").steps] == [1, 2, 3, 4]


def test_a_trials_folder_may_be_named_by_way_of_another(cli: CommandLine) -> None:
    cli.run(*COMMAND, command("--lr {lr} --seed {seed}"), "outputs=elsewhere/../outputs")
    assert read_verdict(cli.trial() / "verdict.json").outcome == "stable"


def test_names_that_are_not_known_can_be_given(cli: CommandLine) -> None:
    script = 'printf "step,strange\\n0,1\\n1,2\\n" > log.csv'
    message = cli.run("trainer=command", "trainer.log=log.csv", shell(script), status=1).err
    assert "It has these names: step, strange." in message
    assert "trainer.names={loss: train_loss_avg}" in message
    cli.run("trainer=command", "trainer.log=log.csv", shell(script), "trainer.names={loss: strange}")
    assert read_table(cli.trial() / "signals.csv").names == ("loss",)
    assert "losses is not a signal" in cli.fail(
        "trainer=command", "trainer.log=log.csv", shell(script), "trainer.names={losses: strange}", "fresh=true"
    )


def test_a_program_that_a_number_ended_which_is_not_finite_has_a_verdict(cli: CommandLine) -> None:
    script = (
        'for i in $(seq 9); do echo "step $i loss: 1.$i"; done; echo "RuntimeError: the norm is non-finite"; exit 1'
    )
    out = cli.run("trainer=command", shell(script)).out
    assert "non_finite" in out
    verdict = read_verdict(cli.trial() / "verdict.json")
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 10)
    assert "exit status 1: RuntimeError" in str(verdict.evidence["the program"])


def test_an_error_after_a_fault_in_the_log_is_a_verdict(cli: CommandLine) -> None:
    script = 'for i in $(seq 20); do echo "step $i loss: 1.$i"; done; echo "step 21 loss: nan"; echo killed; exit 3'
    cli.run("trainer=command", shell(script))
    verdict = read_verdict(cli.trial() / "verdict.json")
    assert (verdict.outcome, verdict.evidence["the program"]) == ("non_finite", "ended with exit status 3: killed")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["trainer.command=pyhton train.py"], ["no program pyhton on the PATH"]),
        (["trainer.command=./start.py"], ["no program ./start.py in", "Check its name"]),
        (["trainer.command=./train.py"], ["./train.py cannot be executed", "chmod +x"]),
        (["trainer.command=sh nothing.sh"], ["no nothing.sh in"]),
        (["trainer.command=sh -u nothing.sh"], ["no nothing.sh in"]),
        (["trainer.command=sh train.sh > log.txt"], ["> is for a shell", "sh -c 'cd /repo"]),
        (["trainer.command=A=1 sh train.sh"], ["A=1 is for a shell", "env NAME=VALUE"]),
        (["trainer.command=cd /repo && sh train.sh"], ["&& is for a shell"]),
        (["trainer.command=sh 'a"], ["trainer.command cannot be read", "No closing quotation"]),
        ([], ["trainer.command must be given"]),
        (["trainer.command=sh {x}"], ["Nothing fills the placeholder {x}: give settings.x=VALUE", "write {{x}}"]),
        (["trainer.command=sh", "settings.x=1"], ["would not get settings.x", "--x {x}"]),
        (["trainer.command=sh {config}"], ["name its model, trainer.config=FILE"]),
        (["trainer.command=sh {a}", "settings.a={lr}"], ["may hold only {seed}, {folder} and {config}"]),
        (["trainer.command=sh", "settings.seed=1"], ["a trial's seed is given as seed=1"]),
        (["trainer.command=sh", "optimizer=adam_default"], ["optimizer=adam_default is a setting of this project's"]),
        (["trainer.command=sh", "lr=3"], ["schedule.lr_max=3 is a setting", "settings.lr=VALUE"]),
        (["trainer.command=sh", "trainer.limit=0"], ["trainer.limit=0.0: it has to be above 0"]),
        (["trainer.command=sh", "trainer.log=/tmp/a.csv"], ["has to be in the folder in which its program runs"]),
        (["trainer.command=sh", "trainer.config=no.yaml"], ["no.yaml: there is no such file"]),
        (["trainer.command=sh", "trainer.config=list.yaml"], ["is not a mapping of names to values"]),
        (["trainer.command=sh", "trainer.config=bad.yaml"], ["bad.yaml cannot be read", "line 2. Mend the file"]),
        (["trainer.command=sh", "trainer.config=twice.yaml"], ["found duplicate key a, line 2"]),
        (["trainer.command=sh", "trainer.config=mark.json", "settings.c=1"], ["It has a. Check the name"]),
        (["trainer.command=sh", "trainer.config=keys.yaml", "settings.c=1"], ["It has 1, False, b. Check the name"]),
        (["trainer.command=sh", "trainer.config=a.toml"], ["only YAML and JSON files"]),
        (
            ["trainer.command=sh", "trainer.config=a.json", "settings.b.d=1"],
            ["has no value called b.d", "It has c"],
        ),
    ],
)
def test_bad_input_is_one_message_with_the_mend(cli: CommandLine, given: list[str], words: list[str]) -> None:
    (cli.folder / "list.yaml").write_text("[1, 2]")
    (cli.folder / "bad.yaml").write_text("{a: [")
    (cli.folder / "twice.yaml").write_text("a: 1\na: 2\n")
    (cli.folder / "keys.yaml").write_text("{1: 2, off: 3, b: 4}")
    (cli.folder / "mark.json").write_text('\ufeff{"a": 1}')  # as some editors on Windows begin a file
    (cli.folder / "a.toml").write_text("a = 1")
    (cli.folder / "a.json").write_text('{"a": 1, "b": {"c": 2}}')
    message = cli.refuse("trainer=command", *given)
    for word in words:
        assert word in message
    assert "seed=1" in message or not any(cli.folder.glob("outputs/single/*/verdict.json"))


def test_settings_and_commands_without_the_trainer_are_refused(cli: CommandLine) -> None:
    assert "settings.lr is for a program of yours: add trainer=command" in cli.refuse("settings.lr=1")
    assert "trainer.command is for a program of yours" in cli.refuse("trainer.command=sh")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first; echo the reason; exit 1", ["ended with exit status 1", "first | the reason", "output.log"]),
        (
            'echo "No such file or directory: \\047train.py\\047"; exit 1',
            ["It runs in a folder of its own, without train.py: give it the whole path."],
        ),
        ("exit 4", ["ended with exit status 4", "It printed nothing."]),
        ("kill -9 $$", ["was ended by SIGKILL, perhaps because memory ran out"]),
        ("touch a.txt", ["there is no log at work/log.csv: work has a.txt", "trainer.log=FILE"]),
        ("true", ["there is no log at work/log.csv: work is empty"]),
        ("touch log.csv", ["its log cannot be read", "is empty"]),
        ('printf "step,loss\\n0,1\\n1,x\\n2,3\\n" > log.csv', ["its log cannot be read", "line 3"]),
        (
            'printf "step,loss\\n0,1\\n1,2\\n" > log.csv; exit 2',
            ["ended with exit status 2", "Its log has steps up to 1; so far it is undecided"],
        ),
    ],
)
def test_a_program_that_fails_is_one_message_that_says_what_is_known(
    cli: CommandLine, script: str, words: list[str]
) -> None:
    message = cli.fail("trainer=command", "trainer.log=log.csv", shell(script))
    for word in words:
        assert word in message
    assert not (cli.trial() / "verdict.json").exists()
    assert runs(cli.trial())[0]["exit_status"] is not None


def test_a_program_that_never_ends_is_ended_at_the_limit(cli: CommandLine) -> None:
    script = 'printf "step,loss\\n0,1\\n1,2\\n" > log.csv; sleep 1000'
    given = ("trainer=command", "trainer.log=log.csv", shell(script), "trainer.limit=0.01")
    message = cli.fail(*given)
    assert "had not ended after trainer.limit=0.01 minutes, so it was ended" in message
    assert "so far it is undecided" in message


def test_a_module_is_found_where_the_command_was_given(cli: CommandLine) -> None:
    (cli.folder / "trainings").mkdir()
    (cli.folder / "train.py").rename(cli.folder / "trainings/small.py")
    cli.run(*COMMAND, f"trainer.command={sys.executable} -S -m trainings.small --lr {{lr}}")
    assert read_verdict(cli.trial() / "verdict.json").outcome == "stable"
