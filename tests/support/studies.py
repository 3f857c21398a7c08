"""Made-up studies in real folders: many trials written quickly, each as its training would have left it."""

import json
import os
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from tests.support.configs import composed
from tests.support.tables import append_rows

EPSILON, LR, NOISE = "optimizer.epsilon", "schedule.lr_max", "aug.white_noise_std"
NAMES = ("loss", "blank_fraction", "grad_norm", "distinct_phonemes", "frame_information", "lr", "weight_norm")
_VARIANTS = 4  # of the tables of an outcome: trials with such seeds share the files


def write_study(
    folder: Path,
    levels: Mapping[str, list[Any]],
    outcome: Callable[[Mapping[str, Any]], str],
    *,
    steps: int = 60,
    columns: int = len(NAMES),
) -> Path:
    """Cross `levels`, {dotted name: levels}, one of which has to be the seed. `outcome` returns a trial's outcome."""
    tables = folder / ".tables"
    tables.mkdir(parents=True)
    plain = OmegaConf.to_container(OmegaConf.structured(composed(f"steps={steps}")))
    for number, values in enumerate(product(*levels.values())):
        trial = dict(zip(levels, values, strict=True))
        result = outcome(trial)
        own = folder / f"trial{number}-seed{trial['seed']}"
        own.mkdir()
        _set(plain, trial)
        (own / "config.yaml").write_text(yaml.dump(plain, Dumper=yaml.CSafeDumper, sort_keys=False))
        for table in _tables(tables, result, trial["seed"] % _VARIANTS, steps, columns):
            os.link(table, own / table.name.split("-")[-1])
        (own / "verdict.json").write_text(json.dumps(verdict(result, steps)))
    return folder


def verdict(outcome: str, steps: int) -> dict[str, Any]:
    """A verdict as the program writes it."""
    failed = outcome not in ("stable", "slow")
    return {
        "outcome": outcome,
        "cause": "rate_too_high" if outcome == "exploded" else None,
        "onset_step": steps // 5 if failed else None,
        "detected_step": steps // 4 if failed else None,
        "evidence": {},
        "advice": "An lr of 0.01 would make steps of 1%." if outcome == "exploded" else "",
    }


def _set(config: Any, trial: Mapping[str, Any]) -> None:
    for name, level in trial.items():
        *groups, end = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[end] = level


def _tables(folder: Path, outcome: str, variant: int, steps: int, columns: int) -> tuple[Path, Path]:
    """Signals and validations of such an outcome, written once."""
    signals, validation = (folder / f"{outcome}{variant}-{name}" for name in ("signals.csv", "validation.csv"))
    if not signals.exists():
        rng = np.random.default_rng([variant, len(outcome), ord(outcome[0])])
        x = np.arange(steps) / steps
        healthy = outcome in ("stable", "slow")
        pace = 4 if outcome == "stable" else 1.5
        norm = 20 * np.exp(-x + rng.normal(0, 0.1, steps))
        blank = np.where(x < 0.3 / pace, 0.98, 1 - 0.6 * (1 - np.exp(-pace * x))) if healthy else np.full(steps, 0.99)
        loss = 90 * np.exp(-pace * x if healthy else -0.2 * x) + rng.normal(0, 0.3, steps)
        if outcome in ("exploded", "non_finite"):
            growth = np.exp(np.maximum(0, x - 0.2) * 12 + rng.normal(0, 0.3, steps))
            loss, norm, blank = loss * growth, norm * growth**2, rng.uniform(0.2, 0.9, steps)
        if outcome == "non_finite":
            loss[-1] = norm[-1] = np.nan
        values = np.full((steps, columns), 1.0, np.float32)
        values[:, :5] = np.stack([loss, blank, norm, np.full(steps, 12.0), 2 * (1 - blank)], axis=1)
        names = [*NAMES, *(f"grad_norm.{i}" for i in range(columns - len(NAMES)))]
        append_rows(signals, names, range(steps), values)
        last = {"stable": 0.15, "slow": 0.7}.get(outcome, 0.97) + rng.normal(0, 0.01)
        at = np.linspace(0, steps - 1, 5).astype(int)
        rates = np.stack([np.linspace(0.97, last, 5), loss[at]], axis=1).astype(np.float32)
        append_rows(validation, ("per", "loss"), at, rates)
    return signals, validation
