"""The official trainer's log."""

from pathlib import Path

from tests.support.logs import official, read


def test_lines_that_a_progress_bar_writes_over(tmp_path: Path) -> None:
    bar = "\r".join(f"{i}%" for i in range(100))
    assert read(tmp_path, bar + "\r" + official(range(0, 400, 200))).signals.steps.tolist() == [0, 200]


def test_a_number_that_is_cut_off_is_no_number(tmp_path: Path) -> None:
    text = official(range(0, 400, 200)) + "Train batch 400: loss: 94.31 grad norm: 4"
    assert read(tmp_path, text).signals.steps.tolist() == [0, 200]
