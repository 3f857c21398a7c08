"""The flight recorder and its replay: the recording of a failed step, and the kind of fault that repeating it shows."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from stability import diagnose
from stability.config.schema import Config
from stability.data.batches import training_batch
from stability.data.records import Dataset
from stability.diagnosis.table import append_table
from stability.diagnosis.verdict import Verdict
from stability.engine.decoder import Parameters, forward
from stability.engine.gradients import examine
from stability.engine.stack import Stack
from stability.engine.step import train_steps
from stability.trials.checkpoint import restore
from stability.trials.recorder import Recorder, read_flight
from stability.trials.replay import replay
from stability.trials.requests import Slot
from stability.trials.run import run_trial
from stability.trials.setup import open_data
from tests.support.commandline import CommandLine, ended, rows
from tests.support.configs import tiny
from tests.support.reference import ReferenceTrainer, reference
from tests.support.stacks import column, copied, stack_of, trained

# With these settings numbers become too large for fp16 in four steps, but not for fp32 and fp64.
TOO_LARGE_FOR_FP16 = ("precision=fp16", "schedule.lr_max=1e4", "optimizer.clip_norm=null", "aug=none")
SYNTHETIC = ("features=6", "days=4", "train_utterances=6", "val_utterances=5", "words=1")


def settings(root: Path, *overrides: str) -> Config:
    """The configuration of a tiny trial on a tiny synthetic set. All files are under `root`."""
    data = (f"data.synthetic.{setting}" for setting in SYNTHETIC)
    return tiny(*data, f"outputs={root}", "steps=12", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial that failed in fp16, with its data next to it."""
    root = tmp_path_factory.mktemp("finished")
    run_trial(settings(root, *TOO_LARGE_FOR_FP16), root / "trial")
    return root / "trial"


@pytest.fixture
def trial(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "trial"))


def message(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """Return the only message of a replay that fails."""
    assert diagnose.main(["--replay", str(folder), "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    return err


def write_trial(folder: Path, config: Config, stack: Stack, dataset: Dataset, count: int) -> None:
    """Train `count` steps with a stack, and write the files that a trial has in its folder then."""
    folder.mkdir()
    (table,) = train_steps(stack, dataset.train, count)
    append_table(folder / "signals.csv", table)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def write_feature(file: Path, utterance: str, value: float) -> None:
    """Change one number of an utterance. The file may be open elsewhere, so a changed copy replaces it."""
    copy = Path(shutil.copyfile(file, file.with_suffix(".copy")))
    with h5py.File(copy, "a") as day:
        day[utterance]["input_features"][20, 1] = value
    copy.replace(file)


def test_a_failed_trial_is_recorded_and_its_step_is_repeated(cli: CommandLine) -> None:
    out = cli.run(*TOO_LARGE_FOR_FP16, "schedule.warmup_steps=4").out
    trial = cli.trial()
    assert f"flight recording  {trial.relative_to(cli.folder)}/flight\n" in out
    command = re.findall("`(python -m stability.diagnose --replay [^`]*)`", out)
    replayed = subprocess.Popen(
        [sys.executable, *command[0].split()[1:]],
        cwd=cli.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = ended(replayed, 0).out
    verdict = json.loads((trial / "verdict.json").read_text())
    assert f"{trial.relative_to(cli.folder)}: non_finite since step {verdict['onset_step']}, seed 0" in out
    assert re.search(r"fp16 +yes +nan +nan +(gru|head|loss)", out)
    assert re.search(r"fp32 +no +\d", out)
    assert re.search(r"fp64 +no +\d", out)
    assert "precision: It does not fail in a wider precision" in out
    assert len(re.findall(r"synthetic.day\d\d trial_\d{4}, block 0, number \d, '\w+'", out)) == 8


def test_the_verdict_of_a_failed_trial_is_strict_json_and_is_read_again(trial: Path, finished: Path) -> None:
    text = (trial / "verdict.json").read_text()
    evidence = json.loads(text, parse_constant=pytest.fail)["evidence"]
    assert {"nan", "inf"} & {value for value in evidence.values() if isinstance(value, str)}
    assert run_trial(settings(finished.parent, *TOO_LARGE_FOR_FP16), trial) == Verdict.from_json(text)


def test_the_recording_describes_the_batch_of_the_step(finished: Path) -> None:
    json.loads((finished / "flight/flight.json").read_text(), parse_constant=pytest.fail)  # it is strict JSON
    flight = read_flight(finished)
    verdict = json.loads((finished / "verdict.json").read_text())
    assert (flight.outcome, flight.step, flight.detected_step) == ("non_finite", verdict["onset_step"], flight.step)
    assert (flight.seed, flight.precision, flight.device) == (0, "fp16", "cpu")
    config = settings(finished.parent, *TOO_LARGE_FOR_FP16)
    dataset = open_data(config, torch.device("cpu"))
    assert Path(flight.data) == dataset.train.path.resolve()
    batch = training_batch(dataset.train, 6, 3, seed=0, step=flight.step)
    assert sorted(u.row for u in flight.batch) == [*range(6)]
    for u in flight.batch:
        record = dataset.train.records[batch.utterances[u.row]]
        assert record.labels is not None
        assert (u.session, u.name) == (dataset.sessions[record.day], record.name)
        assert (u.block, u.number) == (0, int(record.name.removeprefix("trial_")))
        assert (u.sentence, u.labels) == (record.transcription, len(record.labels))
        assert u.frames >= u.labels
        assert u.input_finite
        assert u.can_be_aligned
        assert 0 < u.largest_input < 20
    finite = [math.isfinite(u.loss) for u in flight.batch]
    assert finite == sorted(finite), "the utterances whose loss is not finite come first"
    assert not finite[0]


def test_the_state_is_the_one_before_the_failed_step(finished: Path) -> None:
    """Weights, moments, step and loss scale. Later steps would have halved the loss scale."""
    config = settings(finished.parent, *TOO_LARGE_FOR_FP16)
    dataset, flight = open_data(config, torch.device("cpu")), read_flight(finished)
    wanted, _ = trained([config], dataset, flight.step)
    stack = stack_of([config], dataset)
    restore(finished / "flight/state.pt", stack, 0)
    assert_same(stack, wanted)


def assert_same(one: Stack, other: Stack) -> None:
    assert one.step == other.step
    for name in ("failed", "loss_scale", "steps_since_overflow"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for own, wanted in zip((one.parameters, *one.moments), (other.parameters, *other.moments), strict=True):
        assert all(torch.equal(p, wanted[name]) for name, p in own.items())


def test_the_state_before_a_step_that_was_applied(dataset: Dataset, tmp_path: Path) -> None:
    """An explosion is detected after its onset. The recorder keeps two states, at least 150 steps apart."""
    config = tiny("model.layers=1", "batch.size=3", "aug=none")
    stack = stack_of([config], dataset)
    recorder = Recorder(stack)
    for _ in range(4):
        train_steps(stack, dataset.train, 52)
        recorder.keep_state(Slot(stack))
    exploded = Verdict("exploded", "relapse", 107, 120)
    recorder.write(tmp_path, stack, dataset.train, exploded)
    flight = read_flight(tmp_path)
    assert (flight.outcome, flight.step, flight.detected_step) == ("exploded", 107, 120)
    wanted, _ = trained([config], dataset, 107)
    found = stack_of([config], dataset)
    restore(tmp_path / "flight/state.pt", found, 0)
    assert_same(found, wanted)
    for _ in range(2):
        train_steps(stack, dataset.train, 52)
        recorder.keep_state(Slot(stack))
    recorder.write(tmp_path, stack, dataset.train, replace(exploded, onset_step=3))
    assert read_flight(tmp_path).step == 156, "the oldest state in memory"


@pytest.mark.parametrize(
    ("poisoned", "module"),
    [
        ("day_weights", "day layer"),
        ("h0", "gru.0"),
        ("gru.weight_hh_l1", "gru.1"),
        ("out.bias", "head"),
    ],
)
def test_the_first_module_that_is_not_finite_is_found(dataset: Dataset, poisoned: str, module: str) -> None:
    stack = stack_of([tiny()], dataset)
    before = {name: p.clone() for name, p in stack.parameters.items()}
    assert examine(stack, dataset.train).not_finite == []
    assert all(torch.equal(p, before[name]) for name, p in stack.parameters.items())
    assert stack.step == 0
    stack.parameters[poisoned].fill_(math.nan)
    examined = examine(stack, dataset.train)
    assert examined.not_finite[0] == module
    assert "loss" in examined.not_finite
    assert examined.nll.isnan().all()


def test_a_gradient_that_is_not_finite_is_found_if_the_loss_is_finite(dataset: Dataset) -> None:
    stack = stack_of([tiny("precision=fp16", f"precision.initial_loss_scale={2.0**40}")], dataset)
    examined = examine(stack, dataset.train)
    assert examined.nll.isfinite().all()
    assert examined.not_finite[0].startswith("gradient of ")
    assert "gradient of gru.weight_ih_l1" in examined.not_finite


def test_double_precision_agrees_with_the_reference(dataset: Dataset) -> None:
    """More closely than float32 could. Only the noise is drawn in float32."""
    config = tiny("optimizer.fused=false", "precision=fp32")
    stack = stack_of([config], dataset)
    for kind in (stack.parameters, stack.moments.first, stack.moments.second):
        kind.update({name: p.double() for name, p in kind.items()})
    trainer = ReferenceTrainer(config, reference(copied(stack.parameters, 0), 2, torch.float64))
    expected = [trainer.step(dataset.train, step) for step in range(10)]
    tables = train_steps(stack, dataset.train, 10)
    losses, norms = np.array(expected).T
    np.testing.assert_allclose(column(tables, "loss")[0], losses, rtol=1e-7)
    np.testing.assert_allclose(column(tables, "grad_norm")[0], norms, rtol=1e-6)
    assert all(p.dtype == torch.float64 for p in stack.parameters.values())


def test_broken_weights_fail_in_every_precision(tmp_path: Path) -> None:
    config = settings(tmp_path)
    dataset = open_data(config, torch.device("cpu"))
    stack = stack_of([config], dataset)
    stack.parameters["out.weight"][0, 3, 3] = math.inf
    recorder = Recorder(stack)
    write_trial(tmp_path / "trial", config, stack, dataset, 4)
    recorder.write(tmp_path / "trial", stack, dataset.train, Verdict("non_finite", "loss", 0, 0))
    assert read_flight(tmp_path / "trial").largest_weights["out.weight"] == math.inf
    repeated = replay(tmp_path / "trial", "cpu")
    assert repeated.kind == "true fault"
    assert [*repeated.attempts] == ["fp32", "fp64"]
    assert {a.not_finite for a in repeated.attempts.values()} == {"head"}
    assert repeated.attempts["fp32"].bad_rows == frozenset(range(6))


def test_a_fault_that_does_not_occur_again_is_transient(tmp_path: Path) -> None:
    """A number in memory is wrong for one step."""
    config = settings(tmp_path)
    dataset = open_data(config, torch.device("cpu"))
    stack = stack_of([config], dataset)
    recorder = Recorder(stack)
    bias = stack.parameters["out.bias"]
    healthy = bias.clone()
    bias[0, 7] = math.nan
    write_trial(tmp_path / "trial", config, stack, dataset, 1)
    bias.copy_(healthy)
    recorder.write(tmp_path / "trial", stack, dataset.train, Verdict("non_finite", "loss", 0, 0))
    repeated = replay(tmp_path / "trial", "cpu")
    assert repeated.kind == "transient"
    assert math.isnan(repeated.recorded_loss)
    assert [a.not_finite for a in repeated.attempts.values()] == [None, None]
    assert repeated.attempts["fp32"].loss == pytest.approx(repeated.attempts["fp64"].loss, rel=1e-5)


def test_data_that_were_damaged_on_the_disk_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file keeps its size and time, so the check of the data is not repeated."""
    config = settings(tmp_path)
    dataset = open_data(config, torch.device("cpu"))
    first = training_batch(dataset.train, 6, 3, seed=0, step=0)
    record = dataset.train.records[first.utterances[4]]
    file = dataset.train.path / dataset.sessions[record.day] / "data_train.hdf5"
    stat = file.stat()
    write_feature(file, record.name, np.nan)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert run_trial(config, tmp_path / "trial").outcome == "bad_data"
    flight = read_flight(tmp_path / "trial")
    assert flight.step == 0
    suspect = flight.batch[0]
    assert (suspect.session, suspect.name) == (dataset.sessions[record.day], record.name)
    assert not suspect.input_finite
    assert flight.batch[-1].input_finite
    repeated = replay(tmp_path / "trial", "cpu")
    assert repeated.kind == "true fault"
    assert repeated.attempts["fp64"].not_finite == "input"
    assert suspect.row in repeated.attempts["fp32"].bad_rows
    capsys.readouterr()
    assert diagnose.main(["--replay", str(tmp_path / "trial"), "--device", "cpu"]) == 0
    assert re.search(rf"{record.name}, block 0.* nan +input not finite, loss not finite", capsys.readouterr().out)


def test_a_wider_step_that_does_not_fit_into_memory_is_computed_in_parts(
    trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replay(trial, "cpu")

    def decode(parameters: Parameters, x: Tensor, *rest: Any, **settings: Any) -> Tensor:
        if x.dtype == torch.float64 and x.shape[1] > 3:
            raise torch.OutOfMemoryError
        return forward(parameters, x, *rest, **settings)

    monkeypatch.setattr("stability.engine.predict.forward", decode)
    in_parts = replay(trial, "cpu")
    assert in_parts.kind == whole.kind == "precision"
    assert in_parts.attempts["fp64"].loss == pytest.approx(whole.attempts["fp64"].loss, rel=1e-12)


def test_a_replay_on_another_device_has_a_note(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trial / "flight/flight.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    assert diagnose.main(["--replay", str(trial), "--device", "cpu"]) == 0
    assert "recorded on cuda and repeated on cpu, which draws other random numbers" in capsys.readouterr().out


def test_a_missing_or_damaged_recording_is_refused(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    assert "There is no flight recording at" in message(capsys, tmp_path / "nowhere")
    record, state = trial / "flight/flight.json", trial / "flight/state.pt"
    whole = record.read_bytes()
    for content in (whole[: len(whole) // 2], b"[]", b"{}", b'{"batch": 3}', b'{"batch": [{"row": 1}]}'):
        record.write_bytes(content)
        assert f"{record} cannot be read as a flight recording" in message(capsys, trial)
    record.write_bytes(whole)
    state.write_bytes(state.read_bytes()[:5000])
    assert f"{state} cannot be read as a checkpoint" in message(capsys, trial)
    state.unlink()
    assert f"There is no checkpoint at {state}" in message(capsys, trial)
    (trial / "config.yaml").write_text("seed: [")
    assert f"{trial / 'config.yaml'} cannot be read" in message(capsys, trial)
    older = [line for line in (finished / "config.yaml").read_text().splitlines() if "clip_before_unscale" not in line]
    (trial / "config.yaml").write_text("\n".join(older))
    text = message(capsys, trial)
    assert re.search("precision.clip_before_unscale must be given.*another version .* fresh=true", text)
    (trial / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    (trial / "signals.csv").unlink()
    assert "signals.csv does not reach step" in message(capsys, trial)
    record.unlink()
    assert f"There is no flight recording at {record}. Only a trial that failed leaves one" in message(capsys, trial)
    assert diagnose.main(["--replay", str(trial), "--device", "nonsense"]) == 1


def test_data_that_are_gone_or_have_changed_are_refused(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flight = read_flight(trial)
    data = Path(shutil.copytree(flight.data, tmp_path / "data"))
    record = trial / "flight/flight.json"
    record.write_text(record.read_text().replace(flight.data, str(data)))
    assert replay(trial, "cpu").kind == "precision"
    suspect = flight.batch[0]
    write_feature(data / suspect.session / "data_train.hdf5", suspect.name, 9.0)
    assert f"The data in {data} have changed: the batch of step {flight.step}" in message(capsys, trial)
    shutil.rmtree(data)
    assert f"data path {data} does not exist" in message(capsys, trial)


def test_training_from_scratch_deletes_an_old_recording(trial: Path, finished: Path) -> None:
    run_trial(settings(finished.parent, "fresh=true", "steps=1"), trial)
    assert (trial / "verdict.json").exists()
    assert not (trial / "flight").exists()


def test_a_recording_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/flight").touch()
    verdict = run_trial(settings(tmp_path, *TOO_LARGE_FOR_FP16), tmp_path / "trial")
    assert verdict.outcome == "non_finite"
    assert json.loads((tmp_path / "trial/verdict.json").read_text())["outcome"] == "non_finite"
    assert caplog.text.count("There is no flight recording") == 1
    assert "flight could not be written (File exists). Make room" in caplog.text
    assert "--replay" not in capsys.readouterr().out


def test_a_failed_trial_that_was_killed_before_its_verdict_gets_the_same_one(trial: Path, finished: Path) -> None:
    """No further step is trained, and the recording is the same as without the kill."""
    for name in ("verdict.json", "flight/flight.json", "flight/state.pt"):
        (trial / name).unlink()
    run_trial(settings(finished.parent, *TOO_LARGE_FOR_FP16), trial)
    for name in ("signals.csv", "validation.csv", "verdict.json", "flight/flight.json"):
        assert (trial / name).read_bytes() == (finished / name).read_bytes(), name
    assert len(rows(trial / "signals.csv")) == 10
    assert replay(trial, "cpu").kind == "precision"


def test_a_replay_writes_nothing_where_only_a_foreign_folder_says(trial: Path, tmp_path: Path) -> None:
    config = trial / "config.yaml"
    config.write_text(re.sub("(?m)^outputs: .*", f"outputs: {tmp_path / 'elsewhere'}", config.read_text()))
    assert replay(trial, "cpu").kind == "precision"
    assert not (tmp_path / "elsewhere").exists()


def test_names_in_a_recording_do_not_command_the_terminal(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = trial / "flight/flight.json"
    content = json.loads(record.read_text())
    for suspect in content["batch"]:
        suspect |= {"session": "\x1b[2J", "name": "a\nb", "sentence": "[/red]", "frames": "\x07"}
    content |= {"outcome": "[/red]\x1b[2J", "device": "\r", "largest_weights": {"\x1b[31m": 1.0}}
    record.write_text(json.dumps(content))
    assert diagnose.main(["--replay", str(trial)]) == 0
    printed = "".join(capsys.readouterr())
    assert printed.replace("\n", "").isprintable()
    assert r"\x1b[2J a\nb" in printed
