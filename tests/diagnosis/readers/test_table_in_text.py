"""Tables between other output."""

from pathlib import Path

import pytest

from stability.diagnosis.readers import read_runs
from tests.support.logs import read


@pytest.mark.parametrize(
    "text",
    [
        "# run of today\n# lr=0.1\nepoch,train_loss,val_loss\n1,5,6\n2,4,5\n",
        "Using device: cuda\nLoading 3 sessions\nepoch;train_loss;val_loss\n1;5,0;6\n2;4,0;5\nTrained for 3 min\n",
        "Using device: cuda\n Epoch   Train Loss   Val Loss\n------  ----------  --------\n"
        "     1      5.0000    6.0000\n     2      4.0000    5.0000\n",
        "epoch     train_loss  valid_loss  time\n1     5.0       6.0         00:10\n2         4.0    5.0    00:10\n",
        "# my-model\n- learning_rate: 0.0003\n- Loss: 0.5\n\n### Training results\n\n"
        "| Training Loss | Epoch | Validation Loss |\n|:-------------:|:-----:|:---------------:|\n"
        "| 5.0           | 1.0   | 6.0             |\n| 4.0 | 2.0 | 5.0 |\n\n### Framework versions\n- x 4.11.3\n",
    ],
)
def test_a_table_with_epochs(tmp_path: Path, text: str) -> None:
    recording = read(tmp_path, text)
    assert recording.unit == "epoch"
    assert recording.signals.steps.tolist() == [1, 2]
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.validation["loss"].tolist() == [6, 5]


def test_two_tables_are_two_runs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("started\nstep,loss\n0,5\n10,4\nstarted\nstep,loss\n0,6\n10,5\n")
    first, second = read_runs(log)
    assert first.signals["loss"].tolist() == [5, 4]
    assert second.signals["loss"].tolist() == [6, 5]


def test_a_sentence_is_no_header(tmp_path: Path) -> None:
    recording = read(tmp_path, "An epoch, a loss, and more:\n1, 2, 3\nstep 1 loss 5\nstep 2 loss 4\n")
    assert recording.signals["loss"].tolist() == [5, 4]


def test_the_best_value_of_a_table_may_be_set_in_bold(tmp_path: Path) -> None:
    rows = "| epoch | **loss** | dev WER |\n|--|--|--|\n| 1 | 5.0 | **90.0** |\n| 2 | __4.0__ | *50.5* |\n"
    for text in (rows, f"# my-model\n\n{rows}"):
        recording = read(tmp_path, text)
        assert recording.signals["loss"].tolist() == [5, 4]
        assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.505])
