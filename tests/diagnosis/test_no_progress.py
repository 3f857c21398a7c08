"""Why a training makes no progress, by made-up signals whose cause is known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stability.diagnosis.no_progress import why_no_progress
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, blank_plateau, numbers, table


def why(**changes: Any) -> tuple[str, str]:
    return why_no_progress(blank_plateau(**changes), NOTHING, 299)


def test_weight_decay_is_found() -> None:
    cause, advice = why(weight_norm=np.linspace(20, 5, 30))
    assert cause == "decay"
    assert numbers(advice) == [20, 5]


def test_a_part_whose_gradient_is_exactly_0_is_named() -> None:
    cause, advice = why(grad_norm__encoder=np.zeros(300), grad_norm__head=np.ones(300), update_ratio=np.full(30, 0.01))
    assert cause == "no_gradient"
    assert "exactly 0 in encoder" in advice


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
    cause, advice = why_no_progress(unmeasured, NOTHING, 299)
    assert cause == "step_too_small"
    assert "nan" not in advice


def test_losses_of_zero_are_not_divided() -> None:
    assert why(loss=np.zeros(300), loss_per_label=np.zeros(300))[0] == "step_too_small"


def test_how_much_smaller_the_gradients_of_a_per_label_mean_are_is_measured() -> None:
    signals = blank_plateau(
        loss=np.full(300, 3.0), epsilon_dominance=np.ones(30), effective_lr=np.full(30, 0.02), labels=np.full(300, 21.0)
    )
    assert "21 times smaller" in why_no_progress(signals, NOTHING, 299)[1]


def log(distance: int = 1, **signals: Any) -> Table:
    """What a log has of 2,000 steps in which the loss stands still."""
    at = np.arange(0, 2000, distance)
    return table(steps=at, loss=np.full(len(at), 60.0), **{name: make(at) for name, make in signals.items()})


def constant(value: float) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    return lambda at: np.full(len(at), value)


DISTANCES = pytest.mark.parametrize("distance", [1, 10, 100, 200])


@DISTANCES
def test_a_loss_alone_is_no_evidence_and_the_advice_says_what_to_log(distance: int) -> None:
    cause, advice = why_no_progress(log(distance), NOTHING, 1999)
    assert cause == "no_evidence"
    for missing in ("learning rate", "size of the updates", "gradient norm"):
        assert missing in advice


def test_what_was_recorded_is_not_asked_for() -> None:
    _, advice = why_no_progress(log(grad_norm=constant(5.0), lr=constant(1e-3)), NOTHING, 1999)
    assert "size of the updates" in advice
    assert "gradient norm" not in advice
    assert "learning rate" not in advice


@DISTANCES
@pytest.mark.parametrize(("rate", "cause"), [(1e-3, "no_evidence"), (1e-4, "no_evidence"), (1e-7, "step_too_small")])
def test_a_known_rate_is_too_small_only_if_it_is_tiny(rate: float, cause: str, distance: int) -> None:
    found, advice = why_no_progress(log(distance, lr=constant(rate)), NOTHING, 1999)
    assert found == cause
    if cause == "step_too_small":
        assert numbers(advice) == pytest.approx([rate])


@DISTANCES
def test_a_rate_that_fell_early_is_too_small(distance: int) -> None:
    cause, advice = why_no_progress(log(distance, lr=lambda at: np.where(at < 600, 1e-3, 2e-5)), NOTHING, 1999)
    assert cause == "step_too_small"
    assert numbers(advice) == pytest.approx([1e-3, 2e-5])
    assert (
        why_no_progress(log(distance, lr=lambda at: np.linspace(1e-3, 0, len(at))), NOTHING, 1999)[0] == "no_evidence"
    )


@DISTANCES
@pytest.mark.parametrize(("size", "cause"), [(1e-4, "step_too_small"), (0.01, "no_information")])
def test_the_sizes_of_updates_decide_if_they_were_measured(size: float, cause: str, distance: int) -> None:
    assert why_no_progress(log(distance, update_ratio=constant(size), lr=constant(1e-3)), NOTHING, 1999)[0] == cause


def test_large_updates_that_were_few_show_that_it_has_hardly_begun() -> None:
    assert why_no_progress(log(update_ratio=constant(0.01)), NOTHING, 30)[0] == "no_evidence"


def test_large_updates_that_left_large_weights_blame_the_rate() -> None:
    signals = log(update_ratio=lambda at: np.where(at < 200, 0.3, 1e-4), weight_norm=lambda at: np.minimum(10 + at, 90))
    cause, advice = why_no_progress(signals, NOTHING, 1999)
    assert cause == "rate_too_high"
    assert numbers(advice) == pytest.approx([0.3, 10, 90])


def test_only_what_was_recorded_up_to_the_step_counts() -> None:
    signals = log(lr=lambda at: np.where(at < 1000, 1e-7, 1e-3))
    assert why_no_progress(signals, NOTHING, 900)[0] == "step_too_small"
    assert why_no_progress(signals, NOTHING, 1999)[0] == "no_evidence"


def test_frozen_parameters_are_named_if_the_others_learn_nothing() -> None:
    cause, advice = why(frozen=np.full(30, 0.98), update_ratio=np.full(30, 0.01))
    assert cause == "no_gradient"
    assert "98% of the parameters are frozen" in advice
    assert why(frozen=np.zeros(30), update_ratio=np.full(30, 0.01))[0] == "no_information"


def test_small_steps_at_the_end_of_a_schedule_do_not_make_all_steps_too_small() -> None:
    falling = np.linspace(2e-3, 1e-5, 300)
    sizes = np.linspace(6e-3, 1e-5, 30)  # together about as large as the weights
    cause, advice = why(lr=falling, update_ratio=sizes, epsilon_dominance=np.zeros(30))
    assert cause == "no_evidence"
    assert "Train for longer" in advice
