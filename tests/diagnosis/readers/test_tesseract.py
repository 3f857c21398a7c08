"""Tesseract's training. The lines are made up in their shape."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from tests.support.logs import read

RMS = "Tesseract prints no loss: the mean rms takes its place."


def line(learned: int, rms: float, rate: float) -> str:
    return (
        f"At iteration {learned}/{2 * learned}/{2 * learned + 1}, mean rms={rms:.3f}%, delta=41.612%, "
        f"BCER train={rate:.3f}%, BWER train=100%, skip ratio=0.000%, New best BCER = {rate:.3f} wrote checkpoint.\n"
    )


def test_without_a_test_the_error_rate_of_training_counts(tmp_path: Path) -> None:
    log = "Loaded 1/1 lines (1-1) of document data/a.lstmf\n" + line(50, 6.5, 96) + "\n" + line(100, 6, 90)
    recording = read(tmp_path, f"{log}2 Percent improvement time=50, best error was 96.000 @ 50\n{line(150, 5.5, 80)}")
    assert recording.signals.steps.tolist() == [100, 200, 300]
    assert recording.signals["loss"].tolist() == [6.5, 6, 5.5]
    assert recording.validation["per"].tolist() == pytest.approx([0.96, 0.9, 0.8])
    assert recording.metric == "CER"
    assert recording.notes == (
        RMS,
        "The log has too few error rates of held-out data: the one of training data takes their place.",
        "CER is in percent: its values were divided by 100.",
    )


@pytest.mark.parametrize("name", ["Eval Char error rate", "BCER eval"])
def test_tests_on_held_out_lines_stand_at_the_step_of_their_model(tmp_path: Path, name: str) -> None:
    tested = "At iteration {}, stage 0, {}={}, Word error rate=99.5\n"
    recording = read(
        tmp_path,
        line(50, 6.5, 96)
        + line(100, 6, 90)
        + line(150, 5.5, 80).rstrip()  # what follows is printed on the same line
        + tested.format(100, name, 92.5)
        + line(200, 5, 70)
        + tested.format(150, name, 85.5),
    )
    assert recording.signals.steps.tolist() == [100, 200, 300, 400]
    assert recording.validation.steps.tolist() == [200, 300]
    assert recording.validation["per"].tolist() == pytest.approx([0.925, 0.855])
    assert recording.notes == (RMS, "eval CER is in percent: its values were divided by 100.")


def test_an_older_version_and_a_second_trainer_on_trial(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "At iteration 50/100/100, Mean rms=6.5%, delta=59.3%, char train=54.4%, word train=93.8%, skip ratio=0%,\n"
        "UpdateSubtrainer:At iteration 60/110/110, mean rms=1%, delta=1%, BCER train=1%, BWER train=1%,\n"
        "At iteration 100/200/200, Mean rms=nan%, delta=59.3%, char train=100%, word train=93.8%, skip ratio=0%,\n",
    )
    assert recording.signals.steps.tolist() == [100, 200]
    assert recording.signals["loss"].tolist() == pytest.approx([6.5, float("nan")], nan_ok=True)


def test_a_line_that_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="log, line 2: column 'loss': expected a number"):
        read(tmp_path, line(50, 6.5, 96) + line(100, 6, 90).replace("6.000", "6.0x0"))
