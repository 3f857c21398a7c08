"""What error rates say, by made-up rates whose course is known."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.error_rates import (
    best_of,
    degraded,
    has_come_to_rest,
    has_improved,
    has_slipped,
    is_lost,
    loss_went_on,
    why_lost,
)
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, numbers, table

BEST, END = 400, 900  # steps
LOST = [1.0, 0.7, 0.5, 0.3, 0.2, 0.35, 0.5, 0.6, 0.7, 0.7]  # at every 100th step; the best one is at step 400


def validations(rates: Any = LOST, distance: int = 100, **signals: Any) -> Table:
    return table(steps=np.arange(len(rates)) * distance, per=np.asarray(rates, float), **signals)


def training(steps: int = END + 1, distance: int = 1, **changes: Any) -> Table:
    """A training whose loss falls to 2 at step 400 and rises to 6 at the end."""
    at = np.arange(0, steps, distance)
    loss = np.interp(at, [0, BEST, END], [10, 2, 6])
    return table(steps=at, **({"loss": loss} | changes))


def test_the_best_of_few_rates_is_the_lowest_one() -> None:
    assert best_of(np.arange(4), np.array([1.0, 0.5, 0.2, 0.4])) == (2, 0.2)


def test_of_many_rates_a_lucky_one_is_not_the_best() -> None:
    rates = np.array([1.0, 0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5])
    assert best_of(np.arange(9), rates).rate == 0.5


@pytest.mark.parametrize("distance", [1, 10, 100, 200])
def test_an_error_rate_that_is_lost_is_found_at_three_bad_validations(distance: int) -> None:
    finding = degraded(training(distance=distance), validations())
    assert finding is not None
    assert (finding.kind, finding.signal, finding.cause) == ("degraded", "per", "unknown")
    assert (finding.onset_step, finding.detected_step) == (BEST, 800)
    best, step, now = numbers(finding.advice)[:3]
    assert (best, step, now, finding.value) == pytest.approx((0.2, BEST, 0.7, 0.7))


def test_two_bad_validations_are_not_enough() -> None:
    assert degraded(training(), validations([1, 0.5, 0.2, 0.2, 0.9, 0.9, 0.2])) is None


def test_an_error_rate_that_is_coming_back_is_not_lost_yet() -> None:
    rates = [1.0, 0.2, 0.15, 0.26, 0.42, 0.78, 0.37]
    assert degraded(training(), validations(rates)) is None
    assert degraded(training(), validations([*rates[:-1], 0.8])) is not None


def test_rates_that_come_down_are_no_loss() -> None:
    assert degraded(training(), validations(np.geomspace(1, 0.1, 20))) is None


def test_what_was_hardly_learned_is_no_loss() -> None:
    assert degraded(training(), validations([1, 0.9, 0.8, 0.75, 1, 1, 1, 1])) is None


def test_a_validation_loss_that_went_on_falling_shows_that_nothing_was_lost() -> None:
    falling, rising = np.geomspace(5, 0.5, 10), np.r_[np.geomspace(5, 1, 5), np.geomspace(1.5, 5, 5)]
    assert degraded(training(), validations(loss=falling)) is None
    assert degraded(training(), validations(loss=rising)) is not None
    assert loss_went_on(validations(loss=falling), BEST, END)
    assert not loss_went_on(validations(loss=rising), BEST, END)
    assert not loss_went_on(validations(), BEST, END)


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (0.22, False),
        (0.26, False),  # 0.06 more
        (0.35, False),  # less than a quarter of the way from 1 to 0.2
        (0.45, True),
        (1.0, True),
    ],
)
def test_a_good_part_is_lost_if_a_quarter_of_the_way_is_undone(now: float, lost: bool) -> None:
    assert is_lost(np.array([1.0, 0.6, 0.2, now]), 0.2, now) == lost


def test_twice_a_good_error_rate_is_lost_as_well() -> None:
    rates = np.r_[np.linspace(1, 0.05, 20), np.linspace(0.06, 0.15, 10)]
    assert is_lost(rates, 0.05, 0.15)
    assert not is_lost(rates, 0.05, 0.09)  # 0.04 more


def test_fluctuations_are_no_loss() -> None:
    rng = np.random.default_rng(0)
    smooth = np.r_[np.linspace(1, 0.3, 20), np.full(40, 0.3)]
    assert not is_lost(smooth + 0.1 * rng.normal(size=60), 0.3, 0.5)
    assert is_lost(smooth, 0.3, 0.5)


def test_a_slow_slip_is_seen_in_the_last_quarter() -> None:
    fell = np.linspace(1, 0.2, 20)
    assert has_slipped(np.r_[fell, np.linspace(0.2, 0.32, 20)], 0.2)
    assert not has_slipped(np.r_[fell, np.full(20, 0.21)], 0.2)
    assert not has_slipped(np.array([1.0, 0.2, 0.3, 0.3]), 0.2)  # of four rates, one is a quarter


@pytest.mark.parametrize(
    ("rates", "improved"),
    [([1.0, 0.95], True), ([1.0, 0.98], False), ([1.4, 1.0], False), ([0.5, 0.6], False), ([0.2], False)],
)
def test_an_error_rate_has_improved_if_it_fell_below_its_first_one_and_1(rates: list[float], improved: bool) -> None:
    assert has_improved(np.array(rates)) == improved


def test_a_fluctuation_is_no_improvement() -> None:
    rng = np.random.default_rng(1)
    rates = 0.95 + 0.05 * rng.normal(size=40)
    rates[0], rates[-1] = 0.99, 0.93
    assert not has_improved(rates)


def test_rates_have_come_to_rest_if_their_last_third_is_no_better() -> None:
    assert has_come_to_rest(np.r_[np.linspace(1, 0.4, 10), np.full(20, 0.4)])
    assert not has_come_to_rest(np.linspace(1, 0.2, 30))
    assert not has_come_to_rest(np.array([1.0, 0.5, 0.5, 0.5, 0.5]))  # fewer than six do not tell


def test_losses_come_to_rest_by_their_share() -> None:
    assert has_come_to_rest(np.linspace(1000, 998, 30))
    assert not has_come_to_rest(np.linspace(1000, 800, 30))


@pytest.mark.parametrize("distance", [1, 10, 100, 200])
def test_a_training_loss_that_fell_meanwhile_shows_overfitting(distance: int) -> None:
    at = np.arange(0, END + 1, distance)
    cause, advice = why_lost(training(distance=distance, loss=np.geomspace(10, 0.1, len(at))), NOTHING, BEST, END)
    assert cause == "overfitting"
    then, now = numbers(advice)
    assert then == pytest.approx(10 * 0.01 ** (BEST / END), rel=0.5)
    assert now == pytest.approx(0.1, rel=0.5)


def test_a_rate_that_rose_with_the_loss_is_too_high() -> None:
    lr = np.interp(np.arange(END + 1), [0, BEST, END], [1e-4, 1e-4, 1e-3])
    cause, advice = why_lost(training(lr=lr), NOTHING, BEST, END)
    assert cause == "rate_too_high"
    assert numbers(advice) == pytest.approx([1e-4, 1e-3])


def test_large_updates_show_a_rate_that_is_too_high() -> None:
    cause, advice = why_lost(
        training(update_ratio=np.full(END + 1, 0.03), lr=np.full(END + 1, 1e-3)), NOTHING, BEST, END
    )
    assert cause == "rate_too_high"
    assert numbers(advice) == [0.03]


def test_weights_that_shrank_show_the_decay() -> None:
    cause, advice = why_lost(training(weight_norm=np.linspace(20, 5, END + 1)), NOTHING, BEST, END)
    assert cause == "decay"
    assert numbers(advice) == pytest.approx([20 - 15 * BEST / END, 5], rel=1e-2)


def test_what_was_not_recorded_is_named_if_the_cause_is_unknown() -> None:
    cause, advice = why_lost(training(lr=np.full(END + 1, 1e-3)), NOTHING, BEST, END)
    assert cause == "unknown"
    assert "the size of updates" in advice
    assert "the lr," not in advice.partition("Not recorded")[2]
    assert "the training loss" in why_lost(NOTHING, NOTHING, BEST, END)[1].partition("Not recorded")[2]


def test_without_rates_nothing_is_degraded() -> None:
    assert degraded(training(), NOTHING) is None
    assert degraded(NOTHING, validations([0.5])) is None


def test_a_rate_that_was_raised_explains_a_loss_of_what_was_learned_better_than_overfitting() -> None:
    steps = np.arange(END + 1)
    losses = np.interp(np.arange(10) * 100, [0, BEST, END], [10, 2, 6])
    falling = training(loss=np.geomspace(10, 0.5, END + 1), lr=np.where(steps > 500, 0.05, 0.005))
    assert why_lost(falling, validations(loss=losses), BEST, END)[0] == "rate_too_high"
    steady = training(loss=np.geomspace(10, 0.5, END + 1), lr=np.full(END + 1, 0.005))
    assert why_lost(steady, validations(loss=losses), BEST, END)[0] == "overfitting"


def test_nothing_is_said_of_a_training_loss_that_was_not_recorded() -> None:
    cause, advice = why_lost(table(lr=np.full(END + 1, 0.005)), validations(), BEST, END)
    assert cause == "unknown"
    assert "training loss did not fall" not in advice
    assert "The lr did not rise" in advice


def test_a_slip_with_an_overfitted_loss_counts_from_the_lowest_rate() -> None:
    rates = np.r_[0.9, 0.6, 0.4, 0.32, 0.26, np.full(11, 0.38)]
    assert has_slipped(rates, 0.32, overfits=True)
    assert not has_slipped(rates, 0.32)
