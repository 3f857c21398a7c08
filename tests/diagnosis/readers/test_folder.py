"""A trial's folder."""

import os
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs


def test_a_folder_that_is_not_a_trials(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="it is not a trial's folder"):
        read_log(tmp_path)


def test_a_folder_of_other_logs(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/metrics.csv").write_text("step,train_loss\n0,5\n10,4\n")
    (tmp_path / "notes.txt").write_text("nothing\n")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.log")
    for steps in (1, 2):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        rows = ", ".join(f'{{"step": {step}, "loss": {9 - step}}}' for step in range(steps))
        (tmp_path / f"checkpoint-{steps}/trainer_state.json").write_text(f'{{"log_history": [{rows}]}}')
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["checkpoint-2/trainer_state.json", "version_0/metrics.csv"]


def test_charts_and_other_logs(tmp_path: Path) -> None:
    chart = "Wall time,Step,Value\n1,0,{}\n2,10,{}\n"
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1/train_loss.csv").write_text(chart.format(6, 5))
    (tmp_path / "run1/val_cer.csv").write_text(chart.format(1, 0.9))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "metrics.csv").write_text("step,train_loss\n0,5\n10,4\n")
    (tmp_path / "train_loss.csv").write_text(chart.format(3, 2))
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["metrics.csv", "run1/charts", "train_loss.csv"]
    assert runs[1].validation["per"].tolist() == pytest.approx([1, 0.9])


def test_charts_in_which_is_no_training(tmp_path: Path) -> None:
    for name in ("a_lr.csv", "a_loss_scale.csv"):
        (tmp_path / name).write_text("Wall time,Step,Value\n1,0,6\n2,10,5\n")
    with pytest.raises(StabilityError, match=r"contains no training.*It has these names: step, loss_scale, lr"):
        read_runs(tmp_path)


def test_logs_of_the_same_training_are_one(tmp_path: Path) -> None:
    for name, digits, steps in (("a.csv", 6, range(30)), ("b.csv", 4, range(0, 30, 2)), ("c.csv", 4, range(5, 30))):
        loss = 9.87654321 if name != "c.csv" else 8.0
        rows = "".join(f"{step},{loss / (1 + step):.{digits}g}\n" for step in steps)
        (tmp_path / name).write_text(f"step,loss\n{rows}")
    first, other = read_runs(tmp_path)
    assert (first.name, other.name) == ("a.csv", "c.csv")
    assert first.notes == ("Other logs of the same training were left out: b.csv.",)
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("step,loss\n" + "".join(f"{step},0\n" for step in range(30)))
    assert len(read_runs(tmp_path)) == 3  # which have died in the same way


def test_the_reason_why_a_log_in_a_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,objective\n0,5\n")
    with pytest.raises(StabilityError, match=r"a\.csv contains no training.*It has these names: step, objective"):
        read_log(tmp_path)
    (tmp_path / "b.csv").write_text("step,loss\n0,low\n")
    with pytest.raises(StabilityError, match=r"no other log that can be read\. The first of 2 files: .*a\.csv"):
        read_log(tmp_path)


def test_a_damaged_log_beside_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,loss\n0,5\n10,4\n")
    (tmp_path / "val.csv").write_text("step,loss,wer\n0,5,1\n10,4\n")
    (tmp_path / "requirements.txt").write_text("torch==2\n")
    (recording,) = read_runs(tmp_path)
    assert recording.notes == (
        f"Left out what cannot be read: {tmp_path}/val.csv, line 3: expected 3 cells, as in the header, found 2.",
    )


def test_charts_that_were_not_read_beside_a_damaged_one_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n0,5\n10,4\n")
    for name, row in (("a_loss", "1,0,6"), ("a_val_cer", "1,0"), ("a_lr", "1,0,1")):
        (tmp_path / f"{name}.csv").write_text(f"Wall time,Step,Value\n{row}\n")
    (recording,) = read_runs(tmp_path)
    assert recording.notes == (
        f"Left out what cannot be read: {tmp_path}/a_val_cer.csv, line 2: expected 3 cells, as in the header, found 2 "
        "(and 2 other charts in its folder).",
    )


def test_the_case_of_a_files_ending_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "LOG.CSV").write_text("step,loss\n0,5\n10,4\n")
    assert [run.name for run in read_runs(tmp_path)] == ["LOG.CSV"]


def test_files_beyond_those_that_are_tried_are_counted(tmp_path: Path) -> None:
    for number in range(201):
        (tmp_path / f"{number:03}.csv").write_text("")
    (tmp_path / "000.csv").write_text("step,loss\n0,5\n10,4\n")
    (recording,) = read_runs(tmp_path)
    assert recording.notes == ("Only the first 200 of 201 text files in the folder were read.",)
