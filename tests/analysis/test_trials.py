"""Trials are read from real folders; what cannot be read is listed with its reason."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from stability.analysis.trials import Trial, read_trials
from stability.config.names import flatten
from stability.core.errors import StabilityError
from stability.diagnosis.table import append_rows
from tests.support.configs import composed


def write(
    folder: Path,
    *overrides: str,
    outcome: str = "stable",
    information: list[float] | None = None,
    norms: list[float] | None = None,
    per: list[float] | None = None,
    **columns: list[float],
) -> Path:
    """A trial's folder as training leaves it; a budget of 20 steps."""
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


def read(folder: Path) -> Trial:
    found = read_trials([folder])
    assert found.left_out == ()
    (trial,) = found.trials
    assert read_trials([folder]) == found  # from the summary
    return trial


def test_factors_are_the_configuration_as_it_is_overridden(tmp_path: Path) -> None:
    write(tmp_path / "s" / "a", "optimizer.epsilon=1e-8", "seed=1")
    write(tmp_path / "s" / "b", "aug=weak", "seed=2", "study=other")
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


NONE, SOME = 0.0, 0.5


@pytest.mark.parametrize(
    ("information", "outcome", "expected"),
    [
        ([SOME] * 20, "stable", (1, False)),  # it was never on the plateau
        ([SOME] * 3 + [NONE] * 5 + [SOME] * 12, "stable", (9, False)),
        ([NONE] * 5 + [SOME] * 5 + [NONE] + [SOME] * 9, "slow", (12, False)),
        ([NONE] + [math.nan] * 9 + [0.08] + [math.nan] * 8 + [0.17], "stable", (14, False)),  # measured now and then
        ([NONE] * 20, "undecided", (20, True)),
        ([SOME] * 19 + [NONE], "blank_collapse", (20, True)),
        ([SOME] * 12, "non_finite", (12, True)),
        ([NONE] * 5 + [SOME] * 7, "mode_collapse", (12, True)),  # stopped before its budget
        ([NONE] * 5 + [SOME] * 15, "exploded", (20, True)),
    ],
)
def test_steps_on_the_plateau(
    tmp_path: Path, information: list[float], outcome: str, expected: tuple[int, bool]
) -> None:
    trial = read(write(tmp_path / "a", information=information, outcome=outcome))
    assert (trial.steps, trial.censored) == expected
    assert trial.healthy == (outcome in ("stable", "slow"))


@pytest.mark.parametrize(("per", "expected"), [([0.9, 0.25], 0.25), ([], 1.0), ([0.5, math.nan], 1.0), ([1.3], 1.3)])
def test_the_error_rate_that_it_had(tmp_path: Path, per: list[float], expected: float) -> None:
    assert read(write(tmp_path / "a", per=per, outcome="exploded")).per == pytest.approx(expected)


def test_gradient_norm_spikes(tmp_path: Path) -> None:
    norms = [float(n) for n in range(1, 21)]
    norms[14] = 800.0
    trial = read(write(tmp_path / "a", norms=norms))
    assert trial.norm_spike == pytest.approx(math.log(800 / np.median(norms[:14])))
    assert trial.largest_norm == 800
    norms[16] = math.inf
    assert read(write(tmp_path / "b", norms=norms)).norm_spike == math.inf
    assert read(write(tmp_path / "c", norms=[1.0, math.nan], information=[SOME] * 2)).norm_spike == math.inf
    assert read(write(tmp_path / "d", norms=[2.0], information=[SOME])).norm_spike == 0
    assert read(write(tmp_path / "e", norms=[0.0] * 20)).norm_spike == 0


def test_late_medians(tmp_path: Path) -> None:
    trial = read(write(tmp_path / "a", loss=[9.0] * 18 + [1.0, 3.0]))
    assert (trial.loss, trial.phonemes) == (2.0, 9.0)
    assert read(write(tmp_path / "b", loss=[9.0] * 18 + [math.nan] * 2)).loss == math.inf


def test_an_overflow_that_fp16_skips_by_design_is_no_spike(tmp_path: Path) -> None:
    norms = [math.inf] + [2.0] * 19
    skipped = write(tmp_path / "a", norms=norms, applied_norm=[0.0] + [2.0] * 19, loss_scale=[1024.0] * 20)
    assert read(skipped).norm_spike == 0
    applied = write(tmp_path / "b", norms=norms, applied_norm=[math.inf] + [2.0] * 19, loss_scale=[1024.0] * 20)
    assert read(applied).norm_spike == math.inf


def test_every_folder_without_a_trial_has_its_reason(tmp_path: Path) -> None:
    study = tmp_path / "study"
    good = write(study / "good")
    write(study / "crashed", "seed=1")
    (study / "crashed" / "verdict.json").unlink()
    write(study / "half", "seed=2")
    whole = (study / "half" / "verdict.json").read_text()
    (study / "half" / "verdict.json").write_text(whole[:40])
    old = write(study / "old", "seed=3") / "config.yaml"
    old.write_text(old.read_text().replace("  clip_norm:", "  clip:"))
    write(study / "same")
    write(study / "unconfigured", "seed=4")
    (study / "unconfigured" / "config.yaml").unlink()
    write(study / "empty", "seed=5", information=[])
    write(study / "garbage", "seed=6")
    (study / "garbage" / "signals.csv").write_text("step,loss\n0,what\n")
    (study / "notes").mkdir()
    write(study / "ruled", "seed=7", outcome="superb")
    write(study / "locked", "seed=8")
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
            "same": "the same trial as good, which counts once",
            "unconfigured": "no config.yaml",
            "empty": "no step in signals.csv",
            "garbage": "is not a table of signals",
            "ruled": "another version of the program ruled on it (superb)",
            "locked": "cannot be read: Is a directory",
            "notes": "no trial was begun in it",
        }
        assert reasons.keys() == expected.keys(), again
        assert all(text in reasons[name] for name, text in expected.items())


def test_a_trial_from_before_a_setting_of_the_made_up_data_has_its_default(tmp_path: Path) -> None:
    new, old = write(tmp_path / "new", "seed=0"), write(tmp_path / "old", "seed=1")
    config = OmegaConf.load(old / "config.yaml")
    del config.data.synthetic.bins_per_phoneme
    OmegaConf.save(config, old / "config.yaml")
    assert read_trials([new, old]).factors == {}
    assert [trial.factors["data.synthetic.bins_per_phoneme"] for trial in read_trials([new, old]).trials] == [9.0, 9.0]


def test_folders_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"There is no folder .*nowhere: give the folder of a study"):
        read_trials([tmp_path / "nowhere"])
    with pytest.raises(StabilityError, match="There is no trial in"):
        read_trials([tmp_path])


def test_the_summary_is_made_anew_for_another_verdict(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    assert read(folder).outcome == "stable"
    verdict: dict[str, Any] = json.loads((folder / "verdict.json").read_text())
    (folder / "verdict.json").write_text(json.dumps(verdict | {"outcome": "slow"}))
    assert read(folder).outcome == "slow"
    (folder / "summary.json").write_text('{"made of"')
    assert read(folder).outcome == "slow"
