"""Trainings in which nothing is learned, by made-up signals that are exactly 0."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.finding import Finding
from stability.diagnosis.not_training import not_training
from tests.support.tables import NOTHING, numbers, table

ROWS = 20


def found(**changes: Any) -> Finding | None:
    """What is found in a training with these signals in the place of usual ones."""
    usual = {"loss": np.full(ROWS, 40.0), "grad_norm": np.full(ROWS, 5.0), "lr": np.full(ROWS, 1e-3)}
    return not_training(table(**(usual | changes)), NOTHING)


def from_row(row: int, otherwise: float) -> np.ndarray:
    """A signal that is exactly 0 from that row on."""
    return np.where(np.arange(ROWS) < row, otherwise, 0)


def test_a_usual_training_is_no_finding() -> None:
    assert found(update_ratio=np.full(ROWS, 1e-9), unoptimized=np.zeros(ROWS), no_gradient=np.zeros(ROWS)) is None
    assert not_training(NOTHING, NOTHING) is None


@pytest.mark.parametrize("distance", [1, 10, 100, 200])
@pytest.mark.parametrize(
    ("signal", "cause"),
    [("loss", "zero_loss"), ("grad_norm", "no_gradient"), ("lr", "no_update"), ("update_ratio", "no_update")],
)
def test_five_readings_of_exactly_0_are_a_fault(signal: str, cause: str, distance: int) -> None:
    finding = found(steps=np.arange(ROWS) * distance, **{signal: np.zeros(ROWS)})
    assert finding is not None
    assert (finding.kind, finding.cause, finding.signal) == ("not_training", cause, signal)
    assert (finding.onset_step, finding.detected_step, finding.value) == (0, 4 * distance, 0)


def test_four_readings_of_0_may_be_skipped_steps() -> None:
    norms = np.where(np.arange(ROWS) % 5, 0, 5.0)  # four in a row, again and again
    assert found(grad_norm=norms, lr=1e-3 * (norms > 0)) is None
    short: dict[str, Any] = {name: np.zeros(4) for name in ("loss", "grad_norm", "lr", "update_ratio")}
    assert not_training(table(**short), NOTHING) is None


@pytest.mark.parametrize(("signal", "usual"), [("grad_norm", 5.0), ("lr", 1e-3), ("update_ratio", 0.01)])
def test_a_training_that_stops_later_is_found_where_it_stopped(signal: str, usual: float) -> None:
    finding = found(**{signal: from_row(8, usual)})
    assert finding is not None
    assert (finding.onset_step, finding.detected_step) == (8, 12)


def test_a_loss_that_gets_to_0_later_is_no_fault() -> None:
    assert found(loss=from_row(8, 40)) is None


def test_a_gradient_that_is_small_is_no_fault() -> None:
    assert found(grad_norm=np.full(ROWS, 1e-20), loss=np.full(ROWS, 1e-12)) is None


def test_parameters_in_no_optimizer_are_counted() -> None:
    finding = found(unoptimized=np.r_[0, 0, np.ones(ROWS - 2)])
    assert finding is not None
    assert (finding.kind, finding.cause, finding.detected_step) == ("not_training", "not_in_optimizer", 2)
    assert numbers(finding.advice) == [1.0]


@pytest.mark.parametrize("signal", ["unoptimized", "no_gradient"])
def test_a_part_of_the_parameters_may_be_frozen(signal: str) -> None:
    assert found(**{signal: np.full(ROWS, 0.9)}) is None


def test_parameters_without_a_gradient_are_found_at_once() -> None:
    finding = found(no_gradient=np.ones(ROWS), grad_norm=np.zeros(ROWS))
    assert finding is not None
    assert (finding.cause, finding.signal, finding.detected_step) == ("no_gradient", "no_gradient", 0)


def test_the_first_of_several_reasons_is_named() -> None:
    finding = found(update_ratio=np.zeros(ROWS), unoptimized=np.ones(ROWS))
    assert finding is not None
    assert (finding.cause, finding.detected_step) == ("not_in_optimizer", 0)


def test_a_rate_that_has_fallen_far_is_named_as_the_reason_of_updates_of_0() -> None:
    finding = found(update_ratio=from_row(10, 1e-3), lr=np.geomspace(1e-3, 1e-30, ROWS))
    assert finding is not None
    assert (finding.cause, finding.signal) == ("no_update", "update_ratio")
    assert "the lr has fallen from 0.001" in finding.advice
    steady = found(update_ratio=from_row(10, 1e-3))
    assert steady is not None
    assert "the lr" not in steady.advice
