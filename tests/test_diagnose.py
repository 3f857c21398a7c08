"""Verdicts on logs, through the command line and by made-up recordings whose answer is known."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stability import diagnose
from stability.diagnosis.logs import read_log
from stability.diagnosis.signals import Table
from stability.diagnosis.verdict import Verdict, judge
from stability.errors import StabilityError

LOGS = Path(__file__).parents[2] / "shared" / "logs"
real_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="the real training logs are not here")


def table(**signals: list[float] | np.ndarray) -> Table:
    values = np.array(list(signals.values()), np.float32).T
    return Table(tuple(signals), np.arange(len(values)), values, np.ones(values.shape, bool))


def verdict_of(log: Path, figure: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert diagnose.main([str(log), "--figure", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    return capsys.readouterr().out


@real_logs
def test_the_healthy_official_log_is_stable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = verdict_of(LOGS / "official-baseline-10k.log", tmp_path / "figure.png", capsys)
    assert "\nstable\n" in out
    last = next(line.split() for line in out.splitlines() if line.split()[:1] == ["10000"])
    assert last[-2:] == ["0.1286", "0.128–0.129"]


@real_logs
def test_the_diverged_log_exploded(capsys: pytest.CaptureFixture[str]) -> None:
    recording = read_log(LOGS / "conformer-unet-diverged.log")
    verdict = judge(recording.signals, recording.validation)
    assert verdict.outcome == "exploded"
    assert verdict.onset_step is not None
    assert 1000 <= verdict.onset_step <= 3000


def test_the_door_runs_and_a_bad_log_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty.log").touch()
    command = [sys.executable, "-m", "stability.diagnose", "empty.log"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: empty.log is empty.\n")


def test_a_log_is_read_without_pytorch() -> None:
    code = "import sys, stability.diagnose; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nothing of the kind\n" * 5, "holds no training that could be read"),
        ("\x00\xff\n", "holds no training that could be read"),
        ("step,accuracy\n1,2\n", "holds no training that could be read"),
        ("step,loss\n1,2\n2,three\n3,4\n", "line 3: expected 2 numbers"),
        ('{"step": 1, "loss": 2}\nnot json\n{"step": 2, "loss": 2}\n', "line 2: expected an object"),
    ],
)
def test_a_log_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    with pytest.raises(StabilityError, match=message):
        read_log(log)


def official(steps: range, loss: float = 50.0) -> str:
    return "".join(
        f"2025-11-06 01:34:20,425: Train batch {step}: loss: {loss:.2f} grad norm: 48.85 time: 0.555\n"
        for step in steps
    )


def test_the_last_of_several_starts_is_read(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text("Using device: cuda:0\n" + official(range(0, 1000, 200)) + official(range(0, 600, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [0, 200, 400]
    assert set(recording.signals["loss"]) == {7}
    assert recording.notes == ("The log holds 2 starts; the last is judged.",)


def test_a_resumed_training_replaces_what_it_repeats(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text(official(range(0, 1000, 200)) + official(range(600, 1400, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [*range(0, 1400, 200)]
    assert recording.signals["loss"].tolist() == [50, 50, 50, 7, 7, 7, 7]
    assert "Resumed from step 600 after step 800" in recording.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        official(range(0, 600, 200)) + "2025-11-06 01:34:20,425: Train batch 600: lo",
        "Step,train/loss,grad_norm\n0,50,48.85\n200,50,48.85\n400,50,48.85\n600,",
        "".join(f'{{"global_step": {s}, "loss": 50, "grad_norm": 48.85}}\n' for s in (0, 200, 400)) + '{"global_st',
    ],
)
def test_a_line_cut_off_is_left_out(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    signals = read_log(log).signals
    assert signals.steps.tolist() == [0, 200, 400]
    assert signals["loss"].tolist() == [50] * 3


def test_gaps_and_names_of_other_projects(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    rows: list[dict[str, object]] = [
        {"step": 0, "train/loss": 9.5, "lr": 0.1, "message": "hello"},
        {"step": 10, "eval/loss": 8.0, "val_per": 0.7},
        {"step": 20, "train/loss": 7.5},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recording = read_log(log)
    assert recording.signals.names == ("loss", "lr")
    assert recording.signals.measured.tolist() == [[True, True], [True, False]]
    assert recording.validation["loss"].tolist() == [8]
    assert recording.validation["per"].tolist() == pytest.approx([0.7])


def test_a_norm_that_is_large_but_usual_is_no_explosion() -> None:
    rng = np.random.default_rng(0)
    signals = table(loss=80 + rng.normal(size=200), grad_norm=200 * np.exp(0.3 * rng.normal(size=200)))
    assert judge(signals, table(per=[1.2, 0.98])).outcome == "undecided"


def test_a_spike_is_no_explosion_and_a_lasting_growth_is() -> None:
    rng = np.random.default_rng(0)
    norms = 20 * np.exp(0.3 * rng.normal(size=200))
    loss = 80 + rng.normal(size=200)
    spike = norms.copy()
    spike[120] *= 1000
    assert judge(table(loss=loss, grad_norm=spike), table(per=[1.2, 0.98])).outcome == "undecided"
    norms[120:] *= 50
    loss[120:] += 30
    verdict = judge(table(loss=loss, grad_norm=norms), table(per=[1.2, 0.98]))
    assert verdict.outcome == "exploded"
    assert verdict.onset_step == 120
    assert verdict.detected_step is not None
    assert verdict.detected_step <= 125


def test_growing_norms_of_a_loss_that_falls_are_no_explosion() -> None:
    norms, loss = np.linspace(1, 50, 200), np.linspace(80, 10, 200)
    assert judge(table(loss=loss, grad_norm=norms), table(per=[1.2, 0.98])).outcome == "undecided"


@pytest.mark.parametrize("outcome", ["stable", "undecided", "blank_collapse", "relapse"])
def test_plateau_and_collapse(outcome: str) -> None:
    blank = np.r_[np.linspace(0, 1, 20), np.ones(180)]
    falling, flat = np.linspace(50, 40, 200), np.full(200, 45.0)
    loss = falling if outcome in ("stable", "undecided") else flat
    rates = {"stable": [1.1, 0.3], "relapse": [0.5, 1.0]}.get(outcome, [1.1, 1.0])
    verdict = judge(table(loss=loss, blank_fraction=blank), table(per=rates))
    if outcome == "relapse":
        assert (verdict.outcome, verdict.cause) == ("blank_collapse", "relapse")
    else:
        assert verdict.outcome == outcome
    assert verdict.onset_step == (None if outcome == "stable" else 19)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_first_number_that_is_not_finite_is_named(name: str) -> None:
    signals = {"loss": np.full(50, 40.0), "grad_norm": np.full(50, 5.0), "grad_norm.head": np.full(50, 5.0)}
    signals[name][30:] = np.inf
    signals["grad_norm.head"][30:] = np.nan
    verdict = judge(table(**signals), table(per=[0.5]))
    assert (verdict.outcome, verdict.onset_step, verdict.detected_step) == ("non_finite", 30, 30)
    assert verdict.evidence["gradient not finite in"] == "head"


def test_what_was_not_measured_is_no_fault() -> None:
    values = np.array([[50.0, 5.0], [49.0, np.nan], [48.0, 5.0]], np.float32)
    signals = Table(("loss", "grad_norm"), np.arange(3), values, np.array([[True, True], [True, False], [True, True]]))
    assert judge(signals, table(per=[0.5])).outcome == "stable"


def test_a_single_step_is_judged() -> None:
    verdict = judge(table(loss=[50.0], grad_norm=[5.0]), table(per=[1.1]))
    assert isinstance(verdict, Verdict)
    assert verdict.outcome == "undecided"


def test_without_validation_whether_it_learned_is_not_claimed() -> None:
    empty = Table((), np.zeros(0, np.int64), np.zeros((0, 0), np.float32), np.zeros((0, 0), bool))
    verdict = judge(table(loss=np.linspace(50, 1, 100)), empty)
    assert (verdict.outcome, verdict.cause) == ("undecided", "no validation")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, about how this test's MLflow uses it
def test_an_mlflow_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    missing = ["runs:/nothing", "--uri", uri]
    assert diagnose.main(missing) == 1
    assert "There is no MLflow store at" in capsys.readouterr().err

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("theirs", (tmp_path / "artifacts").as_uri()), run_name="my-run")
    for step in range(30):
        client.log_metric(run.info.run_id, "train/loss", 50 - step, step=10 * step)
        client.log_metric(run.info.run_id, "grad_norm", math.nan if step == 20 else 5, step=10 * step)
    client.log_metric(run.info.run_id, "val_per", 0.4, step=290)

    assert diagnose.main([f"runs:/{run.info.run_id}", "--uri", uri, "--figure", str(tmp_path / "figure.png")]) == 0
    out = capsys.readouterr().out
    assert "my-run, steps 0 to 290" in out
    assert "non_finite: gradient, since step 200" in out
    assert diagnose.main(missing) == 1
    assert "The run nothing cannot be read" in capsys.readouterr().err
