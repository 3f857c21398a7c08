"""The door `python -m stability.train`, run as the real command line."""

import fcntl
import json
import os
import pty
import random
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from stability.config.hydra import conf_folder
from stability.config.names import trial_name
from stability.core.checkout import ROOT
from stability.data import synthetic
from stability.diagnosis.finding import Outcome
from stability.trials.replay import replay
from tests.support.commandline import CommandLine, ended, rows, the_message, wait_for
from tests.support.configs import composed

DIGITS = ROOT.parent / "shared/data/spoken-digits"
STEPS = 120
OFTEN = (f"steps={STEPS}", "validate_every=7", "checkpoint_every=5")
ENDLESS = "steps=1000000"
EXPLODING = ("steps=150", "schedule.lr_max=3", "optimizer.clip_norm=null")
STOPPED = (*EXPLODING, "diagnosis.stop_on=[non_finite,bad_data,exploded]")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def verdict(trial: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((trial / "verdict.json").read_text())
    assert content["outcome"] in get_args(Outcome)
    return content


def checkpoint(trial: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(trial / f"checkpoints/{name}.pt", weights_only=True)
    return content


def assert_equal_trials(one: Path, other: Path) -> None:
    """Two folders hold the same trial to the last bit."""
    for name in ("signals.csv", "validation.csv", "verdict.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last", "best"):
        assert_equal(checkpoint(one, name), checkpoint(other, name))


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_help_imports_neither_torch_nor_mlflow(cli: CommandLine) -> None:
    program = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--help'];"
        "atexit.register(lambda: print('LOADED', sorted({'torch', 'mlflow', 'h5py', 'hydra'} & {*sys.modules})));"
        "runpy.run_module('stability.train', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=cli.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = ended(process, 0).out
    for group in ("optimizer: adam_default, official", "aug: none, strong, weak", "data: synthetic, synthetic_t15"):
        assert group in out
    assert "LOADED ['hydra']" in out
    assert [*cli.folder.iterdir()] == []


def test_another_version_of_hydra_is_an_error(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra, "__version__", "1.3.2")
    assert cli.refuse() == (
        "error: Training needs Hydra 1.4, but 1.3.2 is installed. Run: pip install 'training-stability[train]'\n"
    )


@pytest.mark.parametrize("turn", range(5))
def test_every_option_ends_in_a_verdict(cli: CommandLine, turn: int) -> None:
    """Five trials use every option of every group: trial n uses the nth option of each."""
    groups = {
        name: options(name) for name in ("optimizer", "loss", "schedule", "batch", "aug", "diagnosis", "precision")
    }
    assert max(map(len, groups.values())) == 5
    for name, those in groups.items():
        assert len({str(getattr(composed(f"{name}={option}"), name)) for option in those}) == len(those)
    chosen = [f"{name}={those[turn % len(those)]}" for name, those in groups.items()]
    small = ["model.units=8", "model.layers=2", "steps=2", "tracking=none", *chosen]
    ended(cli.fork_plain(*cli.synthetic, *small), 0)
    written = OmegaConf.to_container(OmegaConf.load(cli.trial() / "config.yaml"))
    assert isinstance(written, dict)
    wanted = asdict(composed(*small))
    assert {name: written[name] for name in groups} == {name: wanted[name] for name in groups}
    assert verdict(cli.trial())["outcome"] == "undecided"
    assert len(rows(cli.trial() / "signals.csv")) == 2


def test_every_model_ends_in_a_verdict(cli: CommandLine) -> None:
    names = options("model")
    data = [*cli.synthetic, "batch.size=4", "steps=1", "tracking=none"]
    ended(cli.fork_plain("--multirun", *data, f"model={','.join(names)}"), 0)
    trials = {
        OmegaConf.load(path.parent / "config.yaml").model.units: path.parent
        for path in cli.folder.glob("outputs/single/*/verdict.json")
    }
    assert len(trials) == len(names)
    assert {768, 96} <= trials.keys()
    sizes = {units: checkpoint(trial)["model_state_dict"] for units, trial in trials.items()}
    assert sizes[768]["_orig_mod.gru.weight_hh_l4"].shape == (3 * 768, 768)
    assert "_orig_mod.gru.weight_hh_l2" in sizes[96]
    assert "_orig_mod.gru.weight_hh_l3" not in sizes[96]


def test_the_log_of_a_trial_holds_what_was_printed_and_nothing_else(cli: CommandLine) -> None:
    printed = cli.run().out.splitlines()
    logged = [line.partition(" - ")[2] for line in (cli.trial() / "train.log").read_text().splitlines()]
    assert len(printed) > 15
    assert logged == printed
    out = cli.run("--multirun", "seed=1", "study=swept").out
    (log,) = cli.folder.glob("outputs/swept/*/train.log")
    text = log.read_text()
    assert "undecided: in_warmup" in text
    assert "step 11 " in text
    assert "[1/1] undecided" in out
    assert "INFO" not in out


def test_a_trial_is_sent_unless_tracking_is_none(cli: CommandLine) -> None:
    assert options("tracking") == ["mlflow", "none", "tensorboard", "wandb"]
    out = cli.run("tracking=mlflow").out
    assert re.search(
        r"mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db` and open http://127.0.0.1:5000/#", out
    )
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        assert store.execute("SELECT value FROM tags WHERE key = 'outcome'").fetchall() == [("undecided",)]
        steps = store.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchall()
    assert steps == [(12,)]
    assert "tracking=none" in cli.run("study=untracked").out
    assert not (cli.trial("untracked") / "tracking.json").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=nope", ["optimizer/nope", "adam_default", "official"]),
        ("optimiser=official", ["optimiser", "Did you mean: 'optimizer'", "There are: optimizer, schedule, aug"]),
        ("optimizer.epsilonn=1", ["epsilonn", "There are: epsilon, beta1"]),
        ("optimizer=null", ["Config group override must be a string", "as in model=small"]),
        ("+extra=1", ["Unknown in the configuration: extra", "There are: optimizer, schedule, aug"]),
        ("~optimizer", ["optimizer must be given"]),
        ("steps=many", ["steps=many", "Integer"]),
        ("optimizer.fused=maybe", ["maybe", "bool"]),
        ("loss.reduction=sum", ["'sum'", "per_utterance_sum", "per_label_mean"]),
        ("steps=0", ["steps=0: it has to be 1 or more"]),
        ("schedule.lr_max=-0.1", ["schedule.lr_max=-0.1: it has to be 0 or more"]),
        ("optimizer.epsilon=nan", ["optimizer.epsilon=nan: it has to be 0 or more"]),
        ("optimizer.clip_norm=0", ["optimizer.clip_norm=0.0: it has to be above 0"]),
        ("model.time_scale=0", ["model.time_scale=0.0: it has to be above 0"]),
        ("model.rnn_dropout=1", ["model.rnn_dropout=1.0: it has to be at least 0 and below 1"]),
        ("diagnosis.stop_on=[slow]", ["'slow'", "non_finite", "bad_data", "exploded", "mode_collapse"]),
        ("diagnosis.stop_on=[exploded]", ["bad_data, non_finite must be in the list"]),
        ("batch.size=3", ["batch.size=3 is smaller than batch.days=4"]),
        ("data=t15", ["data.path must be given, as in data.path=VALUE"]),
        ("steps", ["Cannot read steps. Write NAME=VALUE"]),
        ("steps=[1", ["Cannot read steps=[1. Close all brackets"]),
        ("seed=0,", ["Cannot read seed=0,", "no blanks after commas: seed=A,B"]),
        ("seed=0,1", ["To sweep over them, add --multirun", "'seed=[0,1]'"]),
        ("study=a(b)", ["quote it", "'study=\"a(b)\"'"]),
        ("data.sessions=day0", ["data.sessions is a list. Write it in brackets: 'data.sessions=[day0]'."]),
        ("lr=-1", ["schedule.lr_max=-1.0: it has to be 0 or more"]),
        ("steps=${nothing}", ["nothing"]),
    ],
)
def test_a_wrong_override_is_an_error_that_says_what_is_allowed(
    cli: CommandLine, override: str, words: list[str]
) -> None:
    message = the_message(ended(cli.fork_plain(override), 1))
    for word in words:
        assert word in message
    assert [*cli.folder.iterdir()] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """The folder of a trial that was trained without interruption."""
    cli = CommandLine(tmp_path_factory.mktemp("undisturbed"), sets)
    cli.run(*OFTEN)
    return cli.trial()


def test_the_same_command_gives_the_same_bits(cli: CommandLine, undisturbed: Path) -> None:
    cli.run(*OFTEN, "outputs=elsewhere", "study=again")
    again = cli.trial("again", "elsewhere")
    assert again.name == undisturbed.name
    assert_equal_trials(again, undisturbed)


def test_synthetic_data_read_as_t15_data_give_the_same_trial(cli: CommandLine, undisturbed: Path) -> None:
    assert options("data") == ["synthetic", "synthetic_t15", "t15"]
    made_up = composed(*cli.synthetic).data.synthetic
    assert made_up is not None
    folder = synthetic.make_dataset(made_up, cli.sets)
    cli.run(*OFTEN, "data=t15", f"data.path={folder}")
    assert_equal_trials(cli.trial(), undisturbed)


def test_a_killed_trial_continues_to_the_same_bits(cli: CommandLine, undisturbed: Path) -> None:
    moments = sorted(random.sample(range(1, STEPS // 2), 3))
    print("killed at", moments)
    signals = cli.folder / "outputs/single" / undisturbed.name / "signals.csv"
    for moment in moments:
        process = cli.fork(*OFTEN)
        wait_for(lambda moment=moment: len(rows(signals)) >= moment, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
    assert not (cli.trial() / "verdict.json").exists()
    cli.run(*OFTEN)
    assert_equal_trials(cli.trial(), undisturbed)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_a_stopped_trial_continues_to_the_same_bits(
    cli: CommandLine, undisturbed: Path, number: signal.Signals, status: int
) -> None:
    """A scheduler sends SIGTERM more than once, to the process and to its group."""
    signals = cli.folder / "outputs/single" / undisturbed.name / "signals.csv"
    process = cli.fork(*OFTEN)
    wait_for(lambda: len(rows(signals)) > 10, process)
    for _ in range(1 if number == signal.SIGINT else 3):
        process.send_signal(number)
    printed = ended(process, status).err
    done = len(rows(signals))
    assert printed == f"Stopped before step {done}. The same command goes on from there.\n"
    assert checkpoint(cli.trial())["stability"]["step"] == done
    assert f"steps {done} to {STEPS} (resumed)" in cli.run(*OFTEN).out
    assert_equal_trials(cli.trial(), undisturbed)


def test_a_trial_is_trained_by_one_process_at_a_time(cli: CommandLine) -> None:
    first = cli.fork(ENDLESS)
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/signals.csv")), first)
    message = cli.fail(ENDLESS)
    assert f"{cli.trial()} is being trained by another process" in message
    first.send_signal(signal.SIGINT)
    ended(first, 130)


@pytest.mark.slow
def test_stopping_a_sweep_stops_all_of_it(cli: CommandLine) -> None:
    sweep = cli.fork("--multirun", ENDLESS, "seed=0,1")
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/signals.csv")), sweep)
    sweep.send_signal(signal.SIGINT)
    assert "The same command goes on from there." in ended(sweep, 130).err
    assert "seed0" in cli.trial().name


def test_a_finished_trial_is_shown_and_not_trained_again(cli: CommandLine) -> None:
    out = cli.run("validate_every=4").out
    assert "\x1b" not in out
    assert [int(step) for step in re.findall(r"^step (\d+) +loss .* blank .* PER ", out, re.M)] == [0, 4, 8, 11]
    trial = cli.trial()
    assert verdict(trial)["outcome"] == "undecided"
    shown = out[out.index("undecided") :]
    for place in ("verdict.json", "run.png", "checkpoints/best.pt"):
        assert f" {(trial / place).relative_to(cli.folder)}\n" in shown
        assert (trial / place).is_file()
    before = {path: path.stat().st_mtime_ns for path in trial.glob("*.csv")}

    (trial / "run.png").unlink()  # as if it had been killed just after the verdict
    again = cli.run().out
    assert "fresh=true" in again
    assert again.startswith(shown[: shown.index("tracking=none")])
    assert {path: path.stat().st_mtime_ns for path in trial.glob("*.csv")} == before
    assert (trial / "run.png").is_file()

    (trial / "notes.txt").write_text("mine")
    (trial / "signals.csv").write_text("spoilt")
    assert "steps 0 to 12" in cli.run("fresh=true").out
    assert len(rows(trial / "signals.csv")) == 12
    assert (trial / "notes.txt").exists()


def test_a_diverged_trial_is_a_result(cli: CommandLine) -> None:
    out = cli.run("schedule.lr_max=1e30", "schedule.warmup_steps=1", "optimizer.clip_norm=null").out
    content = verdict(cli.trial())
    onset = content["onset_step"]
    assert content["outcome"] == "non_finite"
    assert 0 < onset < 12
    assert f"non_finite: {content['cause']}, since step {onset}" in out
    assert content["advice"] in out
    weights = checkpoint(cli.trial())["model_state_dict"]
    assert all(bool(p.isfinite().all()) for p in weights.values())


def test_an_explosion_ends_a_trial_if_stop_on_has_it(cli: CommandLine) -> None:
    out = cli.run(*STOPPED, "tracking=mlflow").out
    trial = cli.trial()
    content, made = verdict(trial), len(rows(trial / "signals.csv"))
    assert (content["outcome"], content["cause"]) == ("exploded", "rate_too_high")
    assert content["detected_step"] < made < 100
    assert content["evidence"]["steps saved"] == 150 - made
    assert content["advice"]
    assert f"stopped at step {made} of 150: exploded, found at step {content['detected_step']}" in out
    assert len(rows(trial / "validation.csv")) == 2, "it is validated where it ends"
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        assert store.execute("SELECT value FROM tags WHERE key = 'outcome'").fetchall() == [("exploded",)]
        assert store.execute("SELECT value FROM metrics WHERE key = 'steps_saved'").fetchall() == [(150 - made,)]
    again = replay(trial, "cpu")
    assert (again.flight.outcome, again.flight.step) == ("exploded", content["onset_step"])
    assert [attempt.fails for attempt in again.attempts.values()] == [True, True]


@pytest.mark.slow
def test_an_explosion_may_recover_by_default(cli: CommandLine) -> None:
    out = cli.run(*EXPLODING).out
    assert len(rows(cli.trial() / "signals.csv")) == 150
    assert "steps saved" not in verdict(cli.trial())["evidence"]
    assert "stopped at step" not in out
    assert replay(cli.trial(), "cpu").flight.outcome == "exploded", "what was found is recorded all the same"


def test_a_trial_that_is_killed_and_resumed_stops_at_the_same_step(cli: CommandLine) -> None:
    cli.run(*STOPPED, "study=undisturbed")
    process = cli.fork(*STOPPED, "checkpoint_every=3")
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/checkpoints/last.pt")), process)
    process.kill()
    process.communicate()
    assert not (cli.trial() / "verdict.json").exists()
    assert "(resumed)" in cli.run(*STOPPED, "checkpoint_every=7").out
    assert_equal_trials(cli.trial(), cli.trial("undisturbed"))
    (cli.trial() / "verdict.json").unlink()  # as if it had been killed between its last step and its verdict
    assert "stopped at step" in cli.run(*STOPPED).out
    assert_equal_trials(cli.trial(), cli.trial("undisturbed"))


def test_what_stops_a_trial_is_part_of_its_name() -> None:
    plain, eager = (trial_name(composed(f"diagnosis={name}")) for name in ("default", "eager"))
    assert plain != eager
    for written in ("[bad_data,non_finite]", "[non_finite,bad_data,bad_data]"):
        assert trial_name(composed(f"diagnosis.stop_on={written}")) == plain


def test_a_trial_starts_from_the_weights_of_init_from(cli: CommandLine) -> None:
    cli.run("study=first", "validate_every=4")
    best = cli.trial("first") / "checkpoints/best.pt"
    saved = checkpoint(cli.trial("first"), "best")
    cli.run("study=second", f"init_from={best}")
    start = [float(value) for value in rows(cli.trial("second") / "validation.csv")[0].split(",")]
    assert start == pytest.approx([0, saved["val_PER"], saved["val_loss"]])  # step 0 has learning rate 0

    wider = cli.fail("study=wider", "model.units=9", f"init_from={best}")
    assert f"{best} is a checkpoint of another model" in wider
    assert "is (24,) and should be (27,)" in wider
    assert "There is no checkpoint at nowhere.pt." in cli.fail("study=none", "init_from=nowhere.pt")
    garbage = cli.folder / "garbage.pt"
    garbage.write_bytes(bytes(range(256)) * 8)
    assert f"{garbage} cannot be read as a checkpoint" in cli.fail("study=garbage", f"init_from={garbage}")


def test_a_terminal_shows_a_bar(cli: CommandLine) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    process = cli.start("validate_every=4", stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while some := os.read(ours, 1 << 16):
            seen += some
    except OSError:
        pass  # how Linux says that the other side was closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").split("\n")
    bars = [line for line in lines if "━" in line]
    last = re.fullmatch(
        r"loss [\d.]+  blank \d+%  gradient [\d.]+  PER \d\.\d{3}  [\d.]+ steps/s ━+ 12/12 \d\d:\d\d", bars[-1].strip()
    )
    assert last, bars[-1]
    assert not any(line.startswith("step ") for line in lines)
    assert any(line.startswith("undecided") for line in lines)


def test_an_installed_wheel_has_all_it_needs(cli: CommandLine) -> None:
    made, installed = cli.folder / "wheel", cli.folder / "installed"
    offline = ("--no-deps", "--no-index", f"--find-links={made}")
    for command in (
        ["hatchling", "build", "-t", "wheel", "-d", str(made)],
        ["pip", "install", *offline, f"--target={installed}", "training-stability"],
    ):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    program = (
        "from stability.config.hydra import conf_folder; from stability.analysis.claims import find_claims;"
        "print(conf_folder(), find_claims())"
    )
    where = [sys.executable, "-c", program]
    found = subprocess.run(where, cwd=cli.folder, env=environment, check=True, capture_output=True, text=True).stdout
    assert found.split() == [f"{installed}/stability/conf", f"{installed}/stability/conf/claims/original.yaml"]
    assert (installed / "stability/reporting/template.html.j2").exists()
    listed = subprocess.run(
        [installed / "bin/stability", "--help"], env=environment, check=True, capture_output=True, text=True
    )
    assert "train one trial" in listed.stdout
    said = cli.run("data.path=null", "steps=2", env=environment)  # writes its own set, from the wheel's words
    assert "not compiled" not in said.out + said.err
    assert verdict(cli.trial())["outcome"] == "undecided"
    assert [*(cli.folder / "outputs/data").glob("synthetic-*/synthetic.day04/data_test.hdf5")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not DIGITS.is_dir(), reason="the spoken digits are not next to the checkout")
def test_spoken_digits_are_learned(cli: CommandLine) -> None:
    ended(cli.start_plain("data=t15", f"data.path={DIGITS}", "model=small", "tracking=none"), 0)
    assert verdict(cli.trial())["outcome"] == "stable"
    assert float(rows(cli.trial() / "validation.csv")[-1].split(",")[1]) < 0.10


def test_a_sweep_has_no_single_configuration(cli: CommandLine) -> None:
    assert "To see what a sweep would train: --multirun sweep.dry_run=true" in cli.refuse("--multirun", "--cfg", "job")
