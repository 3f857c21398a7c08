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
        b"batch,global_step,loss,grad_norm,train/per\n0,0,5,1,1\n0,10,4,2,1\n",
    ],
)
def test_csv_in_every_spelling(tmp_path: Path, text: bytes) -> None:
    recording = read(tmp_path, text)
    assert recording.signals.names == ("loss", "grad_norm")
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.signals.values.tolist() == [[5, 1], [4, 2]]
    assert not len(recording.validation.steps)
    assert recording.notes == ()
