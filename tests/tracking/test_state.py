"""`tracking.json`, which says what has been sent."""

from dataclasses import replace
from pathlib import Path

import pytest

from stability.config.schema import Tracking
from stability.core.errors import StabilityError
from stability.tracking.api import is_sent
from stability.tracking.state import Mark, State, read_state, write_state
from tests.support.mlflow_runs import add_rows, make_trial, open_tracker


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    marks = {"signals.csv": Mark(sent=9, announced=19, time=5)}
    state = State("http://host", "study", {"a": "b"}, run_id="1", marks=marks, attachments=["report.html"])
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_a_trial_is_sent_when_its_run_is_closed_in_the_store_of_the_settings(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    settings = Tracking("mlflow", None, "study")
    assert not is_sent(settings, folder, outputs=outputs)
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 0, 10)
    tracker.update()
    assert not is_sent(settings, folder, outputs=outputs)
    tracker.finish()
    assert is_sent(settings, folder, outputs=outputs)
    assert not is_sent(replace(settings, experiment="other"), folder, outputs=outputs)
    assert not is_sent(replace(settings, uri="http://localhost:5000"), folder, outputs=outputs)
    assert is_sent(Tracking("none", None, "study"), outputs / "absent", outputs=outputs)


@pytest.mark.parametrize("state", ["", "[]", '{"marks": {}}', '{"marks": {"signals.csv": {"step": 1}}}'])
def test_a_damaged_tracking_file_is_an_error(outputs: Path, state: str) -> None:
    folder = make_trial(outputs / "trial")
    (folder / "tracking.json").write_text(state)
    with pytest.raises(StabilityError, match=r"tracking\.json is damaged, or another version wrote it"):
        open_tracker(folder, outputs)
