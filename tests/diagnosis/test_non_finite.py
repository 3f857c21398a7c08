"""Losses and gradients that are not finite, by made-up signals whose fault is known."""

import math
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.finding import Finding
from stability.diagnosis.non_finite import count_non_finite, non_finite, non_finite_at_the_end, reveal_masked
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, numbers, table

STEPS, BAD = 60, 40


def found(**changes: Any) -> Finding | None:
    """What is found in a calm training with these signals in the place of its own."""
    rng = np.random.default_rng(0)
    calm = {"loss": 40 + rng.normal(size=STEPS), "grad_norm": 5 * np.exp(0.2 * rng.normal(size=STEPS))}
    return non_finite(table(**(calm | changes)), NOTHING)


def sure(**changes: Any) -> Finding:
    finding = found(**changes)
    assert finding is not None
    return finding


def with_value(value: float, usual: float = 5.0, at: int | slice = BAD) -> np.ndarray:
    values = np.full(STEPS, float(usual))
    values[at] = value
    return values


def test_nothing_is_found_in_a_finite_training() -> None:
    assert found() is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_input_that_is_not_finite_is_the_datas_fault(value: float) -> None:
    finding = sure(loss=with_value(math.nan), grad_norm=with_value(math.nan), input_max=with_value(value))
    assert (finding.kind, finding.cause) == ("bad_data", "non_finite_input")
    assert (finding.onset_step, finding.detected_step, finding.signal) == (BAD, BAD, "input_max")


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_targets_that_cannot_be_aligned_are_counted(loss: float) -> None:
    finding = sure(loss=with_value(loss, 40), infeasible_targets=with_value(3, 0))
    assert (finding.kind, finding.cause, finding.onset_step) == ("bad_data", "infeasible_target", BAD)
    assert (finding.signal, finding.value) == ("infeasible_targets", 3)
    assert numbers(finding.advice) == [3]


def test_an_infinite_loss_of_a_calm_ctc_decoder_is_an_infeasible_target() -> None:
    finding = sure(loss=with_value(math.inf, 40), blank_fraction=np.full(STEPS, 0.5))
    assert (finding.kind, finding.cause) == ("bad_data", "infeasible_target")
    assert (finding.signal, finding.value) == ("loss", math.inf)


def test_targets_that_were_counted_and_fit_are_not_blamed() -> None:
    calm = {"loss": with_value(math.inf, 40), "blank_fraction": np.full(STEPS, 0.5)}
    assert sure(**calm).cause == "infeasible_target"
    assert sure(**calm, infeasible_targets=np.zeros(STEPS)).cause == "loss"


def test_infeasible_targets_of_a_finite_loss_are_no_fault() -> None:
    assert found(infeasible_targets=np.full(STEPS, 2.0)) is None


def test_an_infinite_loss_of_anything_else_is_its_own_fault() -> None:
    assert sure(loss=with_value(math.inf, 40)).cause == "loss"


def test_a_loss_that_is_nan_is_a_fault() -> None:
    finding = sure(loss=with_value(math.nan, 40), blank_fraction=np.full(STEPS, 0.5))
    assert (finding.kind, finding.cause, finding.onset_step) == ("non_finite", "loss", BAD)


def test_fp16_overflows_that_a_smaller_scale_mends_are_no_fault() -> None:
    norms, scale = np.full(STEPS, 5.0), np.full(STEPS, 65536.0)
    for step in (0, 1, 2, 3, 30):  # each halves the scale
        norms[step] = math.inf
        scale[step + 1 :] /= 2
    assert found(grad_norm=norms, loss_scale=scale) is None


def test_fp16_overflows_without_a_smaller_scale_are_a_fault() -> None:
    finding = sure(grad_norm=with_value(math.inf, at=slice(20, None)), loss_scale=np.full(STEPS, 1024.0))
    assert (finding.kind, finding.cause, finding.onset_step) == ("non_finite", "precision", 20)
    assert finding.detected_step == 23  # the first may be mended by what follows it; three more were not
    assert numbers(finding.advice) == [20, 1024]


def test_fp16_overflows_that_continue_at_smaller_scales_are_a_fault() -> None:
    scale = 2.0 ** np.r_[np.full(20, 60), np.arange(60, 20, -1)]
    finding = sure(grad_norm=with_value(math.nan, at=slice(20, None)), loss_scale=scale)
    assert (finding.cause, finding.onset_step, finding.detected_step) == ("precision", 20, 44)


def test_a_loss_that_overflows_in_fp16() -> None:
    finding = sure(loss=with_value(math.inf, 40), loss_scale=np.full(STEPS, 1024.0))
    assert (finding.kind, finding.cause, finding.onset_step) == ("non_finite", "precision", BAD)


LASTING = slice(BAD, None)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_no_fault_if_the_training_went_on(value: float) -> None:
    assert found(grad_norm=with_value(value)) is None
    assert found(grad_norm=with_value(value, at=slice(BAD, STEPS - 3))) is None
    assert sure(grad_norm=with_value(value, at=slice(BAD, STEPS - 2))).onset_step == BAD


def test_without_a_loss_scale_overflows_to_the_end_are_a_fault() -> None:
    assert sure(grad_norm=with_value(math.inf, at=LASTING), loss_scale=np.ones(STEPS)).onset_step == BAD


def test_a_gradient_that_is_no_number_is_named_by_its_part() -> None:
    finding = sure(
        loss=with_value(40, 40),
        grad_norm=with_value(math.nan, at=LASTING),
        grad_norm__head=with_value(math.nan, at=LASTING),
        grad_norm__gru=np.full(STEPS, 3.0),
        grad_norm__day=np.full(STEPS // 10, 3.0),  # not measured at that step
    )
    assert (finding.kind, finding.cause, finding.signal) == ("non_finite", "gradient", "grad_norm")
    assert math.isnan(finding.value)
    assert "in head," in finding.advice
    assert "gru" not in finding.advice
    assert "day" not in finding.advice
    assert numbers(finding.advice)[0] == 40


def test_a_part_that_was_not_measured_then_is_not_blamed() -> None:
    finding = sure(grad_norm=with_value(math.nan, at=slice(45, None)), grad_norm__day=np.full(STEPS // 10, 3.0))
    assert finding.onset_step == 45
    assert "day" not in finding.advice


def test_the_advice_on_a_gradient_norm_alone_has_no_loss() -> None:
    finding = non_finite(table(grad_norm=with_value(math.nan, at=LASTING)), NOTHING)
    assert finding is not None
    assert finding.cause == "gradient"
    assert "nan" not in finding.advice


def test_a_rate_too_high_is_found_behind_the_number_that_is_not_finite() -> None:
    lr = np.where(np.arange(STEPS) < 20, 1e-3, 0.1)
    finding = sure(loss=with_value(math.nan, 40), lr=lr, update_ratio=[0.01, 0.01, 0.3, 0.5, 0.8, 0.8])
    assert (finding.kind, finding.cause, finding.onset_step) == ("non_finite", "rate_too_high", BAD)


def test_what_is_not_finite_later_does_not_count() -> None:
    finding = sure(loss=with_value(math.nan, 40, slice(BAD, None)), input_max=with_value(math.nan, 5, BAD + 1))
    assert (finding.kind, finding.onset_step) == ("non_finite", BAD)


@pytest.mark.parametrize("distance", [1, 10, 100, 200])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_not_finite_at_the_end_is_found_since_it_began(name: str, distance: int) -> None:
    signals: dict[str, Any] = {"loss": np.full(STEPS, 40.0), "grad_norm": np.full(STEPS, 5.0)}
    signals[name] = signals[name].copy()
    signals[name][10] = signals[name][LASTING] = math.nan  # the first one was skipped
    finding = non_finite_at_the_end(table(steps=np.arange(STEPS) * distance, **signals))
    assert finding is not None
    assert (finding.kind, finding.signal, finding.onset_step) == ("non_finite", name, BAD * distance)


def test_a_training_that_went_on_is_finite_at_the_end() -> None:
    at_the_end = with_value(math.nan, 40, slice(BAD, STEPS - 1))
    assert non_finite_at_the_end(table(loss=at_the_end, grad_norm=at_the_end)) is None
    assert non_finite_at_the_end(NOTHING) is None
    assert non_finite_at_the_end(table(lr=with_value(math.nan, at=LASTING))) is None


def test_a_loss_that_never_was_finite_is_found_from_its_first_step() -> None:
    finding = non_finite_at_the_end(table(loss=np.full(STEPS, math.nan)))
    assert finding is not None
    assert finding.onset_step == 0


def test_the_earlier_of_loss_and_gradient_is_the_onset() -> None:
    norms = with_value(math.nan, at=slice(BAD - 2, None))
    finding = non_finite_at_the_end(table(loss=with_value(math.nan, 40, LASTING), grad_norm=norms))
    assert finding is not None
    assert (finding.signal, finding.onset_step) == ("grad_norm", BAD - 2)


def test_readings_that_are_not_finite_are_counted_by_kind() -> None:
    norms = with_value(math.inf, at=slice(0, 3))
    norms[5] = math.nan
    counts = count_non_finite(table(loss=with_value(-math.inf, 40), grad_norm=norms))
    assert counts == {
        "infinite losses": "1 of 60",
        "infinite gradient norms": "3 of 60",
        "non_finite gradient norms": "1 of 60",
    }
    assert count_non_finite(table(loss=np.ones(5), grad_norm=np.ones(5))) == {}
    assert count_non_finite(NOTHING) == {}


def test_only_measured_readings_are_counted() -> None:
    assert count_non_finite(table(loss=np.ones(STEPS), grad_norm=np.full(6, math.nan))) == {
        "non_finite gradient norms": "6 of 6"
    }


ZERO_SINCE = with_value(0, 40, LASTING)
ONCE_NAN = with_value(math.nan, at=LASTING)


def hidden(signals: Table, validation: Table) -> list[int]:
    """The steps at which a NaN is revealed."""
    return [int(step) for step in signals.steps[np.isnan(reveal_masked(signals, validation)["loss"])]]


@pytest.mark.parametrize("distance", [1, 10, 100, 200])
def test_a_loss_of_exactly_0_beside_a_nan_hides_a_nan(distance: int) -> None:
    at = np.arange(STEPS) * distance
    late = table(steps=[20 * distance, 55 * distance], loss=[40.0, math.nan])
    for signals, validation in (
        (table(steps=at, loss=ZERO_SINCE, grad_norm=ONCE_NAN), NOTHING),
        (table(steps=at, loss=ZERO_SINCE), late),
        (table(steps=at, loss=ZERO_SINCE), table(steps=[20 * distance, 55 * distance], per=[0.3, 1.0])),
    ):
        assert hidden(signals, validation) == [*range(BAD * distance, STEPS * distance, distance)]


def test_a_loss_that_leaps_to_0_in_a_model_that_no_longer_changes_hides_a_nan() -> None:
    signals = table(loss=ZERO_SINCE, grad_norm=np.where(ZERO_SINCE > 0, 5.0, 0.0))
    still = table(steps=[20, 45, 55], per=[0.3, 0.1, 0.1], loss=[4.0, 1.0, 1.0])
    assert hidden(signals, still) == [*range(BAD, STEPS)]


def test_an_input_that_is_nan_shows_what_a_loss_of_0_hides() -> None:
    assert hidden(table(loss=ZERO_SINCE, input_max=ONCE_NAN), NOTHING) == [*range(BAD, STEPS)]


def test_a_loss_that_was_learned_down_to_0_hides_nothing() -> None:
    signals = table(loss=ZERO_SINCE, grad_norm=np.full(STEPS, 1e-9))
    good = table(steps=[20, 55], per=[0.3, 0.1], loss=[4.0, 1.0])
    assert reveal_masked(signals, good) is signals
    assert reveal_masked(signals, NOTHING) is signals


def test_a_nan_long_before_hides_nothing() -> None:
    assert hidden(table(loss=ZERO_SINCE, grad_norm=with_value(math.nan, at=5)), NOTHING) == []


def test_a_loss_of_0_at_a_few_steps_hides_nothing() -> None:
    assert hidden(table(loss=with_value(0, 40, slice(20, 30)), grad_norm=ONCE_NAN), NOTHING) == []


@pytest.mark.parametrize("loss", [np.zeros(STEPS), np.full(STEPS, 40.0)])
def test_without_a_change_to_0_nothing_is_hidden(loss: np.ndarray) -> None:
    signals = table(loss=loss, grad_norm=np.full(STEPS, math.nan))
    assert reveal_masked(signals, NOTHING) is signals


def test_the_signals_that_were_given_stay_as_they_are() -> None:
    signals = table(loss=ZERO_SINCE, grad_norm=ONCE_NAN)
    reveal_masked(signals, NOTHING)
    assert np.array_equal(signals["loss"], ZERO_SINCE)


def test_a_loss_scale_that_fell_and_fell_before_a_nan_is_named() -> None:
    scale = np.where(np.arange(STEPS) < 20, 32, 32 / 2.0 ** (np.arange(STEPS) - 19))
    finding = sure(loss=with_value(math.nan, 40), loss_scale=scale)
    assert (finding.kind, finding.cause, finding.onset_step) == ("non_finite", "precision", BAD)
    assert "fell from 32 to 1.5e-05" in finding.advice


def test_a_loss_scale_that_is_calibrated_at_the_start_says_nothing() -> None:
    scale = np.maximum(65536 / 2.0 ** np.arange(STEPS), 1.0)
    finding = sure(loss=with_value(math.nan, 40), loss_scale=scale)
    assert finding.cause == "loss"
