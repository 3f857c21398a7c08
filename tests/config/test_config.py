from stability.config.names import flatten, short_name
from tests.support.configs import composed


def test_short_names_are_the_usual_ones_or_ends_and_no_two_values_share_one() -> None:
    names = ("optimizer.epsilon", "schedule.lr_max", "schedule.warmup_steps", "seed", "data.synthetic.noise")
    assert [short_name(n) for n in names] == ["epsilon", "lr", "warmup_steps", "seed", "data.synthetic.noise"]
    every = [*flatten(composed())]
    assert len({short_name(name) for name in every}) == len(every)
