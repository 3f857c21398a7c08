"""Trials are read from real folders; a folder that has none is listed with the reason."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stability.analysis.trials import read_trials
from stability.config.names import flatten
from stability.core.errors import StabilityError
from tests.support.configs import composed
from tests.support.trials import read_trial, write_trial


def test_factors_are_those_of_the_configuration(tmp_path: Path) -> None:
    write_trial(tmp_path / "s" / "a", "optimizer.epsilon=1e-8", "seed=1")
    write_trial(tmp_path / "s" / "b", "aug=weak", "seed=2", "study=other")
    found = read_trials([tmp_path / "s"])
    expected = flatten(composed("steps=20", "optimizer.epsilon=1e-8", "seed=1"))
    assert [t.seed for t in found.trials] == [1, 2]
    for name, level in found.trials[0].factors.items():
        assert level == (tuple(expected[name]) if isinstance(expected[name], list) else expected[name])
    assert expected.keys() - found.trials[0].factors.keys() > {"seed", "study", "device"}
    assert found.factors == {
        "optimizer.epsilon": (1e-8, 0.1),
        "aug.white_noise_std": (0.25, 1.0),
        "aug.constant_offset_std": (0.05, 0.2),
    }


def test_every_folder_without_a_trial_is_listed_with_the_reason(tmp_path: Path) -> None:
    study = tmp_path / "study"
    good = write_trial(study / "good")
    write_trial(study / "crashed", "seed=1")
    (study / "crashed" / "verdict.json").unlink()
    write_trial(study / "half", "seed=2")
    whole = (study / "half" / "verdict.json").read_text()
    (study / "half" / "verdict.json").write_text(whole[:40])
    old = write_trial(study / "old", "seed=3") / "config.yaml"
    old.write_text(old.read_text().replace("  clip_norm:", "  clip:"))
    write_trial(study / "same")
    write_trial(study / "unconfigured", "seed=4")
    (study / "unconfigured" / "config.yaml").unlink()
    write_trial(study / "empty", "seed=5", information=[])
    write_trial(study / "garbage", "seed=6")
    (study / "garbage" / "signals.csv").write_text("step,loss\n0,what\n")
    (study / "notes").mkdir()
    write_trial(study / "ruled", "seed=7", outcome="superb")
    write_trial(study / "locked", "seed=8")
    (study / "locked" / "signals.csv").unlink()
    (study / "locked" / "signals.csv").mkdir()
    for again in range(2):
        found = read_trials([study, good])
        assert [trial.name for trial in found.trials] == ["good"]
        reasons = {path.name: reason for path, reason in found.left_out}
        expected = {
            "crashed": "no verdict: it crashed, was stopped or is being trained",
            "half": "half written",
            "old": "(no optimizer.clip_norm, optimizer.clip unknown)",
            "same": "the same trial as another one, which is counted once",
            "unconfigured": "no config.yaml",
            "empty": "no step in signals.csv",
            "garbage": "is not a table of signals",
            "ruled": "its outcome superb is from another version of the program",
            "locked": "cannot be read: Is a directory",
            "notes": "no trial was started in it",
        }
        assert reasons.keys() == expected.keys(), again
        assert all(text in reasons[name] for name, text in expected.items())


def test_a_trial_older_than_a_setting_of_the_synthetic_data_has_its_default(tmp_path: Path) -> None:
    new, old = write_trial(tmp_path / "new", "seed=0"), write_trial(tmp_path / "old", "seed=1")
    config = OmegaConf.load(old / "config.yaml")
    del config.data.synthetic.bins_per_phoneme
    OmegaConf.save(config, old / "config.yaml")
    assert read_trials([new, old]).factors == {}
    assert [trial.factors["data.synthetic.bins_per_phoneme"] for trial in read_trials([new, old]).trials] == [9.0, 9.0]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"There is no folder .*nowhere: give the folder of a study"):
        read_trials([tmp_path / "nowhere"])
    with pytest.raises(StabilityError, match="There is no trial in"):
        read_trials([tmp_path])


def test_the_summary_is_made_again_for_another_verdict(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "a")
    assert read_trial(folder).outcome == "stable"
    verdict: dict[str, Any] = json.loads((folder / "verdict.json").read_text())
    (folder / "verdict.json").write_text(json.dumps(verdict | {"outcome": "slow"}))
    assert read_trial(folder).outcome == "slow"
    (folder / "summary.json").write_text('{"made of"')
    assert read_trial(folder).outcome == "slow"


@pytest.mark.parametrize("change", [{"per": "x"}, {"outcome": "[/red]"}, {"seed": None}, {"cause": []}])
def test_a_summary_with_other_kinds_of_values_is_made_again(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_trial(tmp_path / "a")
    trial = read_trial(folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"trial": summary["trial"] | change}))
    assert read_trial(folder) == trial


def test_a_summary_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    folder, outside = write_trial(tmp_path / "a"), tmp_path / "outside"
    outside.write_text("precious")
    (folder / "summary.json").symlink_to(outside)
    assert read_trial(folder).outcome == "stable"
    assert outside.read_text() == "precious"


def write_job(folder: Path, *, lr: str, seed: int, outcome: str) -> Path:
    """Write the folder of a job of somebody's own Hydra app, with what a Monitor leaves."""
    write_trial(folder, outcome=outcome, norms=[2.0] * 20)
    (folder / "config.yaml").unlink()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(f"optim:\n  lr: {lr}\nseed: {seed}\nname: job${{seed}}\n")
    return folder


def test_the_settings_of_a_hydra_app_are_factors(tmp_path: Path) -> None:
    for number, (lr, seed) in enumerate((lr, seed) for lr in ("1e-3", "0.1") for seed in (0, 1)):
        write_job(tmp_path / str(number), lr=lr, seed=seed, outcome="stable" if lr == "1e-3" else "exploded")
    for again in range(2):
        found = read_trials([tmp_path])
        assert found.factors == {"optim.lr": (0.001, 0.1)}, again
        assert [(t.seed, t.healthy, t.ours) for t in found.trials] == [
            (0, True, False), (1, True, False), (0, False, False), (1, False, False)
        ]  # fmt: skip


def test_the_settings_of_a_command_are_factors_and_what_was_not_logged_is_no_number(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 3.0)):
        folder = write_trial(tmp_path / str(number))
        trainer = "trainer: {kind: command, command: python x.py}"
        (folder / "config.yaml").write_text(f"settings: {{lr: {lr}}}\n{trainer}\nseed: 5\noptimizer: {{a: {lr}}}\n")
        (folder / "signals.csv").write_text("step,loss\n0,3.0\n1,2.0\n")
        (folder / "validation.csv").unlink()
    for again in range(2):
        found = read_trials([tmp_path])
        assert found.factors == {"settings.lr": (0.1, 3.0)}, again
        (first, _) = found.trials
        assert (first.seed, first.ours, first.steps) == (5, True, None)
        assert (first.per, first.norm_spike, first.loss) == pytest.approx((math.nan, math.nan, 2.0), nan_ok=True)
