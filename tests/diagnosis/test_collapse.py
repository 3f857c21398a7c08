"""The blank plateau and collapses, by made-up signals whose end or cause is known."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stability.diagnosis.collapse import (
    Forecast,
    forecast,
    narrow_output_since,
    relapsed,
    stuck,
)
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, blank_plateau, numbers, table

LEAVES = 0.2  # nats of frame information at which blank gives way


def growing(steps: int, rate: float, noise: float = 0.0, first: float = 1e-4, seed: int = 0) -> np.ndarray:
    """Frame information at every 10th step that grows by that rate a step."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, 10)
    return np.asarray(first * np.exp(rate * at + noise * rng.normal(size=len(at))))


def test_the_forecast_knows_the_end_of_growth_without_noise() -> None:
    rate, first = 0.01, 1e-4
    ahead = forecast(blank_plateau(frame_information=growing(300, rate, first=first)), 0, 299)
    assert ahead is not None
    end = math.log(LEAVES / first) / rate
    assert (ahead.step, ahead.earliest, ahead.latest) == pytest.approx((end, end, end), rel=1e-3)


@pytest.mark.parametrize("rate", [0.004, 0.008])
def test_the_forecast_agrees_with_least_squares_and_covers_the_known_end(rate: float) -> None:
    end = math.log(LEAVES / 1e-4) / rate
    at, covered = np.arange(0, 200, 10), 0
    for seed in range(40):
        information = growing(200, rate, noise=0.1, seed=seed)
        ahead = forecast(blank_plateau(200, frame_information=information), 0, 199)
        assert ahead is not None
        slope, level = np.polyfit(at[10:], np.log(information[10:]), 1)  # the latest half is what a forecast looks at
        assert ahead.earliest < ahead.step < ahead.latest
        # In steps per nat, since a slope near 0 is a step far away.
        assert 1 / (ahead.step - 199) == pytest.approx(slope / (math.log(LEAVES) - level - slope * 199), abs=1e-3)
        covered += ahead.earliest <= end <= ahead.latest
    assert covered >= 34  # of 40; 38 are expected, and fewer of a plateau near its end


def test_the_forecast_without_growth_is_never() -> None:
    assert forecast(blank_plateau(frame_information=growing(300, -0.01)), 0, 299) == Forecast(
        math.inf, math.inf, math.inf
    )


def test_the_forecast_of_a_plateau_that_has_ended_is_now() -> None:
    assert forecast(blank_plateau(frame_information=np.full(30, 0.5)), 0, 299) == Forecast(299, 299, 299)


def test_no_forecast_from_five_measurements_or_one_step() -> None:
    assert forecast(blank_plateau(50), 0, 49) is None
    signals = blank_plateau(80, frame_information=np.full(80, 1e-3))
    assert forecast(replace(signals, steps=np.full(80, 7)), 7, 7) is None


def test_a_forecast_of_a_long_plateau_is_as_good() -> None:
    information = growing(60_000, 1e-4, noise=0.1)
    ahead = forecast(blank_plateau(60_000, frame_information=information), 0, 59_999)
    assert ahead is not None
    end = math.log(LEAVES / 1e-4) / 1e-4
    assert ahead.earliest <= end <= ahead.latest
    assert ahead.latest - ahead.earliest < 0.1 * end


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (Forecast(120, 110, 150), [120, 0.95, 110, 150]),
        (Forecast(120, 110, math.inf), [120, 0.95, 110]),
        (Forecast(math.inf, 110, math.inf), [0.95, 110]),
        (Forecast(math.inf, math.inf, math.inf), []),
    ],
)
def test_a_forecast_in_words_has_no_infinite_number(ahead: Forecast, said: list[float]) -> None:
    assert numbers(str(ahead).replace("95 %", "95%")) == said
    assert "inf" not in str(ahead)


def test_a_plateau_that_ends_is_no_finding() -> None:
    assert stuck(blank_plateau(frame_information=growing(300, 0.01)), NOTHING) is None


def test_a_plateau_that_stands_still_is_found_as_soon_as_it_is_old_enough() -> None:
    finding = stuck(blank_plateau(), NOTHING)
    assert finding is not None
    assert (finding.kind, finding.cause) == ("blank_collapse", "step_too_small")
    assert (finding.onset_step, finding.detected_step) == (0, 200)
    update, share, effective = numbers(finding.advice)
    assert (update, share, effective) == pytest.approx((5e-4, 0.98, 0.02))
    assert "smaller epsilon" in finding.advice


def test_vanishing_updates_are_found_before_a_forecast_can_be_made() -> None:
    finding = stuck(blank_plateau(update_ratio=np.full(30, 1e-7)), NOTHING)
    assert finding is not None
    assert finding.detected_step == 40


def test_nothing_is_found_while_the_learning_rate_still_rises() -> None:
    assert stuck(blank_plateau(lr=np.linspace(1e-6, 2e-3, 300)), NOTHING) is None


@pytest.mark.parametrize("phonemes", [1, 2])
def test_a_decoder_that_outputs_one_or_two_phonemes_is_found(phonemes: int) -> None:
    finding = stuck(blank_plateau(blank_fraction=np.full(300, 0.3), distinct_phonemes=np.full(300, phonemes)), NOTHING)
    assert finding is not None
    assert finding.kind == "mode_collapse"


def test_three_phonemes_are_no_collapse() -> None:
    signals = blank_plateau(blank_fraction=np.full(300, 0.3), distinct_phonemes=np.full(300, 3))
    assert narrow_output_since(signals, 299) is None
    assert stuck(signals, NOTHING) is None


def falling_silent(**changes: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Table:
    """A decoder that had learned, and says only blank from step 200 on; changes are functions of the steps."""
    steps, spoke = np.arange(400), np.arange(400) < 200
    signals = {
        "blank_fraction": np.where(spoke, 0.5, 1.0),
        "distinct_phonemes": np.where(spoke, 30, 0),
        "frame_information": np.where(spoke, 1.5, 0.01)[::10],
    }
    return blank_plateau(400, **(signals | {name: change(steps) for name, change in changes.items()}))


@pytest.mark.parametrize(
    ("signal", "before", "after", "word"),
    [
        ("weight_norm", 30.0, 6.0, "weights"),
        ("lr", 2e-3, 2e-2, "lr"),
        ("input_max", 4.0, 400.0, "input"),
    ],
)
def test_a_relapse_names_what_changed(signal: str, before: float, after: float, word: str) -> None:
    finding = relapsed(falling_silent(**{signal: lambda at: np.where(at < 200, before, after)}), NOTHING)
    assert finding is not None
    assert (finding.kind, finding.cause, finding.signal) == ("blank_collapse", "relapse", "frame_information")
    assert (finding.onset_step, finding.detected_step) == (200, 240)
    most, onset, old, new = numbers(finding.advice)
    assert (most, onset, old, new) == pytest.approx((1.5, 200, before, after))
    assert word in finding.advice.partition("Meanwhile")[2]


def test_the_advice_on_a_relapse_without_another_change() -> None:
    finding = relapsed(falling_silent(), NOTHING)
    assert finding is not None
    assert numbers(finding.advice) == [1.5, 200]


def test_without_frame_information_the_error_rate_shows_a_relapse() -> None:
    signals = table(blank_fraction=np.r_[np.full(200, 0.5), np.ones(200)])
    validation = table(steps=[100, 199, 230, 300], per=[0.7, 0.4, 0.99, 1.0])
    finding = relapsed(signals, validation)
    assert finding is not None
    assert (finding.signal, finding.onset_step, finding.detected_step, finding.value) == ("per", 200, 300, 1.0)
    assert numbers(finding.advice)[0] == 0.4
    assert relapsed(signals, NOTHING) is None


def test_information_of_an_untrained_decoder_is_nothing_that_it_had_learned() -> None:
    """It falls silent from the first step on. Error rates tell it from a decoder that begins with a checkpoint."""
    signals = falling_silent()
    assert relapsed(signals, table(steps=[100, 300], per=[1.0, 1.0])) is None
    assert relapsed(signals, table(steps=[100, 300], per=[0.2, 1.0])) is not None


def test_silence_that_ends_is_no_relapse() -> None:
    blank = np.r_[np.full(200, 0.5), np.ones(30), np.full(170, 0.5)]
    assert (
        relapsed(falling_silent(blank_fraction=lambda _: blank, distinct_phonemes=lambda _: 30 * (blank < 1)), NOTHING)
        is None
    )
