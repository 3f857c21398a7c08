"""Charts of Weights & Biases."""

import json
import math
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_runs


def test_each_run_of_a_chart_is_read(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text(
        '"Step","a - b - train/loss","a - b - train/loss__MIN","a - b - train/loss__MAX","c - train/loss"\n'
        '"0","5","1","9","7"\n"10","4","1","9",""\n"20","","","","6"\n'
    )
    first, second = read_runs(log)
    assert (first.name, second.name) == ("chart.csv, run 1 (a - b)", "chart.csv, run 2 (c)")
    assert first.signals["loss"].tolist() == [5, 4]
    assert second.signals.steps.tolist() == [0, 20]


def test_a_held_out_loss_of_one_run(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text("Step,a - eval/loss,a - eval/wer\n0,5,0.9\n10,4,0.8\n")
    (run,) = read_runs(log)
    assert run.name == "chart.csv"
    assert run.validation["loss"].tolist() == [5, 4]
    assert run.validation["per"].tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_history_of_a_run(tmp_path: Path, form: str) -> None:
    log = tmp_path / f"history.{form}"
    rows: list[dict[str, float | str | None]] = [
        {
            "_step": 0,
            "_runtime": 1.5,
            "_timestamp": 1.7e9,
            "train/loss": 5.5,
            "train/global_step": 10,
            "eval/wer": None,
        },
        {
            "_step": 1,
            "_runtime": 2.5,
            "_timestamp": 1.7e9,
            "train/loss": None,
            "train/global_step": 10,
            "eval/wer": 0.9,
        },
        {
            "_step": 2,
            "_runtime": 3.5,
            "_timestamp": 1.7e9,
            "train/loss": "NaN",
            "train/global_step": 20,
            "eval/wer": None,
        },
    ]
    lines = [",".join(["", *rows[0]])] + [
        ",".join([str(n), *("" if cell is None else str(cell) for cell in row.values())]) for n, row in enumerate(rows)
    ]
    log.write_text(json.dumps(rows) if form == "json" else "\n".join(lines))
    (run,) = read_runs(log)
    assert run.signals.steps.tolist() == [10, 20]
    assert run.signals["loss"].tolist() == pytest.approx([5.5, math.nan], nan_ok=True)
    assert run.validation.steps.tolist() == [10]
    assert run.metric == "WER"


def test_a_chart_over_epochs(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text("epoch,a - eval/loss,b - eval/loss\n1,5,6\n2,4,5\n")
    first, second = read_runs(log)
    assert (first.unit, second.unit) == ("epoch", "epoch")
    assert second.validation.steps.tolist() == [1, 2]


@pytest.mark.parametrize(
    "header", ["Name,State,Notes,User,Tags,Created,Runtime,loss", "Start Time,Duration,Run ID,Name,Status,loss"]
)
def test_a_table_of_runs_is_refused(tmp_path: Path, header: str) -> None:
    log = tmp_path / "runs.csv"
    log.write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(StabilityError, match="is a table of runs, with a row per run"):
        read_runs(log)
