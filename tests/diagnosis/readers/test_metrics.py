"""Metrics of an experiment tracker."""

from pathlib import Path

import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_metrics
from stability.diagnosis.signals import signal_names
from tests.support.tables import append_rows


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


def test_a_trial_is_the_same_from_its_folder_its_table_and_a_tracker(tmp_path: Path) -> None:
    names, rows = signal_names(layers=2), np.random.default_rng(0).random((30, len(signal_names(layers=2))))
    append_rows(tmp_path / "signals.csv", names, range(30), rows)
    append_rows(tmp_path / "validation.csv", ("per", "loss"), [9, 29], np.array([[0.9, 5], [0.5, 4]]))
    (tmp_path / "config.yaml").touch()
    folder = read_log(tmp_path)
    history = [(name, step, float(rows[step, place])) for step in range(30) for place, name in enumerate(names)]
    history += [("validation/per", 9, 0.9), ("validation/loss", 9, 5), ("validation/per", 29, 0.5)]
    history += [("validation/loss", 29, 4), ("steps_saved", 0, 3)]
    for recording in (read_log(tmp_path / "signals.csv"), read_metrics(tmp_path.name, history)):
        for own, other in ((recording.signals, folder.signals), (recording.validation, folder.validation)):
            assert own.names == other.names
            np.testing.assert_array_equal(own.steps, other.steps)
            np.testing.assert_array_equal(own.values, other.values)
