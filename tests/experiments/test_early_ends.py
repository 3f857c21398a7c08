"""What early ends would save, as the write-up says it."""

import numpy as np
import pytest

from experiments.early_ends import looks_settled, studies
from stability.diagnosis.table import Table


def table(steps: list[int], **columns: list[float]) -> Table:
    values = np.array([*columns.values()], np.float32).T
    return Table((*columns,), np.array(steps), values, np.isfinite(values))


def test_a_training_looks_settled_at_its_first_good_error_rate_and_not_at_its_last_step() -> None:
    signals = table([*range(100)], loss=[3.0 - 0.02 * step for step in range(100)], lr=[0.1] * 100)
    rates = table([19, 39, 59, 79, 99], per=[0.9, 0.7, 0.5, 0.4, 0.3], loss=[3.0, 2.0, 1.5, 1.2, 1.0])
    assert looks_settled(signals, rates) == (59, True)
    assert looks_settled(signals, rates, sure=True) == (79, True), "the second in a row"
    assert looks_settled(signals, rates.take(np.array([0, 1, 4]))) is None


@pytest.mark.slow
def test_the_steps_of_both_studies_are_those_of_the_write_up(capsys: pytest.CaptureFixture[str]) -> None:
    studies()
    printed = capsys.readouterr().out
    assert "so far 72 trials, 36,000 steps; with early ends 29,421" in printed
    assert "so far 72 trials, 36,000 steps; with early ends 25,652" in printed
