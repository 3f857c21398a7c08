from pathlib import Path

import pytest

from stability.data.t15_writer import write_session
from tests.support.sessions import utterances


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two days, each with three utterances to train on and two to validate on."""
    root = tmp_path / "data"
    for seed, day in enumerate(["day.1", "day.2"]):
        write_session(root / day, "train", utterances(3, seed=seed))
        write_session(root / day, "val", utterances(2, seed=seed + 10))
    return root
