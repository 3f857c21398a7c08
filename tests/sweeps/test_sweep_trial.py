"""A trial as a job of a sweep."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stability.sweeps.sweep_trial import run_in_sweep
from tests.support.configs import composed
from tests.support.trials import write_trial


def test_the_objective_is_the_per_if_stable_and_1_if_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stability.trials.scheduler", None)  # PyTorch, which finished trials do not need
    cfg = OmegaConf.structured(composed("tracking=none"))
    for outcome, objective in {"stable": 0.25, "slow": 1.0, "exploded": 1.0}.items():
        folder = write_trial(tmp_path / outcome, outcome=outcome, per=[0.9, 0.25])
        (folder / "run.png").touch()
        assert run_in_sweep(cfg, folder) == objective
