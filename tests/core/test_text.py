"""Lists, counts and durations in words."""

import pytest

from stability.core.text import counted, duration, first_of, listed


@pytest.mark.parametrize(
    ("parts", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_a_list_is_joined_as_in_a_sentence(parts: list[str], said: str) -> None:
    assert listed(parts) == said


def test_a_long_list_is_cut_and_counted() -> None:
    assert first_of(["a", "b"], 2) == "a, b"
    assert first_of(["a", "b", "c", "d"], 2) == "a, b and 2 more"


@pytest.mark.parametrize(("count", "said"), [(0, "0 trials"), (1, "1 trial"), (12_000, "12,000 trials")])
def test_a_count_agrees_with_its_noun(count: int, said: str) -> None:
    assert counted(count, "trial") == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")]
)
def test_a_duration_is_in_the_largest_fitting_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said
