"""Growth that a NaN or the end of the log cuts off, in made-up losses whose growth is known."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.growth import Growth, growth_until
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, table

CALM = 40  # readings before the growth
DISTANCES = pytest.mark.parametrize("distance", [1, 10, 100, 200])


def grown(*growth: float, distance: int = 1, noise: float = 0.02, **signals: Any) -> Table:
    """Signals whose loss is about 8 for 40 readings, and then 8 times each of these factors."""
    factors = np.r_[np.ones(CALM), growth]
    loss = 8 * factors * np.exp(noise * np.random.default_rng(0).normal(size=len(factors)))
    return table(steps=np.arange(len(loss)) * distance, loss=loss, **signals)


def at_the_end(signals: Table) -> Growth | None:
    return growth_until(signals, int(signals.steps[-1]))


def sure(signals: Table) -> Growth:
    growth = at_the_end(signals)
    assert growth is not None
    return growth


@DISTANCES
def test_growth_begins_at_its_first_reading_at_any_distance(distance: int) -> None:
    growth = sure(grown(3, 9, 27, 81, distance=distance))
    assert (growth.onset, growth.last) == (CALM * distance, (CALM + 3) * distance)
    assert growth.readings == 4
    assert growth.value == pytest.approx(81 * 8, rel=0.1)
    assert growth.usual == pytest.approx(8, rel=0.1)


@DISTANCES
def test_a_first_small_rise_belongs_to_the_growth(distance: int) -> None:
    growth = sure(grown(1.4, 3, 9, distance=distance))
    assert growth.onset == CALM * distance
    assert growth.readings == 2  # of at least twice the usual loss


@DISTANCES
def test_a_loss_that_goes_on_falling_has_not_grown(distance: int) -> None:
    assert at_the_end(grown(0.8, 0.6, 0.5, distance=distance)) is None


def test_growth_that_came_back_is_none() -> None:
    assert at_the_end(grown(3, 9, 27, 1, 1)) is None


def test_only_readings_up_to_the_step_count() -> None:
    signals = grown(3, 9, 27, 1, 1)
    growth = growth_until(signals, CALM + 2)
    assert growth is not None
    assert (growth.onset, growth.last) == (CALM, CALM + 2)
    assert growth_until(signals, CALM - 1) is None


def test_growth_before_a_nan_is_found_from_the_step_of_the_nan() -> None:
    growth = growth_until(grown(3, 9, np.nan, np.nan, distance=200), (CALM + 2) * 200)
    assert growth is not None
    assert (growth.onset, growth.last) == (CALM * 200, (CALM + 1) * 200)


def test_a_noisy_loss_must_grow_by_more() -> None:
    assert at_the_end(grown(2.5, 2.5, noise=0.02)) is not None
    assert at_the_end(grown(2.5, 2.5, noise=0.3)) is None
    assert at_the_end(grown(20, 20, noise=0.3)) is not None


def test_a_single_reading_that_is_little_higher_is_no_growth() -> None:
    assert at_the_end(grown(2.5)) is None
    assert at_the_end(grown(30)) is not None


def test_a_single_reading_is_growth_only_if_its_gradient_has_grown() -> None:
    usual = np.full(CALM, 5.0)
    assert at_the_end(grown(30, grad_norm=np.r_[usual, 5])) is None
    assert at_the_end(grown(2.5, grad_norm=np.r_[usual, 50])) is not None


def test_whether_growth_goes_on_or_has_come_to_rest() -> None:
    assert sure(grown(*np.geomspace(2, 500, 20))).goes_on
    assert not sure(grown(3, 10, *np.full(18, 30.0))).goes_on


@pytest.mark.parametrize("signals", [NOTHING, table(loss=[5.0]), table(loss=np.full(20, -3.0)), table(per=[1.0, 3.0])])
def test_without_two_positive_losses_there_is_no_growth(signals: Table) -> None:
    assert growth_until(signals, 100) is None
