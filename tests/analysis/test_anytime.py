"""A study may look at its seeds, one after another, and stop when it likes."""

from itertools import product

import numpy as np
import pytest

from stability.analysis.anytime import closed, majority_anytime, sign_flip_anytime

SEEDS = 10


@pytest.mark.parametrize("sizes", [np.ones(SEEDS), np.arange(1, SEEDS + 1), 10.0 ** -np.arange(SEEDS)])
@pytest.mark.parametrize("p", [0.2, 0.05, 0.01])
def test_who_stops_at_the_best_look_is_wrong_no_more_often_than_p_says(sizes: np.ndarray, p: float) -> None:
    """All combinations of signs, which are equally likely without an effect, and of each the smallest p of any look."""
    smallest = [
        min(sign_flip_anytime(sizes[:seeds] * signs[:seeds]) for seeds in range(2, SEEDS + 1))
        for signs in map(np.array, product((-1, 1), repeat=SEEDS))
    ]
    assert np.mean(np.array(smallest) <= p) <= p


def test_six_seeds_that_agree_are_enough_and_five_are_not() -> None:
    assert 2 * sign_flip_anytime(np.full(6, 0.3)) <= 0.05 < 2 * sign_flip_anytime(np.full(5, 0.3))
    above, below = majority_anytime([True] * 6)
    assert 2 * above <= 0.05 < below


def test_the_size_of_a_difference_does_not_depend_on_its_unit() -> None:
    means = np.array([3.0, 2, 4, -3, 2, 3, 5])
    assert sign_flip_anytime(means) == pytest.approx(sign_flip_anytime(1e-9 * means))


def test_seeds_without_a_difference_change_nothing() -> None:
    assert sign_flip_anytime(np.zeros(5)) == 1
    assert sign_flip_anytime(np.array([0, 1, 0, 1, 0])) == sign_flip_anytime(np.ones(2))
    assert np.isnan(sign_flip_anytime(np.ones(1)))


def test_claims_are_corrected_by_the_worst_group_that_each_is_in() -> None:
    p = np.array([0.0004, 0.01, 0.5, 3.0])
    groups = [[i for i in range(4) if mask >> i & 1] for mask in range(1, 16)]
    worst = [max(1 / (1 / p[group]).mean() for group in groups if claim in group) for claim in range(4)]
    assert closed([*p]) == pytest.approx(np.minimum(1, worst))
    assert closed([0.04] * 30) == pytest.approx([0.04] * 30), "claims that are sure cost the others nothing"
