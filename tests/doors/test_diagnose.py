"""Verdicts on logs, through the command line."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stability import diagnose
from stability.diagnosis.judge import judge
from stability.diagnosis.readers import read_log
from tests.support.logs import official
from tests.support.trials import write_trial

LOGS = Path(__file__).parents[3] / "shared" / "logs"
real_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="the real training logs are not here")


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
    os.mkfifo(tmp_path / "empty.log")  # nobody writes to it
    command = [sys.executable, "-m", "stability.diagnose", "empty.log"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: empty.log is empty.\n")


def test_the_figure_of_a_folder_is_in_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = write_trial(tmp_path / "trial")
    for _ in range(2):  # the figure is no log
        assert diagnose.main(["../trial"]) == 0
        assert capsys.readouterr().out.endswith("figure ../trial/diagnosis.png\n")
    assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert not [*Path().iterdir()]
    assert diagnose.main(["../trial", "--figure", "nowhere/x.png"]) == 1
    out, err = capsys.readouterr()
    assert out
    assert err == (
        "error: Cannot write nowhere/x.png: No such file or directory. Give another place with --figure FILE.\n"
    )


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
        client.log_metric(run.info.run_id, "grad_norm", math.nan if step >= 20 else 5, step=10 * step)
    client.log_metric(run.info.run_id, "val_per", 0.4, step=290)

    assert diagnose.main([f"runs:/{run.info.run_id}", "--uri", uri, "--figure", str(tmp_path / "figure.png")]) == 0
    out = capsys.readouterr().out
    assert "my-run, steps 0 to 290" in out
    assert "non_finite: gradient, since step 200" in out
    assert diagnose.main(missing) == 1
    assert "Cannot read run nothing from" in capsys.readouterr().err


def test_several_runs_are_a_line_each_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, other = tmp_path / "two.csv", tmp_path / "one.csv"
    rows = "".join(f"{step},{9 / (1 + step)},{1 / (1 + step)}\n" for step in range(0, 400, 10))
    log.write_text("step,loss,wer\n" + rows + "0,9,1\n10,nan,1\n")
    other.write_text("step,loss,wer\n" + rows)
    assert diagnose.main([str(log), str(other), str(tmp_path / "none.csv")]) == 1
    out, error = capsys.readouterr()
    assert "two.csv, run 1: stable\n" in out
    assert "two.csv, run 2: non_finite" in out
    assert "one.csv: stable\n" in out
    assert "WER 0.002558" in out
    assert "none.csv cannot be read" in error
    assert diagnose.main([str(log), "--run", "2", "--figure", str(tmp_path / "figure.png")]) == 0
    assert "validation WER" in capsys.readouterr().out
    assert diagnose.main([str(log), "--run", "3"]) == 1
    assert "has no run 3: it holds 2 runs" in capsys.readouterr().err


def test_charts_of_one_folder_are_one_training_as_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = "Wall time,Step,Value\n" + "".join(f"{step},{step},{{}}\n" for step in range(0, 400, 100))
    (tmp_path / "train_loss.csv").write_text(chart.format(9, 6, 4, 3))
    (tmp_path / "val_cer.csv").write_text(chart.format(1, 0.8, 0.5, 0.3))
    charts = [str(tmp_path / "val_cer.csv"), str(tmp_path / "train_loss.csv")]
    assert diagnose.main([*charts, "--figure", str(tmp_path / "figure.png")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("charts, steps 0 to 300\n")
    assert re.search(r"validation CER +0\.3\n", out)


def test_a_log_that_comes_through_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, end = os.pipe()
    os.write(end, b"step,loss,wer\n0,9,1\n10,5,0.8\n20,3,0.5\n30,2,0.4\n")
    os.close(end)
    assert diagnose.main([f"/dev/fd/{pipe}", "--figure", str(tmp_path / "figure.png")]) == 0
    os.close(pipe)
    assert f"{pipe}, steps 0 to 30\nstable" in capsys.readouterr().out


def test_rows_that_are_parts_of_epochs_are_told_by_row_and_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "console.txt"
    values = [*range(20, 10, -1), *["nan"] * 6]
    dicts = [f"{{'loss': {value}, 'grad_norm': 1.0, 'epoch': {n / 4}}}\n" for n, value in enumerate(values, 1)]
    log.write_text("".join(dicts))
    out = verdict_of(log, tmp_path / "figure.png", capsys)
    assert "console.txt, rows 0 to 15, epochs 0.25 to 4\n" in out
    assert "since row 10" in out
    assert re.search(r"epoch of row 10 +2\.75\n", out)


def test_a_log_of_epochs_speaks_of_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "epochs.csv"
    log.write_text("epoch,loss,val_cer\n1,5,0.9\n2,4,0.8\n3,nan,1\n4,nan,1\n")
    out = verdict_of(log, tmp_path / "figure.png", capsys)
    assert "epochs.csv, epochs 1 to 4\n  The log has no steps: its rows are ordered by epoch.\n" in out
    assert "since epoch 3" in out
    assert diagnose.main([str(log), str(log)]) == 0
    assert capsys.readouterr().out.count("since epoch 3") == 2


def test_an_official_run_is_compared_with_healthy_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "training_log"
    log.write_text(
        official(range(0, 10_001, 200))
        + "".join(f"Val batch {s}: PER (avg): {1 - s / 22_000} CTC Loss (avg): 20 time: 3\n" for s in (0, 5000, 10_000))
    )
    out = verdict_of(log, tmp_path / "figure.png", capsys)
    assert "A healthy training has a PER of 0.13 here, and this one 0.55" in out


def test_the_advice_on_a_log_of_epochs_speaks_of_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "epochs.csv"
    rates = [*np.linspace(0.95, 0.2, 20), *np.linspace(0.25, 0.8, 20)]
    log.write_text("epoch,val_loss,val_cer\n" + "".join(f"{e},{5 * r},{r}\n" for e, r in enumerate(rates, 1)))
    out = verdict_of(log, tmp_path / "figure.png", capsys)
    assert "degraded" in out
    assert "at epoch 20" in out
    assert "step 20" not in out
