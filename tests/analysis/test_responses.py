"""The responses of trials, computed from their tables of signals."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.support.trials import read_trial, write_trial

SAME, DIFFERENT = 0.0, 0.5  # frame information on the plateau, and off it


@pytest.mark.parametrize(
    ("information", "outcome", "expected"),
    [
        ([DIFFERENT] * 20, "stable", (1, False)),  # it was never on the plateau
        ([DIFFERENT] * 3 + [SAME] * 5 + [DIFFERENT] * 12, "stable", (9, False)),
        ([SAME] * 5 + [DIFFERENT] * 5 + [SAME] + [DIFFERENT] * 9, "slow", (12, False)),
        ([SAME] + [math.nan] * 9 + [0.08] + [math.nan] * 8 + [0.17], "stable", (14, False)),  # measured now and then
        ([SAME] * 20, "undecided", (20, True)),
        ([DIFFERENT] * 19 + [SAME], "blank_collapse", (20, True)),
        ([DIFFERENT] * 12, "non_finite", (12, True)),
        ([SAME] * 5 + [DIFFERENT] * 7, "mode_collapse", (12, True)),  # stopped before its budget
        ([SAME] * 5 + [DIFFERENT] * 15, "exploded", (20, True)),
    ],
)
def test_steps_on_the_plateau_are_counted(
    tmp_path: Path, information: list[float], outcome: str, expected: tuple[int, bool]
) -> None:
    trial = read_trial(write_trial(tmp_path / "a", information=information, outcome=outcome))
    assert (trial.steps, trial.censored) == expected
    assert trial.healthy == (outcome in ("stable", "slow"))


@pytest.mark.parametrize(("per", "expected"), [([0.9, 0.25], 0.25), ([], 1.0), ([0.5, math.nan], 1.0), ([1.3], 1.3)])
def test_the_error_rate_is_that_of_the_last_validation(tmp_path: Path, per: list[float], expected: float) -> None:
    assert read_trial(write_trial(tmp_path / "a", per=per, outcome="exploded")).per == pytest.approx(expected)


def test_a_gradient_norm_spike_is_compared_with_the_median_before_it(tmp_path: Path) -> None:
    norms = [float(n) for n in range(1, 21)]
    norms[14] = 800.0
    trial = read_trial(write_trial(tmp_path / "a", norms=norms))
    assert trial.norm_spike == pytest.approx(math.log(800 / np.median(norms[:14])))
    assert trial.largest_norm == 800
    norms[16] = math.inf
    assert read_trial(write_trial(tmp_path / "b", norms=norms)).norm_spike == math.inf
    assert (
        read_trial(write_trial(tmp_path / "c", norms=[1.0, math.nan], information=[DIFFERENT] * 2)).norm_spike
        == math.inf
    )
    assert read_trial(write_trial(tmp_path / "d", norms=[2.0], information=[DIFFERENT])).norm_spike == 0
    assert read_trial(write_trial(tmp_path / "e", norms=[0.0] * 20)).norm_spike == 0


def test_late_medians_are_of_the_last_tenth(tmp_path: Path) -> None:
    trial = read_trial(write_trial(tmp_path / "a", loss=[9.0] * 18 + [1.0, 3.0]))
    assert (trial.loss, trial.phonemes) == (2.0, 9.0)
    assert read_trial(write_trial(tmp_path / "b", loss=[9.0] * 18 + [math.nan] * 2)).loss == math.inf


def test_an_overflow_that_the_loss_scaler_skips_is_no_spike(tmp_path: Path) -> None:
    norms = [math.inf] + [2.0] * 19
    skipped = write_trial(tmp_path / "a", norms=norms, applied_norm=[0.0] + [2.0] * 19, loss_scale=[1024.0] * 20)
    assert read_trial(skipped).norm_spike == 0
    applied = write_trial(tmp_path / "b", norms=norms, applied_norm=[math.inf] + [2.0] * 19, loss_scale=[1024.0] * 20)
    assert read_trial(applied).norm_spike == math.inf
