"""How long a sweep takes, from the steps that its trials have written."""

import math
from pathlib import Path

import pytest

from stability.sweeps.pace import Pace
from tests.support.tables import append_rows


def train(folder: Path, start: int, end: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    append_rows(folder / "signals.csv", ("loss", "grad_norm"), range(start, end), [[3.5, 1.0]] * (end - start))


def test_the_rest_of_a_sweep_takes_as_long_as_its_steps(tmp_path: Path) -> None:
    """Four trials of 100 steps in stacks of two, each of which makes 2 steps a second."""
    folders = [tmp_path / name for name in "abcd"]
    budgets = dict.fromkeys(folders, 100)
    pace = Pace(dict.fromkeys(folders, False))
    pace.look(folders, now=0)
    assert pace.seconds_left(budgets) is None
    for second in range(20, 30):  # the first steps come after 20 seconds of preparation
        for folder in folders[:2]:
            train(folder, 2 * (second - 20), 2 * (second - 19))
        pace.look(folders, now=second)
    assert pace.steps_a_second() == 4  # of two trials
    assert pace.trials[folders[0]].pace == 2
    assert pace.trials[folders[0]].loss == 3.5
    assert pace.seconds_left(budgets) == (400 - 40) / 4  # although no trial has ended
    for folder in folders[:2]:
        train(folder, 20, 100)
    pace.look(folders, now=69)
    assert pace.seconds_left(dict.fromkeys(folders[2:], 100)) == pytest.approx(50, rel=0.02)
    assert pace.seconds_left({}, others=400) == pytest.approx(100, rel=0.02)


def test_steps_of_earlier_runs_are_no_steps_of_this_one(tmp_path: Path) -> None:
    resumed, anew = tmp_path / "resumed", tmp_path / "anew"
    for folder in (resumed, anew):
        train(folder, 0, 60)
    pace = Pace({resumed: False, anew: True})
    pace.look([resumed, anew], now=0)
    assert pace.steps_a_second() == 0
    (anew / "signals.csv").unlink()
    pace.look([resumed, anew], now=1)
    train(anew, 0, 10)
    pace.look([resumed, anew], now=2)
    train(anew, 10, 20)
    pace.look([resumed, anew], now=4)
    assert pace.steps_a_second() == 5
    assert pace.seconds_left({resumed: 100, anew: 100}) == (40 + 80) / 5


def test_a_table_that_is_half_written_does_no_harm(tmp_path: Path) -> None:
    for number, text in enumerate(("", "st", "step,loss\n", "step,loss\n1", "step,loss\n1,2\n3", "step,loss\nx,y\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "signals.csv").write_text(text)
        pace = Pace({})
        pace.look([folder], now=0)
        assert pace.trials[folder].steps == (2 if "2" in text else 0)
        assert math.isnan(pace.trials[folder].loss) == ("2" not in text)
