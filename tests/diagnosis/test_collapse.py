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
    other_labels,
    relapsed,
    stuck,
    why_no_progress,
)
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, numbers, table

LEAVES = 0.2  # nats of frame information at which blank gives way


def plateau(steps: int = 300, **changes: Any) -> Table:
    """A decoder that says only blank from the start, and learns nothing behind it."""
    signals = {
        "loss": np.full(steps, 60.0),
        "loss_per_label": np.full(steps, 3.0),
        "blank_fraction": np.ones(steps),
        "distinct_phonemes": np.zeros(steps),
        "frame_information": np.full(steps // 10, 1e-3),
        "lr": np.full(steps, 2e-3),
        "update_ratio": np.full(steps // 10, 5e-4),
        "weight_norm": np.full(steps // 10, 20.0),
        "effective_lr": np.full(steps // 10, 0.02),
        "epsilon_dominance": np.full(steps // 10, 0.98),
    }
    return table(**(signals | changes))


def growing(steps: int, rate: float, noise: float = 0.0, first: float = 1e-4, seed: int = 0) -> np.ndarray:
    """Frame information at every 10th step that grows by that rate a step."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, 10)
    return np.asarray(first * np.exp(rate * at + noise * rng.normal(size=len(at))))


def test_the_forecast_knows_the_end_of_growth_without_noise() -> None:
    rate, first = 0.01, 1e-4
    ahead = forecast(plateau(frame_information=growing(300, rate, first=first)), 0, 299)
    assert ahead is not None
    end = math.log(LEAVES / first) / rate
    assert (ahead.step, ahead.earliest, ahead.latest) == pytest.approx((end, end, end), rel=1e-3)


@pytest.mark.parametrize("rate", [0.004, 0.008])
def test_the_forecast_agrees_with_least_squares_and_covers_the_known_end(rate: float) -> None:
    end = math.log(LEAVES / 1e-4) / rate
    at, covered = np.arange(0, 200, 10), 0
    for seed in range(40):
        information = growing(200, rate, noise=0.1, seed=seed)
        ahead = forecast(plateau(200, frame_information=information), 0, 199)
        assert ahead is not None
        slope, level = np.polyfit(at[10:], np.log(information[10:]), 1)  # the latest half is what a forecast looks at
        assert ahead.earliest < ahead.step < ahead.latest
        # In steps per nat, since a slope near 0 is a step far away.
        assert 1 / (ahead.step - 199) == pytest.approx(slope / (math.log(LEAVES) - level - slope * 199), abs=1e-3)
        covered += ahead.earliest <= end <= ahead.latest
    assert covered >= 34  # of 40; 38 are expected, and fewer of a plateau near its end


def test_the_forecast_without_growth_is_never() -> None:
    assert forecast(plateau(frame_information=growing(300, -0.01)), 0, 299) == Forecast(math.inf, math.inf, math.inf)


def test_the_forecast_of_a_plateau_that_has_ended_is_now() -> None:
    assert forecast(plateau(frame_information=np.full(30, 0.5)), 0, 299) == Forecast(299, 299, 299)


def test_no_forecast_from_five_measurements_or_one_step() -> None:
    assert forecast(plateau(50), 0, 49) is None
    signals = plateau(80, frame_information=np.full(80, 1e-3))
    assert forecast(replace(signals, steps=np.full(80, 7)), 7, 7) is None


def test_a_forecast_of_a_long_plateau_is_as_good() -> None:
    information = growing(60_000, 1e-4, noise=0.1)
    ahead = forecast(plateau(60_000, frame_information=information), 0, 59_999)
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
    assert stuck(plateau(frame_information=growing(300, 0.01)), NOTHING) is None


def test_a_plateau_that_stands_still_is_found_as_soon_as_it_is_old_enough() -> None:
    finding = stuck(plateau(), NOTHING)
    assert finding is not None
    assert (finding.kind, finding.cause) == ("blank_collapse", "step_too_small")
    assert (finding.onset_step, finding.detected_step) == (0, 100)
    update, share, effective = numbers(finding.advice)
    assert (update, share, effective) == pytest.approx((5e-4, 0.98, 0.02))
    assert "smaller optimizer.epsilon" in finding.advice


def test_vanishing_updates_are_found_before_a_forecast_can_be_made() -> None:
    finding = stuck(plateau(update_ratio=np.full(30, 1e-7)), NOTHING)
    assert finding is not None
    assert finding.detected_step == 40


def test_nothing_is_found_while_the_learning_rate_still_rises() -> None:
    assert stuck(plateau(lr=np.linspace(1e-6, 2e-3, 300)), NOTHING) is None


@pytest.mark.parametrize("phonemes", [1, 2])
def test_a_decoder_that_outputs_one_or_two_phonemes_is_found(phonemes: int) -> None:
    finding = stuck(plateau(blank_fraction=np.full(300, 0.3), distinct_phonemes=np.full(300, phonemes)), NOTHING)
    assert finding is not None
    assert finding.kind == "mode_collapse"


def test_three_phonemes_are_no_collapse() -> None:
    signals = plateau(blank_fraction=np.full(300, 0.3), distinct_phonemes=np.full(300, 3))
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
    return plateau(400, **(signals | {name: change(steps) for name, change in changes.items()}))


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


def test_silence_that_ends_is_no_relapse() -> None:
    blank = np.r_[np.full(200, 0.5), np.ones(30), np.full(170, 0.5)]
    assert (
        relapsed(falling_silent(blank_fraction=lambda _: blank, distinct_phonemes=lambda _: 30 * (blank < 1)), NOTHING)
        is None
    )


def learned_loss(level: float = 0.0, **signals: Any) -> Table:
    return table(loss=level + np.r_[np.linspace(60, 3, 100), np.full(100, 3.0)], **signals)


def test_training_labels_that_differ_from_those_of_validation_are_found() -> None:
    finding = other_labels(learned_loss(), table(steps=[20, 150], per=[1.0, 0.97]))
    assert finding is not None
    assert (finding.kind, finding.cause) == ("mode_collapse", "labels")
    assert finding.detected_step == 150
    assert finding.value == pytest.approx(0.97)
    share, rate = numbers(finding.advice)
    assert (share, rate) == (0.05, 0.97)


def test_an_error_rate_that_came_down_with_the_loss_is_no_fault() -> None:
    assert other_labels(learned_loss(), table(steps=[20, 150], per=[1.0, 0.4])) is None


@pytest.mark.parametrize("level", [-3.0, -40.0, -1000.0])
def test_a_loss_that_may_be_negative_is_no_evidence_about_labels(level: float) -> None:
    validation = table(steps=[20, 150], per=[1.0, 0.97])
    finding = other_labels(learned_loss(level), validation)
    assert finding is None or (level == -3.0 and numbers(finding.advice)[0] == 0)


def why(**changes: Any) -> tuple[str, str]:
    return why_no_progress(plateau(**changes), 299)


def test_weight_decay_is_found() -> None:
    cause, advice = why(weight_norm=np.linspace(20, 5, 30))
    assert cause == "decay"
    assert numbers(advice) == [20, 5]


def test_updates_that_are_large_enough_without_progress_blame_the_data() -> None:
    cause, advice = why(update_ratio=np.full(30, 0.01))
    assert cause == "no_information"
    assert numbers(advice) == [0.01]


def test_a_clip_before_the_unscaling_is_seen_in_the_applied_norm() -> None:
    cause, advice = why(loss_scale=np.full(300, 65536.0), applied_norm=np.full(30, 10 / 65536))
    assert cause == "precision"
    applied, limit, scale = numbers(advice)
    assert (applied, limit, scale) == pytest.approx((10 / 65536, 10, 65536), rel=0.05)


@pytest.mark.parametrize("applied", [np.full(30, 5.0), np.geomspace(1e-4, 1e-3, 30)])
def test_a_clip_after_the_unscaling_is_no_fault(applied: np.ndarray) -> None:
    assert why(loss_scale=np.full(300, 65536.0), applied_norm=applied)[0] == "step_too_small"


def test_the_advice_on_a_loss_that_is_a_mean_over_labels_has_what_was_measured() -> None:
    cause, advice = why(loss=np.full(300, 3.0))
    assert cause == "step_too_small"
    assert "loss=per_utterance_sum" in advice
    assert numbers(advice) == pytest.approx([5e-4, 0.98, 0.02])
    assert "loss=per_utterance_sum" not in why()[1]


def test_a_step_that_is_too_small_though_epsilon_is_not_the_reason() -> None:
    _, advice = why(epsilon_dominance=np.zeros(30), lr=np.geomspace(2e-3, 1e-6, 300))
    assert numbers(advice) == pytest.approx([5e-4, 1e-6, 2e-3])
    assert "Raise it" in advice


def test_a_rate_that_came_down_too_soon() -> None:
    _, advice = why(lr=np.geomspace(2e-3, 1e-6, 300))
    assert numbers(advice)[-2:] == pytest.approx([2e-3, 1e-6])


@pytest.mark.parametrize("missing", ["lr", "effective_lr", "epsilon_dominance", "update_ratio", "loss_per_label"])
def test_the_advice_has_no_number_that_was_not_recorded(missing: str) -> None:
    whole = plateau()
    column = whole.names.index(missing)
    unmeasured = replace(whole, measured=whole.measured & (np.arange(len(whole.names)) != column))
    cause, advice = why_no_progress(unmeasured, 299)
    assert cause == "step_too_small"
    assert "nan" not in advice


def test_losses_of_zero_are_not_divided() -> None:
    assert why(loss=np.zeros(300), loss_per_label=np.zeros(300))[0] == "step_too_small"


def test_other_labels_are_not_seen_in_a_training_that_blew_up_at_once() -> None:
    """Its first validation comes when the loss is still that of the start, small beside what follows."""
    loss = np.r_[90.0, 90.0, 1e3, 1e4, np.full(96, 1e5)]
    validation = Table(("per",), np.array([0, 50]), np.full((2, 1), 0.97, np.float32), np.ones((2, 1), bool))
    assert other_labels(table(loss=loss), validation) is None


def test_how_much_smaller_the_gradients_of_a_per_label_mean_are_is_measured() -> None:
    signals = plateau(
        loss=np.full(300, 3.0), epsilon_dominance=np.ones(30), effective_lr=np.full(30, 0.02), labels=np.full(300, 21.0)
    )
    assert "21 times smaller" in why_no_progress(signals, 299)[1]
