"""Made-up trials: in memory, and in real folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from stability.analysis.trial import Trial
from stability.analysis.trials import read_trials
from tests.support.configs import composed
from tests.support.tables import append_rows


def trial(seed: int, *, per: float = 0.2, steps: int = 50, censored: bool = False, **changes: Any) -> Trial:
    """A trial in memory. `changes` are fields, and else factors: `x__y` is the factor x.y."""
    fields = {k: v for k, v in changes.items() if k in Trial.__dataclass_fields__}
    factors = {k.replace("__", "."): v for k, v in changes.items() if k not in fields}
    values: dict[str, Any] = {
        "name": f"{factors}-{seed}",
        "factors": factors,
        "seed": seed,
        "outcome": "stable",
        "cause": None,
        "healthy": True,
        "steps": steps,
        "censored": censored,
        "per": per,
        "norm_spike": 0.5,
        "largest_norm": 50.0,
        "phonemes": 20.0,
        "loss": 2.0,
    }
    return Trial(**{**values, **fields})


def write_trial(
    folder: Path,
    *overrides: str,
    outcome: str = "stable",
    information: list[float] | None = None,
    norms: list[float] | None = None,
    per: list[float] | None = None,
    **columns: list[float],
) -> Path:
    """Write the folder of a trial with a budget of 20 steps, as its training leaves it."""
    folder.mkdir(parents=True)
    config = composed("steps=20", *overrides)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    information = [0.5] * 20 if information is None else information
    norms = [1.0] * len(information) if norms is None else norms
    values: dict[str, list[float]] = {
        "loss": [3.0] * len(information),
        "frame_information": information,
        "grad_norm": norms,
        "distinct_phonemes": [9.0] * len(information),
    }
    values |= columns
    table = np.array(list(values.values()), np.float32).T
    append_rows(folder / "signals.csv", list(values), range(len(information)), table)
    for step, rate in enumerate([0.9, 0.25] if per is None else per):
        append_rows(folder / "validation.csv", ("per", "loss"), [step], np.array([[rate, 1.0]], np.float32))
    verdict: dict[str, Any] = {
        "outcome": outcome,
        "cause": None,
        "onset_step": None,
        "detected_step": 19,
        "evidence": {},
        "advice": "",
    }
    (folder / "verdict.json").write_text(json.dumps(verdict))
    return folder


def read_trial(folder: Path) -> Trial:
    """Read the one trial of a folder, from its tables and from its summary."""
    found = read_trials([folder])
    assert found.left_out == ()
    (trial,) = found.trials
    assert read_trials([folder]) == found  # from the summary
    return trial
