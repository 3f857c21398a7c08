"""Losses and gradients that are not finite, by made-up signals whose fault is known."""

import math
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.finding import Finding
from stability.diagnosis.non_finite import non_finite
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
