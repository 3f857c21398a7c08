"""Trainings with one log of the training and one of the validation."""

from pathlib import Path

import numpy as np
import pytest

from stability.diagnosis.readers import read_runs

TRAIN = "step,loss,lr\n0,6,0.1\n10,5,0.1\n20,4,0.1\n"


@pytest.mark.parametrize(
    ("names", "val"),
    [
        (("train.csv", "val.csv"), "step,val_loss,val_wer\n0,7,1\n20,5,0.8\n"),
        (("train.csv", "valid.csv"), "step,loss,wer\n0,7,1\n20,5,0.8\n"),
        (("run3_train_log.csv", "run3_dev_log.csv"), "step,wer,loss\n0,,7\n0,1,\n20,0.8,5\n"),
    ],
)
def test_two_files_are_one_training(tmp_path: Path, names: tuple[str, str], val: str) -> None:
    for name, text in zip(names, (TRAIN, val), strict=True):
        (tmp_path / name).write_text(text)
    (recording,) = read_runs(tmp_path)
    assert recording.name == ", ".join(names)
    assert recording.signals["loss"].tolist() == [6, 5, 4]
    assert recording.validation.steps.tolist() == [0, 20]
    assert recording.validation["loss"].tolist() == [7, 5]
    assert recording.validation["per"].tolist() == pytest.approx([1, 0.8])
    assert recording.metric == "WER"
    assert recording.notes == ()


@pytest.mark.parametrize(
    ("name", "val"),
    [
        ("b_val.csv", "step,val_loss\n0,7\n20,5\n"),  # of another run
        ("val.csv", "epoch,val_loss\n0,7\n1,5\n"),  # other steps
        ("val.csv", "step,val_loss\n0,7\n1,6\n2,5\n"),  # steps that count validations
        ("val.csv", "step,val_loss\n0,7\n900,6\n"),  # steps that count something smaller
        ("val.csv", "step,loss,grad_norm\n0,7,1\n20,5,1\n"),  # a training
        ("val.csv", "step,val_loss\n0,7\n20,5\nstep,val_loss\n0,7\n20,5\n"),  # of two runs
    ],
)
def test_files_that_do_not_belong_together_stay_apart(tmp_path: Path, name: str, val: str) -> None:
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / name).write_text(val)
    recordings = read_runs(tmp_path)
    assert len(recordings) > 1
    assert np.isfinite([r.signals["loss"][0] for r in recordings if r.name == "train.csv"]).all()


@pytest.mark.parametrize(("title", "metric"), [("wer", "WER"), ("acc", "1 - acc")])
def test_an_error_rate_of_training_data_is_left_out(tmp_path: Path, title: str, metric: str) -> None:
    (tmp_path / "train.csv").write_text(f"step,loss,{title}\n0,6,0.9\n10,5,0.4\n20,4,0.3\n")
    (tmp_path / "val.csv").write_text(f"step,loss,{title}\n0,7,0.75\n20,9,0.5\n")
    (recording,) = read_runs(tmp_path)
    assert recording.signals["loss"].tolist() == [6, 5, 4]
    assert recording.validation.steps.tolist() == [0, 20]
    assert recording.validation["per"].tolist() == ([0.75, 0.5] if title == "wer" else [0.25, 0.5])
    assert recording.metric == metric
    assert f"The {metric} in train.csv was left out: that in val.csv takes its place." in recording.notes


def test_a_log_without_a_training_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,wer\n0,0.9\n10,0.4\n20,0.3\n")
    (tmp_path / "val.csv").write_text("step,loss,wer\n0,7,0.9\n20,9,0.8\n")
    assert len(read_runs(tmp_path)) == 2


def test_the_only_error_rate_is_kept(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,loss,wer\n0,6,0.9\n10,5,0.4\n20,4,0.3\n")
    (tmp_path / "val.csv").write_text("step,loss\n0,7\n20,9\n")
    first, _ = read_runs(tmp_path)
    assert first.validation.names == ("per",)


def test_numbered_rows_of_which_one_file_has_more_are_not_put_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("loss\n" + "".join(f"{9 - n / 10}\n" for n in range(50)))
    (tmp_path / "val.csv").write_text("loss,wer\n7,1\n6,0.9\n5,0.8\n")
    assert [(r.name, r.unit) for r in read_runs(tmp_path)] == [("train.csv", "row"), ("val.csv", "row")]


def test_of_two_held_out_sets_none_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(TRAIN)
    for name in ("val.csv", "test.csv"):
        (tmp_path / name).write_text(f"step,val_loss\n0,7\n20,{len(name)}\n")
    assert len(read_runs(tmp_path)) == 3
