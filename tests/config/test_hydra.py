"""What Hydra composes, as a typed configuration, and its messages."""

import pytest
from omegaconf import DictConfig, OmegaConf

from stability.config.hydra import conf_folder, explain_error, resolve_config
from stability.core.checkout import ROOT
from stability.core.errors import StabilityError
from tests.support.configs import composed


def test_the_folder_of_a_checkout_is_at_its_top() -> None:
    assert conf_folder() == ROOT / "conf"


def test_lengths_in_steps_follow_the_scale_of_the_model() -> None:
    small, official = composed("model=small"), composed("model=official")
    assert (small.steps, official.steps) == (500, 10000)
    assert (small.schedule.decay_steps, official.schedule.decay_steps) == (6000, 120000)
    assert composed("model.time_scale=1e-9").steps == 1


def test_a_configuration_read_from_a_file_is_the_same() -> None:
    config = composed("diagnosis.stop_on=[non_finite,bad_data,bad_data]")
    assert config.diagnosis.stop_on == ["bad_data", "non_finite"]
    stored = OmegaConf.to_yaml(OmegaConf.structured(config))
    assert resolve_config(DictConfig(OmegaConf.create(stored))) == config


def test_unknown_and_missing_settings_are_named() -> None:
    stored = DictConfig(OmegaConf.structured(composed()))
    OmegaConf.set_struct(stored, False)
    with pytest.raises(StabilityError, match=r"^Unknown in the configuration: extra\. There are: optimizer, "):
        resolve_config(DictConfig({**stored, "extra": 1}))
    with pytest.raises(StabilityError, match=r"^steps must be given, as in steps=VALUE\.$"):
        resolve_config(DictConfig({**stored, "steps": "???"}))


def test_an_explained_error_has_no_internals_of_hydra() -> None:
    error = ValueError("Key 'epsilonn' not in 'Optimizer'\n    full_key: optimizer.epsilonn\n    object_type=Optimizer")
    assert explain_error(error) == (
        "Key 'epsilonn' not in 'Optimizer'\n"
        "There are: epsilon, beta1, beta2, weight_decay, weight_decay_day, clip_norm, fused."
    )
