"""Whole trials on every device there is: on a GPU these are tests of `make test-gpu`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stability.config.schema import Config
from stability.core.errors import Interrupted
from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import Verdict
from stability.engine import stack
from stability.engine.step import train_steps
from stability.trials import scheduler
from stability.trials.replay import replay
from stability.trials.run import run_trial, trial
from stability.trials.scheduler import train_together
from tests.support.configs import tiny
from tests.support.devices import DEVICES
from tests.support.trial_folders import without_figure
from tests.trials.test_scheduler import ctrl_c, disturbed

_SET = ("features=6", "days=4", "words=1", "train_utterances=6", "val_utterances=4")
every_device = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.type)
every_precision = pytest.mark.parametrize("precision", ["auto", "bf16"])


def config(root: Path, device: torch.device, *overrides: str) -> Config:
    settings = (*(f"data.synthetic.{setting}" for setting in _SET), "validate_every=10", "checkpoint_every=10")
    own = tiny(*settings, "steps=24", *overrides)
    own.outputs, own.data.path, own.device = str(root), str(root / "set"), str(device)
    return own


@every_device
@every_precision
def test_a_trial_ends_with_a_verdict_and_is_the_same_after_a_stop(
    device: torch.device, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "choose_engine", lambda *_: "loop")  # which gives the same bits on every device
    own = config(tmp_path, device, f"precision={precision}")
    whole, stopped = (without_figure(tmp_path / name) for name in ("whole", "stopped"))
    verdict = run_trial(own, whole, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "train_steps", disturbed(train_steps, {2: ctrl_c}))
        with pytest.raises(Interrupted):
            run_trial(own, stopped, quiet=True)
    assert len(read_table(stopped / "signals.csv").steps) < 24
    assert run_trial(own, stopped, quiet=True).outcome == verdict.outcome
    for name in ("signals.csv", "validation.csv"):
        first, second = read_table(whole / name), read_table(stopped / name)
        np.testing.assert_array_equal(first.steps, second.steps)
        np.testing.assert_array_equal(first.values, second.values)
    assert np.isfinite(read_table(whole / "signals.csv")["loss"]).all()


@every_device
@every_precision
def test_trials_in_a_stack_end_as_alone(device: torch.device, precision: str, tmp_path: Path) -> None:
    own = [config(tmp_path, device, f"precision={precision}", f"seed={seed}", f"steps={24 + seed}") for seed in (0, 5)]
    folders = [without_figure(tmp_path / f"{i}") for i in range(4)]
    for each, folder in zip(own, folders[:2], strict=True):
        run_trial(each, folder, quiet=True)
    together = train_together([trial(c, f, quiet=True) for c, f in zip(own, folders[2:], strict=True)], size=2)
    for result, folder, alone in zip(together, folders[2:], folders[:2], strict=True):
        assert isinstance(result, Verdict), result
        assert result.outcome == Verdict.from_json((alone / "verdict.json").read_text()).outcome
        rows, wanted = read_table(folder / "signals.csv"), read_table(alone / "signals.csv")
        in_float32 = precision == "auto" and device.type == "cpu"
        np.testing.assert_allclose(rows["loss"], wanted["loss"], rtol=1e-3 if in_float32 else 0.05)


@every_device
def test_a_trial_that_explodes_is_recorded_and_repeated(device: torch.device, tmp_path: Path) -> None:
    folder = without_figure(tmp_path / "trial")
    verdict = run_trial(
        config(tmp_path, device, "schedule.lr_max=1e38", "optimizer.clip_norm=null"), folder, quiet=True
    )
    assert verdict.outcome in ("non_finite", "exploded")
    again = replay(folder, str(device))
    assert again.kind == "true fault"
    assert [*again.attempts][-2:] == ["fp32", "fp64"]
