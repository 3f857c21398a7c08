"""`tracking.json`."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from tests.support.mlflow_runs import make_trial, open_tracker


@pytest.mark.parametrize("state", ["", "[]", '{"marks": {}}', '{"marks": {"signals.csv": {"step": 1}}}'])
def test_a_damaged_tracking_file_is_an_error(outputs: Path, state: str) -> None:
    folder = make_trial(outputs / "trial")
    (folder / "tracking.json").write_text(state)
    with pytest.raises(StabilityError, match=r"tracking\.json is damaged, or another version wrote it"):
        open_tracker(folder, outputs)
