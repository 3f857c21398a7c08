from stability import config
from tests.configs import composed


def test_short_names_are_the_usual_ones_or_ends_and_no_two_values_share_one() -> None:
    names = ("optimizer.epsilon", "schedule.lr_max", "schedule.warmup_steps", "seed", "data.synthetic.noise")
    assert [config.short_name(n) for n in names] == ["epsilon", "lr", "warmup_steps", "seed", "data.synthetic.noise"]
    every = [*config.flatten(composed())]
    assert len({config.short_name(name) for name in every}) == len(every)
