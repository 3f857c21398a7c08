"""Rows without steps, and gaps."""

from pathlib import Path

from tests.support.logs import read


def test_rows_without_steps_are_numbered(tmp_path: Path) -> None:
    for text in ("loss\n5\n4\n3\n", "epoch,loss\n0,5\n0,4\n1,3\n", '{"loss": 5}\n{"loss": 4}\n{"loss": 3}\n'):
        recording = read(tmp_path, text)
        assert recording.signals.steps.tolist() == [0, 1, 2]
        assert recording.signals["loss"].tolist() == [5, 4, 3]
        assert recording.notes == ("The log has no steps: its rows are numbered 0, 1, 2, …",)


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
