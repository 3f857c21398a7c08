"""A trial's folder."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log


def test_a_folder_that_is_not_a_trials(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="it is not a trial's folder"):
        read_log(tmp_path)
