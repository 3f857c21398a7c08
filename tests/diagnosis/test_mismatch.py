"""Losses that are learned without the error rate: made-up trainings whose cause is known."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.mismatch import other_labels
from stability.diagnosis.table import Table
from tests.support.tables import numbers, table

FEW: dict[str, Any] = {"blank_fraction": np.full(200, 0.3), "distinct_phonemes": np.ones(200)}


def learned_loss(level: float = 0.0, **signals: Any) -> Table:
    return table(loss=level + np.r_[np.linspace(60, 3, 100), np.full(100, 3.0)], **FEW, **signals)


def test_training_labels_that_differ_from_those_of_validation_are_found() -> None:
    finding = other_labels(learned_loss(), table(steps=[20, 150], per=[1.0, 0.97]))
    assert finding is not None
    assert (finding.kind, finding.cause) == ("mode_collapse", "labels")
    assert finding.detected_step == 150
    assert finding.value == pytest.approx(0.97)
    share, rate = numbers(finding.advice)
    assert (share, rate) == (0.05, 0.97)


def test_an_error_rate_that_came_down_with_the_loss_is_no_fault() -> None:
    assert other_labels(learned_loss(), table(steps=[20, 150], per=[1.0, 0.4])) is None


@pytest.mark.parametrize("level", [-3.0, -40.0, -1000.0])
def test_a_loss_that_may_be_negative_is_no_evidence_about_labels(level: float) -> None:
    validation = table(steps=[20, 150], per=[1.0, 0.97])
    finding = other_labels(learned_loss(level), validation)
    assert finding is None or (level == -3.0 and numbers(finding.advice)[0] == 0)


def test_other_labels_are_not_seen_in_a_training_that_blew_up_at_once() -> None:
    """Its first validation comes when the loss is still that of the start, small beside what follows."""
    loss = np.r_[90.0, 90.0, 1e3, 1e4, np.full(96, 1e5)]
    validation = Table(("per",), np.array([0, 50]), np.full((2, 1), 0.97, np.float32), np.ones((2, 1), bool))
    assert other_labels(table(loss=loss), validation) is None
