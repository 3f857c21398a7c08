"""The corpus' recipes as configurations of `stability.train`."""

from experiments.repair.cases import cases
from stability.config.commandline import compose_config


def test_one_case_of_each_family_is_the_training_of_its_recipe() -> None:
    first = {case.recipe.family: case for case in reversed(cases("design"))}
    assert {*first} == {"rate_too_high", "step_too_small", "slow", "early_end", "decay", "clip_before_unscale"}
    for case in first.values():
        r, config = case.recipe, compose_config(case.overrides)
        assert (config.steps, config.batch.size, config.model.units) == (r.steps, r.batch, r.units)
        assert f"{config.schedule.lr_max:.3g}" == f"{r.lr:.3g}"
        assert (config.data.synthetic is None) == (r.task == "digits")
        if r.family == "early_end":
            assert config.schedule.decay_steps == r.onset < r.steps / 2
            assert config.schedule.lr_min < config.schedule.lr_max / 500
        if r.family == "decay":
            assert config.optimizer.weight_decay > 1


def test_the_halves_share_no_training_and_a_fault_that_only_begins_late_is_no_case() -> None:
    design, test = cases("design"), cases("test")
    assert {case.recipe.name for case in design}.isdisjoint(case.recipe.name for case in test)
    late = [case.recipe.family for case in (*design, *test) if case.recipe.onset]
    assert {*late} <= {"early_end", "epsilon_switch"}
