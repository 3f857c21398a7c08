"""CSV in every spelling."""

from pathlib import Path

import pytest

from tests.support.logs import read


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffstep,loss,grad_norm\n0,5,1\n10,4,2\n".encode(),
        b"step,loss,grad_norm\r\n0,5,1\r\n10,4,2\r\n",
        b"step;loss;grad_norm\n0;5;1\n10;4;2\n",
        b"step\tloss\tgrad_norm\n0\t5\t1\n10\t4\t2\n",
        b'"step","loss","grad_norm","a ""note"", quoted"\n"0","5","1","x, y"\n10,4,2,\n',
        b'"a, b";"step";"loss";"grad_norm"\nx;0;5;1\ny;10;4;2\n',
        b"\n\n Step , Train/Loss , grad_norm \n\n 0 , 5 , 1 \n\n 10 , 4 , 2 \n\n",
        "step,loss,grad_norm\n0,5,1\n10,4,2".encode("utf-16"),
        b"step;loss;grad_norm\n0;5,0;1\n10;4,00;2e0\n",
        b'step,loss,grad_norm\n0,5,1,\n"10",4,2,\n',
        b'step,loss,grad_norm\n0,"5,0",1\n10,"4,0",2\n',
        b"step,loss,grad_norm\n0,5,1\n" + bytes(100) + b"10,4,2\n",
        "step,loss,grad_norm\n0,5,1\n10,4,2".encode("utf-16-le"),
        b"# step loss grad_norm\n0 5 1\n10 4 2\n",
        b"step  loss  grad_norm\n0   5     1\n10  4     2\n",
        b"| Loss | Step | Grad norm |\n|:---:|:----:|:---:|\n| 5 | 0 | 1 |\n| 4 | 10 | 2 |\n",
        b"batch,global_step,loss,grad_norm,train/per\n0,0,5,1,1\n0,10,4,2,1\n",
        b"step|loss|grad_norm|val_loss|cer\n0|5|1||\n10|4|2||\n",
        b"| step | loss | grad_norm | cer |\n|---|---|---|---|\n| 0 | 5 | 1 | |\n| 10 | 4 | 2 | |\n",
    ],
)
def test_csv_in_every_spelling(tmp_path: Path, text: bytes) -> None:
    recording = read(tmp_path, text)
    assert set(recording.signals.names) == {"loss", "grad_norm"}
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.signals.values.tolist() == [[5, 1], [4, 2]]
    assert not len(recording.validation.steps)
    assert recording.notes == ()


def test_cells_with_thousands_percent_signs_and_lists(tmp_path: Path) -> None:
    recording = read(tmp_path, 'step,loss,lr,wer\n"1,000",5,"[1e-4, 1e-5]",4.5%\n"2,000",4,[1e-4],3.5 %\n')
    assert recording.signals.steps.tolist() == [1000, 2000]
    assert recording.signals["lr"].tolist() == pytest.approx([1e-4, 1e-4])
    assert recording.validation["per"].tolist() == pytest.approx([0.045, 0.035])
    assert recording.notes == ("wer is in percent: its values were divided by 100.",)


def test_a_column_for_the_part_of_the_data(tmp_path: Path) -> None:
    recording = read(
        tmp_path, "phase,epoch,loss,cer,lr\ntrain,1,5,0.7,0.1\nval,1,6,0.9,0.1\ntrain,2,4,0.6,0.1\nval,2,5,0.8,0.1\n"
    )
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.signals["lr"].tolist() == pytest.approx([0.1, 0.1])
    assert recording.validation["loss"].tolist() == [6, 5]
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.8])


def test_a_row_per_measurement(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,tag,value\n0,train/loss,5\n0,val/wer,0.9\n10,train/loss,4\n10,val/wer,0.8\n")
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.8])


def test_a_header_with_other_columns_in_the_middle(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss\n0,5\n10,4\nstep,loss,grad_norm\n20,3,1\n")
    assert recording.signals["loss"].tolist() == [5, 4, 3]
    assert recording.signals.measured[:, 1].tolist() == [False, False, True]
