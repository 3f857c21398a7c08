"""A store for each test, and trackers that send at every update."""

import shutil
from pathlib import Path

import pytest

from stability.config.schema import Tracking
from stability.tracking import api, trial_sender
from stability.tracking.store import forget_failures
from tests.support.mlflow_runs import make_trial


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_sender, "SHORTEST_PAUSE", 0.0)
    monkeypatch.setattr(trial_sender, "LONGEST_PAUSE", 0.0)
    forget_failures()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised store: making one takes two seconds."""
    folder = tmp_path_factory.mktemp("store")
    make_trial(folder / "trial")
    api.open_tracker(Tracking("mlflow", None, "any"), folder / "trial", outputs=folder).abort("KILLED")
    return folder / "mlflow.db"


@pytest.fixture
def outputs(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path
