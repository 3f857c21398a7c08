"""Charts of TensorBoard."""

from pathlib import Path

import pytest

from stability.diagnosis.readers import read_log

ROWS = "Wall time,Step,Value\n1700000000.5,0,6\n1700000001.5,10,5\n"


@pytest.mark.parametrize(("name", "signal"), [("run-a-tag-train_loss.csv", "loss"), ("grad_norm.csv", "grad_norm")])
def test_the_file_names_the_metric(tmp_path: Path, name: str, signal: str) -> None:
    (tmp_path / name).write_text(ROWS)
    recording = read_log(tmp_path / name)
    assert recording.signals.names == (signal,)
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.notes == ()


def test_a_metric_without_a_name_is_taken_for_the_loss(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text(ROWS)
    recording = read_log(tmp_path / "chart.csv")
    assert recording.signals["loss"].tolist() == [6, 5]
    assert "does not name its metric" in recording.notes[0]
    assert read_log(tmp_path / "chart.csv", names={"grad_norm": "Value"}).signals.names == ("grad_norm",)


def test_a_held_out_loss(tmp_path: Path) -> None:
    (tmp_path / "run-x-tag-val_loss.csv").write_text(ROWS)
    assert read_log(tmp_path / "run-x-tag-val_loss.csv").validation["loss"].tolist() == [6, 5]
