"""Tests and intervals over seeds, against what is computed by hand or by SciPy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from stability.analysis.inference import binomial_interval, holm, name_of_test, seeds_needed, sign_flip


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_the_sign_flip_test_tries_all_signs(alternative: str) -> None:
    means = np.random.default_rng(3).normal(0.5, 1, 7)
    flips = np.array([np.mean(means * signs) for signs in itertools.product((1, -1), repeat=7)])
    less, greater = np.mean(flips <= means.mean() + 1e-12), np.mean(flips >= means.mean() - 1e-12)
    expected = {"less": less, "greater": greater, "two-sided": min(1, 2 * min(less, greater))}[alternative]
    assert sign_flip(means, alternative) == pytest.approx(expected)  # type: ignore[arg-type]


def test_the_name_of_the_test_says_whether_it_is_exact() -> None:
    assert [name_of_test(n) for n in (1, 13, 14)] == ["none", "sign-flip, exact", "sign-flip, 8192 drawn"]


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_the_interval_of_a_share_is_clopper_and_pearsons() -> None:
    low, high = binomial_interval(3, 8)
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, 3, 6), stats.beta.ppf(0.975, 4, 5)))


def test_seeds_needed_reach_the_power_of_a_t_test() -> None:
    means = np.array([0.1, -0.05, 0.08, -0.02, 0.03])
    needed = seeds_needed(means, 0.05)
    assert needed is not None
    rng = np.random.default_rng(0)
    draws = rng.normal(means.mean(), means.std(ddof=1), (4000, needed))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)
    assert seeds_needed(np.zeros(4), 0.05) is None
    assert seeds_needed(np.array([0.1, 0.1]), 0.05) == 6  # 2 / 2^6 < 5 %
