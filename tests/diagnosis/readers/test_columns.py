"""The rows of a table, and numbers as other programs write them."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from stability.diagnosis.readers import read_log
from tests.support.logs import read


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


def test_thousands_of_columns(tmp_path: Path) -> None:
    log = tmp_path / "wide.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"layer.{i}" for i in range(5000)), "step", "loss"])
        writer.writerows([*([0.5] * 5000), step, 5 - step] for step in range(5))
    assert read_log(log).signals["loss"].tolist() == [5, 4, 3, 2, 1]
    rows = [{**{f"layer.{i}": 0.5 for i in range(5000)}, "step": step, "loss": 5 - step} for step in range(5)]
    assert read(tmp_path, "\n".join(map(json.dumps, rows))).signals["loss"].tolist() == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("spelling", ["inf", "Infinity", "NaN", "nan(ind)", "-nan(ind)", "-inf", "+INF", "-Infinity"])
@pytest.mark.parametrize(
    "form", ["step,loss,lr\n0,5,1\n1,{},1\n", '{{"step": 0, "loss": 5}}\n{{"step": 1, "loss": {}}}\n']
)
def test_what_is_not_finite_in_any_spelling(tmp_path: Path, spelling: str, form: str) -> None:
    value = float(read(tmp_path, form.format(spelling)).signals["loss"][1])
    assert math.isnan(value) if "nan" in spelling.lower() else value == float(spelling)


def test_what_is_finite_stays_finite(tmp_path: Path) -> None:
    loss = read(tmp_path, "step,loss\n0,1e300\n1,-1e300\n2,1e400\n").signals["loss"]
    assert np.isfinite(loss).tolist() == [True, True, False]
    assert not np.isfinite(read(tmp_path, f'{{"step": 0, "loss": 1{"0" * 400}}}\n').signals["loss"][0])


def test_percent_is_recognised_from_all_values(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss,val_wer\n0,9,95\n1,8,40\n2,7,0.8\n")
    assert recording.validation["per"].tolist() == pytest.approx([0.95, 0.4, 0.008])
    assert recording.notes == ("val_wer is in percent: its values were divided by 100.",)
    assert recording.metric == "WER"
    inserting = read(tmp_path, "step,loss,wer\n0,9,1.0\n1,8,2.4\n2,7,0.8\n")
    assert inserting.validation["per"].tolist() == pytest.approx([1.0, 2.4, 0.8])
    assert inserting.notes == ()


def test_a_log_with_only_a_held_out_loss(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,val/loss\n0,9\n1,8\n")
    assert not len(recording.signals.steps)
    assert recording.validation["loss"].tolist() == [9, 8]
    assert recording.notes == ("The log has measurements of held-out data, and no loss of training data.",)


def test_a_log_with_only_error_rates(tmp_path: Path) -> None:
    recording = read(tmp_path, "epoch,wer\n1,0.9\n2,0.8\n")
    assert not len(recording.signals.steps)
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.8])
