"""Names of settings and trials."""

from dataclasses import replace

from stability.config.names import flatten, search_name, short_name, trial_name, without_defaults
from tests.support.configs import composed


def test_short_names_are_the_usual_ones_or_ends_and_no_two_values_share_one() -> None:
    names = ("optimizer.epsilon", "schedule.lr_max", "schedule.warmup_steps", "seed", "data.synthetic.noise")
    assert [short_name(n) for n in names] == ["epsilon", "lr", "warmup_steps", "seed", "data.synthetic.noise"]
    every = [*flatten(composed())]
    assert len({short_name(name) for name in every}) == len(every)


def test_a_trial_is_named_after_what_can_change_its_result() -> None:
    config = composed()
    name = trial_name(config)
    assert name.startswith("eps0.1-lr0.005-noise1-batch64-seed0-")
    assert trial_name(replace(config, study="other", outputs="there", fresh=True, validate_every=1)) == name
    assert trial_name(replace(config, seed=1)) != name
    assert trial_name(replace(config, steps=config.steps + 1)).startswith("eps0.1-lr0.005-noise1-batch64-seed0-")
    assert trial_name(replace(config, steps=config.steps + 1)) != name


def test_a_search_is_named_after_what_it_does_not_choose() -> None:
    searched = ("optimizer", "aug.white_noise_std", "seed")
    name = search_name(composed(), searched)
    assert name.startswith("search-")
    same = composed("optimizer=adam_default", "aug.white_noise_std=2", "seed=3", "study=other")
    assert search_name(same, searched) == name
    assert search_name(composed("schedule.lr_min=1e-5"), searched) != name
    assert search_name(same, ("optimizer", "aug.white", "seed")) != name


def test_a_field_at_its_default_is_no_part_of_a_name() -> None:
    settings = composed().data.synthetic
    assert settings is not None
    assert "recordings" not in without_defaults(settings)
    assert without_defaults(replace(settings, recordings=2))["recordings"] == 2
