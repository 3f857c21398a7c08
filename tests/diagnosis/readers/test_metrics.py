"""Metrics of an experiment tracker."""

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_metrics


def test_a_resume_is_recognised_among_metrics_in_time_order() -> None:
    history = [
        (name, step, float(step)) for step in (0, 10, 20, 10, 20, 30) for name in ("train/loss", "grad_norm", "x")
    ]
    recording = read_metrics("run", history)
    assert recording.signals.steps.tolist() == [0, 10, 20, 30]
    assert recording.signals.measured.all()
    assert recording.notes == ("The run resumed from step 10 after step 20: later rows replace earlier ones.",)
    with pytest.raises(StabilityError, match="run has no metric that is known"):
        read_metrics("run", [("x", 0, 1.0)])
