"""Names as other programs write them."""

import json
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log
from stability.diagnosis.readers.names import find_name
from tests.support.logs import read


@pytest.mark.parametrize(
    ("title", "signal"),
    [
        ("train_loss_step", "loss"),
        ("train/loss", "loss"),
        ("loss/train", "loss"),
        ("Training Loss", "loss"),
        ("loss/val", "val_loss"),
        ("loss/train_epoch", "loss"),
        ("wer/dev_epoch", "per"),
        ("ctc", "loss"),
        ("batch_idx", "step"),
        ("val/loss", "val_loss"),
        ("eval_loss", "val_loss"),
        ("valid_loss_epoch", "val_loss"),
        ("dev.ctc-loss", "val_loss"),
        ("eval/wer", "per"),
        ("eval_wer", "per"),
        ("test_cer", "per"),
        ("WER (%)", "per"),
        ("lr-AdamW", "lr"),
        ("gnorm", "grad_norm"),
        ("trainer/global_step", "step"),
        ("epoch", "epoch"),
        ("lr-AdamW/pg1", "lr"),
        ("learning_rate/group_0", "lr"),
        ("loss/ctc", "loss"),
        ("tr_loss", "loss"),
        ("val.loss", "val_loss"),
        ("valLosses", "val_loss"),
        ("trainloss", "loss"),
        ("gradNorm", "grad_norm"),
        ("grad/norm", "grad_norm"),
        ("dev-clean-TER", "per"),
        ("eval_librispeech_wer", "per"),
        ("eval_dialect_loss", "val_loss"),
        ("eval_dialect_accuracy", "accuracy"),
        ("val_att_loss", None),
        ("wer_pct", "per"),
        ("loss/kl", None),
        ("weights/norm", None),
        ("val_best_wer", None),
        ("best/val_loss", None),
        ("config/lr", None),
        ("per_batch", None),
        ("loss_scale", "loss_scale"),
        ("best_val_loss", None),
        ("kl_loss", None),
        ("train_wer", None),
        ("val_grad_norm", None),
        ("per_ma", None),
        ("time_per_batch", None),
    ],
)
def test_a_name_with_prefixes_and_suffixes(title: str, signal: str | None) -> None:
    name = find_name(title)
    assert (name and name.signal) == signal


def test_a_ctc_loss_next_to_a_training_loss_is_held_out(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,ctc_loss,train_loss_avg,cer\n0,6.8,7.1,0.9\n100,1.7,2.7,0.5\n")
    assert recording.signals["loss"].tolist() == pytest.approx([7.1, 2.7])
    assert recording.validation["loss"].tolist() == pytest.approx([6.8, 1.7])
    assert recording.metric == "CER"


def test_one_name_is_chosen_for_the_whole_log(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"step": step, "train_loss_step": 9 - step} for step in range(5)]
    rows[3:3] = [{"step": 2, "train_loss_epoch": 100}]
    recording = read(tmp_path, "\n".join(map(json.dumps, [*rows, {"step": 9, "train_loss": 50}])))
    assert recording.signals["loss"].tolist() == [9, 8, 7, 6, 5]


def test_a_user_explains_a_name(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("n,objective,loss\n0,5,1\n10,4,1\n")
    recording = read_log(log, names={"loss": "objective", "step": "n"})
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.signals["loss"].tolist() == [5, 4]
    with pytest.raises(StabilityError, match="lost is not a signal"):
        read_log(log, names={"lost": "objective"})
    log.write_text("n,objective\n0,5\n")
    with pytest.raises(StabilityError, match=r"It has these names: n, objective\..*--map loss="):
        read_log(log)


@pytest.mark.parametrize(
    "text",
    [
        "n,objective\n0,5\n10,4\n",
        "hello\nn;objective\n0;5\n10;4\n",
        "n,tag,value\n0,objective,5\n10,objective,4\n",
        "n,a - objective\n0,5\n10,4\n",
        '{"n": 0, "objective": 5}\n{"n": 10, "objective": 4}\n',
        '{"n": [0, 10], "objective": [5, 4]}',
        "hello\n{'n': 0, 'objective': 5}\n{'n': 10, 'objective': 4}\n",
        "hello\nn: 0 | objective: 5\nn: 10 | objective: 4\n",
    ],
)
def test_a_user_explains_a_name_in_every_format(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    recording = read_log(log, names={"loss": "objective", "step": "n"})
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.signals["loss"].tolist() == [5, 4]
