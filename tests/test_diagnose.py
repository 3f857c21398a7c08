"""Verdicts on logs, through the command line and by made-up recordings whose answer is known."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stability import diagnose
from stability.diagnosis.logs import read_log
from stability.diagnosis.signals import Table
from stability.diagnosis.verdict import Verdict, judge

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
    validation = replace(table(per=rates), steps=np.array([10, 190]))
    verdict = judge(table(loss=loss, blank_fraction=blank), validation)
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
