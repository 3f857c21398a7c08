"""Which causes are read from the counts of failures of a real pair's mixtures."""

from experiments.explain.real_pairs import causes

NOTHING, A, B, BOTH = frozenset[str](), frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})


def test_the_smallest_mixtures_that_fail_are_the_causes() -> None:
    assert causes({NOTHING: (0, 0), A: (9, 10), B: (1, 0), BOTH: (10, 10)}) == frozenset({A})
    assert causes({NOTHING: (0, 1), A: (8, 7), B: (10, 10), BOTH: (10, 10)}) == frozenset({A, B})
    assert causes({NOTHING: (0, 0), A: (1, 2), B: (0, 0), BOTH: (6, 5)}) == frozenset({BOTH}), "more than half of 5"


def test_a_pair_whose_other_settings_matter_or_whose_sides_are_alike_has_no_known_answer() -> None:
    assert causes({NOTHING: (0, 0), A: (0, 10), B: (0, 0), BOTH: (10, 10)}) is None
    assert causes({NOTHING: (4, 5), A: (4, 5), B: (5, 5), BOTH: (5, 5)}) is None
