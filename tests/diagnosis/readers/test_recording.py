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


ACCURACIES = {
    "accuracy with the validation loss": "epoch,train_loss,val_loss,accuracy\n1,5,6,0.25\n2,5,,\n3,4.5,,\n4,4,,\n"
    "5,4,5,0.5\n",
    "val_accuracy": "epoch,accuracy,loss,val_accuracy,val_loss\n1,0.9,5,0.25,6\n2,0.9,4,0.5,5\n",
    "eval_top1": "epoch,train_loss,eval_loss,eval_top1,eval_top5\n1,5,6,25,50\n2,4,5,50,75\n",
    "val_seq_acc": '{"step": 1, "loss": 5, "val_seq_acc": 0.25}\n{"step": 2, "loss": 4, "val_seq_acc": 0.5}\n',
    "val/acc": "split,step,loss,acc\ntrain,1,5,0.9\nvalid,1,6,0.25\ntrain,2,4,0.9\nvalid,2,5,0.5\n",
    "acc": "step,loss,acc\n1,5,0.25\n2,4,0.5\n",
    "val_norm_edit_dis": "INFO: epoch: [1/9], global_step: 10, acc: 0.9, norm_edit_dis: 0.9, loss: 5.0\n"
    "INFO: cur metric, acc: 0.1, norm_edit_dis: 0.25, fps: 1200\nINFO: best metric, acc: 0.4, norm_edit_dis: 0.9\n"
    "INFO: epoch: [1/9], global_step: 20, acc: 0.9, norm_edit_dis: 0.9, loss: 4.0\n"
    "INFO: cur metric, acc: 0.3, norm_edit_dis: 0.5, fps: 1200\nINFO: best metric, acc: 0.4, norm_edit_dis: 0.9\n",
    "val_accuracy in easyocr": "[500/900] Train loss: 5.0, Valid loss: 6.0, Elapsed_time: 9.0\n"
    "Current_accuracy : 25.000, Current_norm_ED : 0.10\nBest_accuracy : 90.000, Best_norm_ED : 0.90\n"
    "[600/900] Train loss: 4.0, Valid loss: 5.0, Elapsed_time: 9.0\n"
    "Current_accuracy : 50.000, Current_norm_ED : 0.20\nBest_accuracy : 90.000, Best_norm_ED : 0.90\n",
    "val_accuray": "[0/5][100/200] Loss: 5.0\nTest loss: 6.0, accuray: 0.25\n"
    "[0/5][200/200] Loss: 4.0\nTest loss: 5.0, accuray: 0.5\n",
    "val_Accuracy": "Train Epoch: 1 [0/600 (0%)]\tLoss: 5.0\n"
    "Test set: Average loss: 6.0, Accuracy: 50/200 (25%)\nTrain Epoch: 2 [0/600 (0%)]\tLoss: 4.0\n"
    "Test set: Average loss: 5.0, Accuracy: 100/200 (50%)\n",
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_an_accuracy_of_held_out_data_takes_the_place_of_an_error_rate(tmp_path: Path, name: str) -> None:
    recording = read(tmp_path, ACCURACIES[name])
    title = name.partition(" ")[0]
    assert recording.metric == f"1 - {title}"
    assert recording.signals["loss"][[0, -1]].tolist() == [5, 4]
    assert recording.validation["per"].tolist() == pytest.approx([0.75, 0.5])
    assert any(f"no error rate: 1 - {title} takes its place" in note for note in recording.notes)


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss,accuracy,val_loss\n1,5,0.5,6\n2,4,0.6,5\n",
        "step,loss,accuracy\n" + "".join(f"{step},{5 - step // 60},0.5\n" for step in range(120)),  # of each batch
        "epoch,train_loss,acc\n1,5,0.5\n2,4,0.6\n",
        "epoch,loss,train_acc\n1,5,0.5\n2,4,0.6\n",
        "step: 1 train: loss 5.0 acc 0.5\nstep: 2 train: loss 4.0 acc 0.6\n",
    ],
)
def test_an_accuracy_of_training_data_is_no_error_rate(tmp_path: Path, text: str) -> None:
    recording = read(tmp_path, text)
    assert {*recording.signals["loss"]} == {5, 4}
    assert "per" not in recording.validation.names


def test_an_error_rate_comes_before_an_accuracy(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss,val_acc,val_cer\n1,5,0.9,0.75\n2,4,0.9,0.5\n")
    assert recording.metric == "CER"
    assert recording.validation["per"].tolist() == [0.75, 0.5]
