"""Why a training makes no progress, by made-up signals whose cause is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.no_progress import why_no_progress
from tests.support.tables import blank_plateau, numbers


def why(**changes: Any) -> tuple[str, str]:
    return why_no_progress(blank_plateau(**changes), 299)


def test_weight_decay_is_found() -> None:
    cause, advice = why(weight_norm=np.linspace(20, 5, 30))
    assert cause == "decay"
    assert numbers(advice) == [20, 5]


def test_updates_that_are_large_enough_without_progress_blame_the_data() -> None:
    cause, advice = why(update_ratio=np.full(30, 0.01))
    assert cause == "no_information"
    assert numbers(advice) == [0.01]


def test_a_clip_before_the_unscaling_is_seen_in_the_applied_norm() -> None:
    cause, advice = why(loss_scale=np.full(300, 65536.0), applied_norm=np.full(30, 10 / 65536))
    assert cause == "precision"
    applied, limit, scale = numbers(advice)
    assert (applied, limit, scale) == pytest.approx((10 / 65536, 10, 65536), rel=0.05)


@pytest.mark.parametrize("applied", [np.full(30, 5.0), np.geomspace(1e-4, 1e-3, 30)])
def test_a_clip_after_the_unscaling_is_no_fault(applied: np.ndarray) -> None:
    assert why(loss_scale=np.full(300, 65536.0), applied_norm=applied)[0] == "step_too_small"


def test_the_advice_on_a_loss_that_is_a_mean_over_labels_has_what_was_measured() -> None:
    cause, advice = why(loss=np.full(300, 3.0))
    assert cause == "step_too_small"
    assert "sum per utterance as the loss" in advice
    assert numbers(advice) == pytest.approx([5e-4, 0.98, 0.02])
    assert "sum per utterance as the loss" not in why()[1]


def test_a_step_that_is_too_small_though_epsilon_is_not_the_reason() -> None:
    _, advice = why(epsilon_dominance=np.zeros(30), lr=np.geomspace(2e-3, 1e-6, 300))
    assert numbers(advice) == pytest.approx([5e-4, 1e-6, 2e-3])
    assert "Raise it" in advice


def test_a_rate_that_came_down_too_soon() -> None:
    _, advice = why(lr=np.geomspace(2e-3, 1e-6, 300))
    assert numbers(advice)[-2:] == pytest.approx([2e-3, 1e-6])


@pytest.mark.parametrize("missing", ["lr", "effective_lr", "epsilon_dominance", "update_ratio", "loss_per_label"])
def test_the_advice_has_no_number_that_was_not_recorded(missing: str) -> None:
    whole = blank_plateau()
    column = whole.names.index(missing)
    unmeasured = replace(whole, measured=whole.measured & (np.arange(len(whole.names)) != column))
    cause, advice = why_no_progress(unmeasured, 299)
    assert cause == "step_too_small"
    assert "nan" not in advice


def test_losses_of_zero_are_not_divided() -> None:
    assert why(loss=np.zeros(300), loss_per_label=np.zeros(300))[0] == "step_too_small"


def test_how_much_smaller_the_gradients_of_a_per_label_mean_are_is_measured() -> None:
    signals = blank_plateau(
        loss=np.full(300, 3.0), epsilon_dominance=np.ones(30), effective_lr=np.full(30, 0.02), labels=np.full(300, 21.0)
    )
    assert "21 times smaller" in why_no_progress(signals, 299)[1]
