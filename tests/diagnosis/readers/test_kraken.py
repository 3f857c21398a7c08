"""kraken's progress bars. The lines are made up in their shape."""

from pathlib import Path

import pytest

from tests.support.logs import read

HEAD = (
    "GPU available: True (cuda), used: True\n"
    "│ 0  │ val_cer   │ CharErrorRate            │      0 │\n"
    "Total estimated model params size (MB): 16   \n"
)


def bar(stage: int, done: int, accuracy: float, words: float) -> str:
    return (
        f"stage {stage}/∞ {'━' * 8} {done}/80 0:08:14 • 0:00:00 16.45it/s val_accuracy: {accuracy} "
        f"val_word_accuracy: {words}  early_stopping: 0/10 {accuracy}000   "
    )


def test_the_accuracy_of_characters_is_read_by_epoch(tmp_path: Path) -> None:
    log = HEAD + "".join(f"{bar(stage, 80, 0.25 * stage, 0.1 * stage)}\n" for stage in range(4))
    recording = read(tmp_path, log)
    assert (recording.unit, recording.metric) == ("epoch", "1 - val_accuracy")
    assert recording.validation.steps.tolist() == [0, 1, 2, 3]
    assert recording.validation["per"].tolist() == [1, 0.75, 0.5, 0.25]


def test_a_bar_that_is_not_full_shows_the_accuracy_of_the_epoch_before(tmp_path: Path) -> None:
    states = [(0, 80, 0.25), (1, 0, 0.25), (1, 79, 0.25), (1, 80, 0.25), (1, 80, 0.5), (2, 0, 0.5), (2, 40, 0.5)]
    recording = read(tmp_path, HEAD + "\r".join(bar(stage, done, accuracy, 0) for stage, done, accuracy in states))
    assert recording.validation.steps.tolist() == [0, 1]
    assert recording.validation["per"].tolist() == [0.75, 0.5]


def test_bars_on_a_narrow_terminal(tmp_path: Path) -> None:
    log = "".join(
        f"stage {stage}/2 ━━━━━━━━━━━━ 274/274 0:00:19 •    14.01it/s train_loss_step:          \n"
        f"                               0:00:00                {loss}      0/10 {accuracy}00 \n"
        "                                                      val_accuracy:             \n"
        f"                                                      {accuracy}                     \n"
        "                                                      train_loss_epoch:        \n"
        f"                                                      {loss}                     \n"
        for stage, loss, accuracy in ((0, 285.5, 0.25), (1, 266.5, 0.5))
    )
    recording = read(tmp_path, log)
    assert recording.validation["per"].tolist() == pytest.approx([0.75, 0.5])
    assert recording.signals["loss"].tolist() == [285.5, 266.5]


def test_an_accuracy_that_is_no_number(tmp_path: Path) -> None:
    recording = read(tmp_path, HEAD + f"{bar(0, 80, 0.5, 0)}\n{bar(1, 80, float('nan'), 0)}\n")
    assert not recording.validation["per"][1] < 1
