"""Rows without steps, and gaps."""

from pathlib import Path

import pytest

from stability.diagnosis.readers import read_runs
from tests.support.logs import read


def test_rows_without_steps_are_numbered(tmp_path: Path) -> None:
    for text in ("loss\n5\n4\n3\n", "epoch,loss\n0,5\n0,4\n1,3\n", '{"loss": 5}\n{"loss": 4}\n{"loss": 3}\n'):
        recording = read(tmp_path, text)
        assert recording.signals.steps.tolist() == [0, 1, 2]
        assert recording.signals["loss"].tolist() == [5, 4, 3]
        assert recording.notes == ("The log has no steps: its rows are numbered 0, 1, 2, …",)
        assert recording.unit == "row"


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss,val_loss,wer\n3,5,6,0.9\n4,4,5,0.8\n6,3,4,0.7\n",
        "epoch,loss,val_loss,wer\n3,5,,\n3,,6,0.9\n4,4,,\n4,,5,0.8\n6,3,,\n6,,4,0.7\n",
        '{"epoch": 3, "loss": 5}\n{"val_loss": 6, "wer": 0.9}\n{"epoch": 4, "loss": 4}\n{"val_loss": 5, "wer": 0.8}\n'
        '{"epoch": 6, "loss": 3}\n{"val_loss": 4, "wer": 0.7}\n',
    ],
)
def test_epochs_take_the_place_of_steps(tmp_path: Path, text: str) -> None:
    recording = read(tmp_path, text)
    assert recording.unit == "epoch"
    assert recording.signals.steps.tolist() == recording.validation.steps.tolist() == [3, 4, 6]
    assert recording.signals["loss"].tolist() == [5, 4, 3]
    assert recording.validation["loss"].tolist() == [6, 5, 4]
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert recording.notes == ("The log has no steps: its rows are ordered by epoch.",)


def test_an_epoch_that_is_trained_again(tmp_path: Path) -> None:
    rows = [*range(1, 16), *range(12, 21)]
    recording = read(tmp_path, "epoch,loss\n" + "".join(f"{epoch},{50 - row}\n" for row, epoch in enumerate(rows)))
    assert recording.signals.steps.tolist() == [*range(1, 21)]
    assert recording.signals["loss"][10:13].tolist() == [40, 35, 34]
    assert "resumed from epoch 12 after epoch 15" in recording.notes[0]


def test_a_validation_without_a_step_belongs_to_the_last_one(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        '{"step": 10, "loss": 5}\n{"step": 20, "loss": 4}\n{"epoch": 1, "val_loss": 6, "val_wer": 0.9}\n'
        '{"step": 30, "loss": 3}\n{"epoch": 2, "val_loss": 5, "val_wer": 0.8}\n',
    )
    assert recording.unit == "step"
    assert recording.validation.steps.tolist() == [20, 30]
    assert recording.notes == ()


def test_validations_that_begin_again_are_another_run(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_loss,val_wer\n1,6,0.9\n2,5,0.8\n1,7,0.9\n2,8,0.9\n3,9,0.9\n")
    first, second = read_runs(log)
    assert first.validation["loss"].tolist() == [6, 5]
    assert second.validation["loss"].tolist() == [7, 8, 9]


def test_steps_that_are_floats_negative_or_missing(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss\n-1,9\n0.0,5\n,7\n100.0,4\nnan,7\n2e2,3\n")
    assert recording.signals.steps.tolist() == [0, 100, 200]
    assert recording.signals["loss"].tolist() == [5, 4, 3]
    assert recording.notes == (
        "Left out 2 rows without a step.",
        "Left out 1 row with a negative step.",
    )


def test_gaps_are_not_filled(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss,per\n0,5,\n10,,0.9\n5000,3,null\n5001,,\n")
    assert recording.signals.steps.tolist() == [0, 5000]
    assert recording.validation.steps.tolist() == [10]


@pytest.mark.parametrize(("batches", "steps"), [((0, 10), [0, 10, 11, 21, 22, 32]), ((100,), [100, 200, 300])])
def test_batches_that_are_counted_in_each_epoch(tmp_path: Path, batches: tuple[int, ...], steps: list[int]) -> None:
    rows = [(epoch, batch) for epoch in (0, 1, 2) for batch in batches]
    recording = read(
        tmp_path, "epoch,batch,loss\n" + "".join(f"{epoch},{batch},{9 - n}\n" for n, (epoch, batch) in enumerate(rows))
    )
    assert recording.signals.steps.tolist() == steps
    assert recording.signals["loss"].tolist() == [9.0 - n for n in range(len(rows))]
    assert recording.notes == ()


@pytest.mark.parametrize("epoch", ["inf", "nan", "1e300", "-1e300"])
def test_an_epoch_that_is_none(tmp_path: Path, epoch: str) -> None:
    for text in (f"epoch,step,loss\n0,0,5\n{epoch},10,4\n1,20,3\n", f"step 0 loss 5\nepoch {epoch} step 10 loss 4\n"):
        assert read(tmp_path, text).signals.steps[:2].tolist() == [0, 10]
    for text in (f"epoch,loss\n0,5\n{epoch},4\n", f"epoch 0 loss 5\nepoch {epoch} loss 4\n"):
        assert read(tmp_path, text).signals["loss"][0] == 5
    huge = "9" * 400
    assert read(tmp_path, f"step 0 loss 5\nstep {huge} loss 4\nstep 5/{huge} loss 3\n").signals["loss"][-1] == 3
