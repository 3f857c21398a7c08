"""Verdicts on made-up signals whose outcome is known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.judge import judge, stopping_verdict
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FATAL
from tests.support.tables import NOTHING, numbers, table

N = 200


def rates(*per: float, last: int = N - 1) -> Table:
    """Validations at equal distances. The last one is at the step `last`."""
    return table(steps=np.linspace(0, last, len(per) + 1)[1:].astype(int), per=per)


def learning(**changes: Any) -> Table:
    """The signals of a decoder that outputs phonemes and improves."""
    rng = np.random.default_rng(0)
    signals = {
        "loss": (30 + 50 * np.exp(-np.arange(N) / 60)) * np.exp(0.03 * rng.normal(size=N)),
        "grad_norm": 5 * np.exp(0.3 * rng.normal(size=N)),
        "blank_fraction": np.full(N, 0.5),
        "distinct_phonemes": np.full(N, 30),
        "frame_information": np.full(N // 10, 1.5),
        "lr": np.full(N, 2e-3),
        "update_ratio": np.full(N // 10, 5e-4),
        "effective_lr": np.full(N // 10, 0.02),
        "epsilon_dominance": np.full(N // 10, 0.98),
    }
    return table(**(signals | changes))


def silent(steps: int = N, **changes: Any) -> Table:
    """The loss and the blank fraction of a decoder that outputs only blank since step 20."""
    blank = np.r_[np.linspace(0, 1, 20), np.ones(steps - 20)]
    return table(**({"loss": np.full(steps, 45.0), "blank_fraction": blank} | changes))


@pytest.mark.parametrize(
    ("last", "outcome"), [(0.2, "stable"), (0.59, "stable"), (0.7, "slow"), (0.89, "slow"), (0.95, "undecided")]
)
def test_without_a_finding_the_last_error_rate_decides(last: float, outcome: str) -> None:
    verdict = judge(learning(), rates(1.0, 0.95, last))
    assert verdict.outcome == outcome
    assert verdict.detected_step == N - 1
    assert verdict.evidence["validation PER"] == pytest.approx(last)
    assert (verdict.advice == "") == (outcome == "stable")


def test_the_advice_distinguishes_lost_from_never_learned() -> None:
    signals = table(loss=np.full(N, 40.0))
    assert 0.77 in numbers(judge(signals, rates(0.77, 0.99)).advice)
    assert 0.95 not in numbers(judge(signals, rates(0.95, 0.99)).advice)


def test_the_advice_on_a_slow_training_has_what_was_measured() -> None:
    verdict = judge(learning(), rates(1.0, 0.7))
    assert verdict.cause == "step_too_small"
    assert numbers(verdict.advice) == pytest.approx([5e-4, 0.98, 0.02])


@pytest.mark.parametrize(
    ("falling", "last", "outcome"),
    [(True, 0.3, "stable"), (True, 1.0, "undecided"), (False, 1.0, "blank_collapse")],
)
def test_without_frame_information_a_flat_loss_shows_a_collapse(falling: bool, last: float, outcome: str) -> None:
    verdict = judge(silent(loss=np.linspace(50, 40, N) if falling else np.full(N, 45.0)), rates(1.1, last))
    assert verdict.outcome == outcome
    assert verdict.onset_step == (None if outcome == "stable" else 19)


def test_a_plateau_that_should_end_is_undecided_with_a_forecast() -> None:
    information = 1e-4 * np.exp(0.02 * np.arange(0, N, 10))
    verdict = judge(silent(frame_information=information), rates(1.0))
    assert (verdict.outcome, verdict.onset_step) == ("undecided", 19)
    end = math.log(0.2 / 1e-4) / 0.02
    steps = numbers(str(verdict.evidence["forecast end of the blank plateau"]).replace("95 %", ""))
    assert steps == pytest.approx([end, end, end], abs=1)


def test_a_relapse_by_the_error_rate() -> None:
    verdict = judge(silent(), table(steps=[10, 190], per=[0.5, 1.0]))
    assert (verdict.outcome, verdict.cause, verdict.onset_step) == ("blank_collapse", "relapse", 19)
    assert (verdict.evidence["per"], verdict.evidence["best validation PER"]) == (1.0, 0.5)


def test_a_decoder_that_outputs_phonemes_again_has_recovered() -> None:
    quiet = (np.arange(N) >= 60) & (np.arange(N) < 140)
    signals = learning(
        blank_fraction=np.where(quiet, 1, 0.5),
        distinct_phonemes=np.where(quiet, 0, 30),
        frame_information=np.where(quiet, 0.01, 1.5)[::10],
    )
    assert judge(signals, rates(0.9, 1.0, 0.3)).outcome == "stable"


def test_an_explosion_stands_unless_loss_and_error_rate_have_come_back() -> None:
    loss = learning()["loss"].astype(float)
    leap = np.where((np.arange(N) >= 100) & (np.arange(N) < 130), 10, 1)
    updates = np.where((np.arange(0, N, 10) >= 100) & (np.arange(0, N, 10) < 130), 0.2, 0.005)
    back = learning(loss=loss * leap, update_ratio=updates)
    assert judge(back, rates(0.9, 0.3)).outcome == "stable"
    assert judge(back, rates(0.9, 0.8)).outcome == "exploded"
    gone = learning(loss=np.where(np.arange(N) >= 100, 200, loss), update_ratio=updates)
    verdict = judge(gone, rates(0.9, 0.3))
    assert (verdict.outcome, verdict.cause) == ("exploded", "rate_too_high")


def test_other_labels_are_no_cause_if_the_error_rate_falls_later() -> None:
    loss = np.r_[np.linspace(60, 3, 100), np.full(100, 3.0)]
    assert judge(table(loss=loss), rates(1.0, 0.97)).cause == "labels"
    assert judge(table(loss=loss), rates(1.0, 0.97, 0.97, 0.5)).outcome == "stable"


def test_other_labels_explain_a_decoder_that_outputs_little() -> None:
    few = {"blank_fraction": np.full(N, 0.3), "distinct_phonemes": np.ones(N), "frame_information": np.full(20, 1e-3)}
    signals = learning(loss=np.r_[np.linspace(60, 3, 100), np.full(100, 3.0)], **few)
    assert judge(signals, rates(1.0, 0.97)).cause == "labels"


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_first_number_that_is_not_finite_is_named(name: str) -> None:
    signals: dict[str, Any] = {
        "loss": np.full(50, 40.0),
        "grad_norm": np.full(50, 5.0),
        "grad_norm__head": np.full(50, 5.0),
    }
    signals[name][30:] = np.inf
    signals["grad_norm__head"][30:] = np.nan
    verdict = judge(table(**signals), table(per=[0.9]))
    assert (verdict.outcome, verdict.onset_step, verdict.detected_step) == ("non_finite", 30, 30)
    assert verdict.evidence["gradient not finite in"] == "head"
    assert verdict.evidence["gradient norm before"] == 5
    ended = stopping_verdict(table(**signals), NOTHING, FATAL)
    assert ended is not None
    assert (ended.outcome, ended.cause, ended.onset_step) == (verdict.outcome, verdict.cause, 30)


def test_a_part_that_was_not_measured_then_is_not_evidence() -> None:
    norms = np.r_[np.full(35, 5.0), np.full(15, np.nan)]
    verdict = judge(table(loss=np.full(50, 40.0), grad_norm=norms, grad_norm__head=np.ones(5)), NOTHING)
    assert verdict.outcome == "non_finite"
    assert "gradient not finite in" not in verdict.evidence


def test_the_norm_before_is_that_of_the_last_finite_gradient() -> None:
    norms = np.r_[np.full(30, 5.0), np.inf, np.inf, np.full(18, 5.0)]  # overflows that a smaller scale mended
    scale = np.r_[np.full(31, 1024.0), np.full(19, 256.0)]
    loss = np.r_[np.full(32, 40.0), np.full(18, np.nan)]
    verdict = judge(table(loss=loss, grad_norm=norms, loss_scale=scale), NOTHING)
    assert (verdict.outcome, verdict.evidence["gradient norm before"]) == ("non_finite", 5)


def test_a_training_that_can_go_on_has_not_failed() -> None:
    assert stopping_verdict(learning(), NOTHING, FATAL) is None
    assert stopping_verdict(NOTHING, NOTHING, FATAL) is None


def test_what_was_not_measured_is_no_fault() -> None:
    whole = table(loss=[50.0, 49, 48], grad_norm=[5.0, math.nan, 5])
    signals = replace(whole, measured=np.array([[True, True], [True, False], [True, True]]))
    assert judge(signals, table(per=[0.5])).outcome == "stable"


def test_a_single_step_is_judged() -> None:
    assert judge(table(loss=[50.0], grad_norm=[5.0]), table(per=[1.1])).outcome == "undecided"


def test_no_step_at_all_is_judged() -> None:
    verdict = judge(NOTHING, NOTHING)
    assert (verdict.outcome, verdict.cause, verdict.detected_step) == ("undecided", "no signals", None)


def test_without_validation_whether_it_learned_is_not_claimed() -> None:
    verdict = judge(table(loss=np.linspace(50, 1, 100)), NOTHING)
    assert (verdict.outcome, verdict.cause) == ("undecided", "no validation")


@pytest.mark.parametrize("level", [-2000.0, -100.0, 0.0])
def test_a_negative_loss_that_learns_is_stable(level: float) -> None:
    signals = _without_blank(learning(loss=level + learning()["loss"]))  # a log-likelihood, and not CTC's loss
    assert judge(signals, rates(0.9, 0.3)).outcome == "stable"


def _without_blank(signals: Table) -> Table:
    own = [column for column, name in enumerate(signals.names) if name != "blank_fraction"]
    names = tuple(signals.names[column] for column in own)
    return Table(names, signals.steps, signals.values[:, own], signals.measured[:, own])


DISTANCES = pytest.mark.parametrize("distance", [1, 10, 100, 200])


def log(*factors: float, distance: int = 100, **signals: Any) -> Table:
    """A log of 60 readings in which the loss falls to 8, and of more at which it is 8 times each of the factors."""
    rng = np.random.default_rng(0)
    loss = np.r_[8 + 52 * np.exp(-np.arange(60) / 8), 8 * np.array(factors)]
    noisy = loss * np.exp(0.02 * rng.normal(size=len(loss)))
    return table(steps=np.arange(len(loss)) * distance, loss=noisy, **signals)


def validated(*per: float, distance: int = 100, every: int = 10, **losses: Any) -> Table:
    """Validations at every 10th reading of such a log."""
    return table(steps=(np.arange(len(per)) + 1) * every * distance, per=per, **losses)


GOOD = (0.9, 0.5, 0.3, 0.2, 0.15, 0.15)


@DISTANCES
def test_growth_that_ends_in_nan_is_an_explosion_since_it_began(distance: int) -> None:
    verdict = judge(log(4, 16, 64, math.nan, math.nan, distance=distance), validated(*GOOD, distance=distance))
    assert (verdict.outcome, verdict.onset_step, verdict.detected_step) == ("exploded", 60 * distance, 63 * distance)
    usual, highest = numbers(verdict.advice)[:2]
    assert (usual, highest) == pytest.approx((8, 64 * 8), rel=0.1)
    assert "not finite" in verdict.advice


@DISTANCES
def test_a_nan_without_growth_is_no_explosion(distance: int) -> None:
    verdict = judge(log(1, 1, math.nan, math.nan, distance=distance), validated(*GOOD, distance=distance))
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 62 * distance)
    assert "had grown" in verdict.advice


@DISTANCES
def test_growth_that_the_end_cuts_off_is_an_explosion(distance: int) -> None:
    verdict = judge(log(4, 16, 64, distance=distance), validated(*GOOD[:5], distance=distance))
    assert (verdict.outcome, verdict.onset_step) == ("exploded", 60 * distance)


def test_growth_that_the_end_cuts_off_has_its_numbers_and_a_lower_confidence() -> None:
    two, one = (judge(log(*factors), validated(*GOOD[:5])) for factors in ((4, 4.5), (12,)))
    assert (two.outcome, one.outcome) == ("exploded", "exploded")
    assert numbers(two.advice)[:2] == pytest.approx([8, 36], rel=0.1)
    assert "the log ends there" in two.advice
    assert (two.confidence, one.confidence) == ("medium", "low")


def test_growth_to_less_than_three_times_is_not_told_as_an_explosion() -> None:
    assert judge(log(2.4, 2.6), validated(*GOOD[:5])).outcome == "stable"


def test_a_good_error_rate_after_the_growth_decides() -> None:
    leap = log(5, 5, 5, 5)
    steps = [100, 2000, 4000, 6300]
    assert judge(leap, table(steps=steps, per=[1, 0.5, 0.2, 0.2])).outcome == "stable"
    assert judge(leap, table(steps=steps, per=[1, 0.5, 0.2, 0.9])).outcome == "exploded"
    grew_too = table(steps=steps, per=[1, 0.5, 0.2, 0.2], loss=[50, 20, 9, 60])
    assert judge(leap, grew_too).outcome == "exploded"


@DISTANCES
def test_a_loss_that_leaps_and_comes_back_is_stable(distance: int) -> None:
    signals = log(20, 15, 5, *np.full(40, 1.0), distance=distance)
    assert judge(signals, validated(*GOOD, *np.full(4, 0.15), distance=distance)).outcome == "stable"


@DISTANCES
def test_what_was_learned_and_lost_again_is_degraded(distance: int) -> None:
    rising = validated(*GOOD[:4], 0.4, 0.6, 0.6, 0.6, distance=distance, every=7)
    verdict = judge(log(distance=distance), rising)
    assert (verdict.outcome, verdict.cause, verdict.onset_step) == ("degraded", "overfitting", 28 * distance)
    then, now = numbers(verdict.advice)[-2:]  # the training loss
    assert then > now == pytest.approx(8, rel=0.05)


def test_a_last_error_rate_alone_that_was_lost_is_of_low_confidence() -> None:
    verdict = judge(log(), validated(*GOOD[:4], 0.2, 0.7))
    assert (verdict.outcome, verdict.confidence) == ("degraded", "low")
    assert numbers(verdict.advice)[:3] == pytest.approx([0.7, 0.2, 4000], rel=0.1)


def test_an_error_rate_that_came_back_is_stable() -> None:
    verdict = judge(log(), table(steps=np.arange(10) * 600, per=[1, 0.5, 0.2, 0.6, 0.6, 0.6, 0.5, 0.3, 0.2, 0.2]))
    assert verdict.outcome == "stable"


def test_a_nan_hidden_as_0_is_not_finite() -> None:
    verdict = judge(log(0, 0, 0, 0, 0), table(steps=[1000, 3000, 6400], per=[0.9, 0.3, 1.0]))
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 6000)


@DISTANCES
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_counted_if_the_training_went_on(value: float, distance: int) -> None:
    norms = np.full(60, 5.0)
    norms[[3, 20, 40]] = value
    verdict = judge(log(distance=distance, grad_norm=norms), validated(*GOOD, distance=distance))
    assert verdict.outcome == "stable"
    assert verdict.evidence[f"{'infinite' if value == math.inf else 'non_finite'} gradient norms"] == "3 of 60"


@DISTANCES
def test_a_gradient_of_exactly_0_is_not_training(distance: int) -> None:
    signals = table(steps=np.arange(60) * distance, loss=np.full(60, 40.0), grad_norm=np.zeros(60))
    verdict = judge(signals, validated(*np.full(6, 1.0), distance=distance))
    assert (verdict.outcome, verdict.cause, verdict.detected_step) == ("not_training", "no_gradient", 4 * distance)
    assert verdict.confidence == "high"


def test_a_gradient_that_was_0_only_for_a_while_is_no_fault() -> None:
    norms = np.r_[np.zeros(8), np.full(52, 5.0)]
    assert judge(log(grad_norm=norms), validated(*GOOD)).outcome == "stable"


def test_what_is_wrong_with_the_data_explains_all_else() -> None:
    signals = learning(loss=np.r_[np.full(100, 40.0), np.full(100, 4000.0)], unoptimized=np.ones(20))
    assert judge(signals, rates(1.0, 1.0, 1.0, 1.0)).cause == "not_in_optimizer"


def test_a_yardstick_tells_that_a_good_error_rate_is_slow() -> None:
    assert judge(log(), validated(*GOOD), healthy=0.1).outcome == "stable"
    verdict = judge(log(), validated(*GOOD), healthy=0.03)
    assert (verdict.outcome, verdict.confidence) == ("slow", "medium")
    assert numbers(verdict.advice)[:2] == pytest.approx([0.03, 0.15])


def test_the_metric_keeps_its_name() -> None:
    verdict = judge(log(), validated(0.95, 0.9, 0.8, 0.75), metric="CER")
    assert verdict.evidence["validation CER"] == pytest.approx(0.75)
    assert not any("PER" in text for text in (*verdict.evidence, verdict.advice))


@pytest.mark.parametrize(("last", "confidence"), [(0.2, "high"), (0.58, "medium")])
def test_an_error_rate_far_from_the_limit_makes_it_sure(last: float, confidence: str) -> None:
    assert judge(log(), validated(1.0, 0.8, last)).confidence == confidence
    assert judge(log(), validated(last)).confidence == "medium"


@pytest.mark.parametrize(
    ("losses", "cause"), [((60, 3, 2.5), "metric"), ((60, 60, 90), "labels"), ((60, 20, 90), "overfitting")]
)
def test_a_loss_that_is_learned_without_the_error_rate(losses: tuple[float, ...], cause: str) -> None:
    signals = table(loss=np.r_[np.full(100, 30.0), np.geomspace(30, 2, 100)])
    validation = table(steps=[100, 180, 199], per=[1.0, 1.0, 1.0], loss=losses)
    verdict = judge(signals, validation)
    assert (verdict.outcome, verdict.cause, verdict.confidence) == ("undecided", cause, "medium")


def test_an_error_rate_that_still_falls_leaves_a_low_loss_in_peace() -> None:
    signals = table(loss=np.r_[np.full(100, 30.0), np.geomspace(30, 2, 100)])
    validation = table(steps=[100, 180, 199], per=[1.0, 0.96, 0.88], loss=[60, 3, 2.5])
    assert judge(signals, validation).outcome == "slow"


def test_a_validation_loss_alone_tells_overfitting_with_low_confidence() -> None:
    verdict = judge(log(), table(steps=np.arange(1, 9) * 700, loss=[40, 20, 12, 10, 14, 20, 25, 30]))
    assert (verdict.outcome, verdict.cause, verdict.confidence) == ("degraded", "overfitting", "low")
    assert verdict.onset_step == 2800
    assert numbers(verdict.advice)[:3] == pytest.approx([10, 2800, 30])


def test_a_validation_loss_that_never_came_down_beside_a_learned_one_shows_other_labels_or_another_mode() -> None:
    losses = [40, 45, 38, 50, 42, 55, 47, 60]
    verdict = judge(table(loss=np.geomspace(60, 0.5, 120)), table(steps=np.arange(1, 9) * 14, loss=losses))
    assert (verdict.outcome, verdict.cause, verdict.confidence) == ("undecided", "labels", "low")
    assert "model.eval()" in verdict.advice


def test_losses_alone_do_not_show_that_it_learned() -> None:
    verdict = judge(log(), table(steps=np.arange(1, 9) * 700, loss=np.geomspace(40, 10, 8)))
    assert (verdict.outcome, verdict.cause) == ("undecided", "no validation")


def test_validation_losses_that_are_all_infinite_are_named() -> None:
    verdict = judge(log(), table(steps=[1000, 3000], loss=[math.inf, math.inf]))
    assert (verdict.outcome, verdict.cause) == ("undecided", "validation_loss")


def test_an_error_rate_that_came_to_rest_at_a_middling_value_is_a_training_that_converged() -> None:
    rested = (1.0, 0.8, 0.7, *np.full(9, 0.65))
    verdict = judge(log(), validated(*rested, every=5))
    assert (verdict.outcome, verdict.confidence) == ("stable", "medium")
    assert numbers(verdict.advice) == [0.65]
    assert judge(log(), validated(1.0, 0.9, 0.85, *np.full(9, 0.8), every=5)).outcome == "slow"


def test_a_training_loss_next_to_0_with_a_poor_error_rate_is_learned_by_heart() -> None:
    signals = table(loss=np.geomspace(60, 0.01, 120))
    rested = (1.0, 0.8, 0.6, *np.full(9, 0.55))
    validation = table(steps=np.arange(1, 13) * 10 - 1, per=rested, loss=[50, 30, *np.full(10, 20.0)])
    verdict = judge(signals, validation)
    assert (verdict.outcome, verdict.cause) == ("slow", "overfitting")
    assert 0.55 in numbers(verdict.advice)


@pytest.mark.parametrize("rows", [1, 2])
def test_two_readings_are_too_few(rows: int) -> None:
    for validation in (NOTHING, table(per=[1.0])):
        verdict = judge(table(loss=np.full(rows, 40.0)), validation)
        assert (verdict.outcome, verdict.cause, verdict.confidence) == ("undecided", "too_few_readings", "low")


def test_losses_of_held_out_data_alone_are_readings() -> None:
    verdict = judge(NOTHING, table(loss=np.geomspace(260, 20, 15)))
    assert (verdict.outcome, verdict.cause) == ("undecided", "no validation")
    verdict = judge(NOTHING, table(loss=[260, 250]))
    assert (verdict.outcome, verdict.cause) == ("undecided", "too_few_readings")
    assert "2 readings" in verdict.advice


def test_a_training_that_ends_in_its_warmup_has_hardly_begun() -> None:
    signals = table(steps=np.arange(8) * 100, loss=np.linspace(60, 50, 8), lr=np.linspace(1e-5, 1e-3, 8))
    verdict = judge(signals, table(steps=[700], per=[1.0]))
    assert (verdict.outcome, verdict.cause, verdict.confidence) == ("undecided", "in_warmup", "low")
    assert judge(signals, table(steps=[700], per=[0.87])).cause == "in_warmup"
    assert judge(signals, table(steps=[300, 500, 700], per=[1.0, 0.95, 0.87])).outcome == "slow"


@DISTANCES
def test_an_error_rate_of_1_to_the_end_with_a_flat_loss_is_a_collapse(distance: int) -> None:
    signals = table(steps=np.arange(60) * distance, loss=np.full(60, 30.0))
    verdict = judge(signals, validated(*np.full(6, 1.0), distance=distance))
    assert (verdict.outcome, verdict.cause, verdict.confidence) == ("blank_collapse", "no_evidence", "medium")
    assert judge(signals, validated(*np.full(4, 1.0), distance=distance)).outcome == "undecided"


def test_a_step_that_is_too_small_needs_evidence() -> None:
    validation, loss = table(steps=[20, 59], per=[1.0, 0.95]), np.full(60, 30.0)
    assert judge(table(loss=loss), validation).cause == "no_evidence"
    assert judge(table(loss=loss, lr=np.full(60, 1e-8)), validation).cause == "step_too_small"


def test_a_finding_without_a_cause_is_less_sure() -> None:
    known = judge(log(*np.full(60, 20.0), lr=np.r_[np.full(60, 1e-3), np.full(60, 1e-2)]), validated(*GOOD[:5], 1.0))
    unknown = judge(log(*np.full(60, 20.0)), validated(*GOOD[:5], 1.0))
    assert (known.outcome, known.cause, known.confidence) == ("exploded", "rate_too_high", "high")
    assert (unknown.outcome, unknown.cause, unknown.confidence) == ("exploded", "unknown", "medium")


def test_a_learning_rate_that_is_printed_as_0_is_no_fault_of_a_training_that_learned() -> None:
    loss = np.linspace(6, 0.4, 60)
    assert judge(table(loss=loss, lr=np.zeros(60)), rates(0.9, 0.3, last=59)).outcome == "stable"
    assert judge(table(loss=loss, lr=np.zeros(60)), NOTHING).cause == "no validation"
    assert judge(table(loss=np.full(60, 6.0), lr=np.zeros(60)), rates(1.0, 1.0, last=59)).outcome == "not_training"


def test_validations_that_become_nan_are_not_stable() -> None:
    nan = math.nan
    verdict = judge(table(loss=np.linspace(3, 0.2, N)), rates(0.9, 0.6, 0.4, 0.3, nan, nan, nan))
    assert (verdict.outcome, verdict.cause) == ("undecided", "validation_loss")
    assert verdict.onset_step == 142


def test_a_flat_noisy_loss_has_not_exploded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        loss = 0.3 * np.exp(0.3 * rng.normal(size=N))
        steps = 10 * np.arange(N)
        assert judge(table(steps=steps, loss=loss), table(steps=[500, 1990], per=[0.2, 0.2])).outcome == "stable"


def test_batches_sorted_by_length_are_no_explosion() -> None:
    loss = np.geomspace(20, 2, 300) * np.tile(np.linspace(0.3, 2, 50), 6)
    steps = np.arange(300) * 100
    validation = table(steps=np.arange(1, 7) * 4990, per=[0.6, 0.4, 0.3, 0.25, 0.2, 0.15])
    assert judge(table(steps=steps, loss=loss), validation).outcome == "stable"


@pytest.mark.parametrize(("readings", "outcome"), [(3, "exploded"), (1, "stable")])
def test_a_validation_at_the_onset_does_not_excuse_an_explosion_that_the_log_cuts_off(
    readings: int, outcome: str
) -> None:
    signals = table(loss=np.r_[np.geomspace(300, 17, 60), 58, 230, 1800, 9100][: 61 + readings])
    assert judge(signals, table(steps=[20, 40, 60], per=[0.6, 0.3, 0.18])).outcome == outcome


@pytest.mark.parametrize(("last", "outcome"), [(2e-3, "stable"), (6e-3, "exploded")])
def test_a_training_loss_above_its_lucky_first_batch_is_no_explosion_if_the_validation_loss_falls(
    last: float, outcome: str
) -> None:
    signals = table(loss=np.r_[2e-4, np.full(199, 4e-3)])
    validation = table(steps=np.arange(1, 9) * 24, per=np.full(8, 0.04), loss=np.linspace(6e-3, last, 8))
    assert judge(signals, validation).outcome == outcome


def test_an_accelerating_explosion_is_seen_in_four_readings() -> None:
    assert judge(table(steps=[0, 1, 2, 3], loss=[4.2, 3.9, 55, 8100]), NOTHING).outcome == "exploded"


def test_infinite_gradient_norms_alone_do_not_condemn_a_training_that_learned() -> None:
    signals = table(loss=np.linspace(6, 0.4, 100), grad_norm=np.full(100, math.inf))
    assert judge(signals, rates(0.9, 0.5, 0.24, last=99)).outcome == "stable"


def test_an_optimizer_of_another_model_is_named() -> None:
    signals = table(loss=np.full(50, 6.0), grad_norm=np.full(50, 10.0), no_gradient=np.ones(5), unoptimized=np.ones(5))
    assert judge(signals, NOTHING).cause == "not_in_optimizer"


def test_a_very_good_model_that_gets_worse_is_degraded() -> None:
    per = np.r_[np.linspace(0.03, 0.02, 8), 0.04, 0.06, np.full(10, 0.085)]
    assert judge(table(loss=np.linspace(1, 0.01, N)), rates(*per)).outcome == "degraded"


def test_a_scaler_that_skips_every_step_since_some_time_is_a_fault() -> None:
    norms = np.where(np.arange(100) < 40, 4.0, math.inf)
    signals = table(loss=np.r_[np.linspace(6, 0.4, 40), np.full(60, 0.4)], grad_norm=norms)
    verdict = judge(signals, rates(0.9, 0.3, 0.3, 0.3, last=99))
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 40)


def test_a_step_that_is_measured_where_no_gradient_is_gets_advice_on_its_place() -> None:
    signals = learning(no_gradient=np.ones(N // 10), grad_norm=np.zeros(N), update_ratio=np.full(N // 10, 9e-3))
    verdict = judge(signals, rates(1.0, 0.95, 0.93, 0.92))
    assert (verdict.outcome, verdict.cause) == ("undecided", "no_gradient")
    assert "between backward() and optimizer.step()" in verdict.advice


def test_a_loss_that_relapses_to_its_plateau_is_degraded_without_error_rates_too() -> None:
    loss = np.r_[np.geomspace(12, 2.9, 20), np.geomspace(2.9, 0.6, 30), np.full(100, 2.9)]
    verdict = judge(table(loss=loss * np.exp(0.03 * np.random.default_rng(0).normal(size=150))), NOTHING)
    assert (verdict.outcome, verdict.confidence) == ("degraded", "low")
    assert numbers(verdict.advice)[:2] == pytest.approx([0.7, 2.9], rel=0.15)


def test_a_rate_that_rose_until_the_relapse_is_too_high() -> None:
    loss = np.r_[np.linspace(6, 1.7, 11), 4.5, 6, np.full(70, 3.0)]
    lr = np.minimum(np.arange(1, 84), 12) * 1e-4
    per = np.r_[np.linspace(1, 0.62, 11), np.ones(72)]
    verdict = judge(table(loss=loss, lr=lr), table(per=per))
    assert (verdict.outcome, verdict.cause) == ("degraded", "rate_too_high")


def test_an_error_rate_in_full_fall_has_not_converged() -> None:
    per = np.r_[np.ones(33), 0.96, 0.91, 0.87, 0.83, 0.78, 0.74, 0.69]
    loss = np.r_[np.geomspace(6, 2.95, 20), np.full(60, 2.95), np.linspace(2.9, 1.9, 20)]
    verdict = judge(table(loss=loss), table(steps=np.linspace(2, 99, 40).astype(int), per=per))
    assert (verdict.outcome, verdict.cause) == ("slow", "no_evidence")


def test_an_error_rate_that_begins_to_fall_after_the_loss_is_no_mismatch() -> None:
    loss = np.r_[np.full(100, 2.9), np.linspace(2.9, 0.8, 100)]
    validation = table(steps=[50, 100, 150, 175, 199], per=[1.0, 1.0, 0.98, 0.95, 0.92], loss=[2.9, 2.9, 1.9, 1.4, 0.8])
    assert judge(table(loss=loss), validation).cause != "metric"


def test_an_error_rate_that_rises_again_while_the_validation_loss_falls_is_the_metric() -> None:
    loss = np.r_[np.full(100, 2.7), np.geomspace(2.7, 0.3, 100)]
    losses = [2.7, 2.6, 2.6, 1.8, 1.0, 0.35]
    validation = table(steps=[30, 60, 90, 120, 160, 199], per=[1.0, 1.0, 1.0, 0.93, 0.88, 0.95], loss=losses)
    assert judge(table(loss=loss), validation).cause == "metric"
    falling = table(steps=[30, 60, 90, 120, 160, 199], per=[1.0, 1.0, 1.0, 0.99, 0.95, 0.91], loss=losses)
    assert judge(table(loss=loss), falling).cause != "metric"


@pytest.mark.parametrize(
    ("batch_norm", "first", "cause"), [(1.0, 60, "train_eval"), (1.0, 25, "overfitting"), (0.0, 60, "overfitting")]
)
def test_losses_that_part_before_anything_is_learned_by_heart_show_the_mode_of_the_model(
    batch_norm: float, first: float, cause: str
) -> None:
    """Also while the error rate still fluctuates."""
    signals = table(loss=np.geomspace(60, 0.01, 120), batch_norm=np.full(120, batch_norm))
    rates = [0.9, 0.7, 0.53, 0.52, 0.5, 0.48]
    validation = table(steps=[19, 39, 59, 79, 99, 119], per=rates, loss=[first, *[30.0] * 5])
    verdict = judge(signals, validation)
    assert (verdict.outcome, verdict.cause) == ("slow", cause)


@pytest.mark.parametrize(("name", "cause"), [("unoptimized", "not_in_optimizer"), ("no_gradient", "no_gradient")])
def test_a_large_part_that_is_not_trained_explains_slow_learning(name: str, cause: str) -> None:
    verdict = judge(learning(**{name: np.full(N // 10, 0.8)}), rates(1.0, 0.95, 0.85, 0.8))
    assert (verdict.outcome, verdict.cause) == ("slow", cause)
    assert verdict.advice.count("80% of the parameters") == 1


def test_an_error_rate_that_slipped_with_the_validation_loss_is_overfitting() -> None:
    per = [0.9, 0.6, 0.4, 0.27, 0.26, *np.linspace(0.37, 0.4, 15)]
    losses = [17, 11, 8.5, 7, 6, *np.linspace(8, 10, 15)]
    validation = table(steps=np.linspace(9, 199, 20).astype(int), per=per, loss=losses)
    verdict = judge(table(loss=np.geomspace(30, 0.01, 200)), validation)
    assert (verdict.outcome, verdict.cause) == ("degraded", "overfitting")


def test_a_good_error_rate_beside_an_overfitted_loss_is_stable_and_the_advice_says_so() -> None:
    losses = [17, 11, 6, 5, 4, *np.linspace(4.5, 10, 15)]
    validation = table(steps=np.linspace(9, 199, 20).astype(int), per=np.r_[0.9, 0.6, np.full(18, 0.3)], loss=losses)
    verdict = judge(table(loss=np.geomspace(30, 0.01, 200)), validation)
    assert (verdict.outcome, verdict.cause) == ("stable", "overfitting")
    assert "overfits" in verdict.advice
    assert {4.0, 49.0, 10.0} <= {*numbers(verdict.advice)}


def test_a_trained_model_that_forgets_while_its_validation_loss_rises_again_overfits() -> None:
    rates = np.r_[0.29, np.linspace(0.32, 0.41, 19)]
    losses = np.r_[5.7, 1.1, np.linspace(1.2, 2.8, 18)]
    validation = table(steps=np.r_[0, np.arange(1, 20) * 10], per=rates, loss=losses)
    signals = table(steps=np.arange(1, 20) * 10, loss=np.geomspace(1.1, 0.05, 19))
    verdict = judge(signals, validation)
    assert (verdict.outcome, verdict.cause) == ("degraded", "overfitting")


@pytest.mark.parametrize(("last", "cause"), [(0.37, "overfitting"), (0.2, None)])
def test_what_is_learned_by_heart_is_named_beside_an_error_rate_that_could_be_better(
    last: float, cause: str | None
) -> None:
    losses = [20, 10, *np.full(18, 8.0)]
    validation = table(steps=np.linspace(9, 199, 20).astype(int), per=np.r_[0.9, 0.6, np.full(18, last)], loss=losses)
    verdict = judge(table(loss=np.geomspace(30, 0.01, 200)), validation)
    assert (verdict.outcome, verdict.cause) == ("stable", cause)


@pytest.mark.parametrize("last", [0.26, 0.2])
def test_the_advice_on_overfitting_says_how_the_error_rate_compares_with_its_best(last: float) -> None:
    losses = [17, 11, 6, 5, 4, *np.linspace(4.5, 10, 15)]
    rates = np.r_[0.9, 0.6, 0.3, 0.25, 0.2, np.linspace(0.21, last, 15)]
    validation = table(steps=np.linspace(9, 199, 20).astype(int), per=rates, loss=losses)
    verdict = judge(table(loss=np.geomspace(30, 0.01, 200)), validation)
    assert verdict.outcome == "stable"
    assert f"best PER was 0.2 at step 49, and the last one is {last}" in verdict.advice


def test_no_mistake_on_held_out_data_needs_no_advice() -> None:
    losses = [17, 11, 6, 5, 4, *np.linspace(4.5, 10, 15)]
    validation = table(steps=np.linspace(9, 199, 20).astype(int), per=np.r_[0.9, 0.6, np.zeros(18)], loss=losses)
    verdict = judge(table(loss=np.geomspace(30, 0.01, 200)), validation)
    assert (verdict.outcome, verdict.advice) == ("stable", "")


def test_a_rate_of_0_is_found_whatever_the_noise_of_the_loss() -> None:
    loss = np.random.default_rng(0).uniform(25, 45, 200)
    verdict = judge(table(loss=np.r_[45.0, loss[1:]], lr=np.zeros(200)), rates(1.2, 1.2, 1.2))
    assert (verdict.outcome, verdict.cause) == ("not_training", "no_update")


def test_a_training_that_skips_every_step_since_some_time_is_not_stable_whatever_its_error_rate() -> None:
    loss = np.where(np.arange(N) < 120, np.linspace(30, 5, N), 0.0)
    last = dict.fromkeys((139, 159, 179, 199), 0.1)
    per, held_out = [0.9, 0.3, *last.values()], [20.0, 6.0, *(5.5 for _ in last)]
    signals = table(loss=loss, grad_norm=np.where(loss > 0, 5.0, 0.0))
    verdict = judge(signals, table(steps=[39, 99, *last], per=per, loss=held_out))
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 120)


def test_a_validation_loss_that_grew_before_a_nan_shows_an_explosion() -> None:
    at = np.arange(0, 1100, 100)
    signals = table(steps=at, loss=np.r_[33.0, 3.0, 0.6, 0.1, 0.1, 0.1, 0.1, np.full(4, np.nan)])
    held_out = table(steps=at[:6] + 99, per=[0.7, 0.1, 0.05, 0.05, 0.05, 1.0], loss=[3.6, 0.4, 0.1, 0.1, 0.05, 48.0])
    verdict = judge(signals, held_out)
    assert (verdict.outcome, verdict.onset_step) == ("exploded", 499)
    assert {0.05, 48} <= {*numbers(verdict.advice)}


def test_a_warm_up_does_not_explain_what_was_lost_or_what_large_updates_leave_unlearned() -> None:
    rising: dict[str, Any] = {"loss": np.full(N, 40.0), "lr": np.linspace(1e-4, 0.2, N)}
    assert judge(table(**rising), rates(1.0, 1.0, 1.0)).cause == "in_warmup"
    assert judge(table(**rising), rates(1.0, 0.8, 1.0)).cause == "no_evidence"
    assert judge(table(**rising, update_ratio=np.full(N // 10, 0.02)), rates(1.0, 1.0, 1.0)).cause == "no_information"


def test_an_error_rate_below_that_of_silence_contradicts_a_collapse() -> None:
    verdict = judge(
        silent(600, frame_information=np.full(60, 0.005), update_ratio=np.full(60, 0.01)), rates(1, 1, 0.88, last=599)
    )
    assert (verdict.outcome, verdict.cause) == ("slow", "no_information")


def test_an_error_rate_does_not_begin_to_follow_a_validation_loss_that_rises() -> None:
    loss = np.r_[np.full(N // 2, 3.3), np.linspace(3.3, 0.5, N // 2)]
    steps = [*range(19, N, 20)]
    per = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.98, 0.96, 0.95, 0.94]
    rising = table(steps=steps, per=per, loss=np.linspace(3.3, 4.5, 10))
    assert judge(table(loss=loss), rising).cause == "labels"


def test_a_batch_whose_wrong_data_go_on_explains_a_later_loss_that_is_not_finite() -> None:
    empty = np.where(np.arange(N) >= 120, 8, 0)
    signals = learning(
        loss=np.where(np.arange(N) < 190, learning()["loss"], np.nan),
        grad_norm=np.where(np.arange(N) < 120, 5.0, 1e-17),
        empty_targets=empty,
        utterances=np.full(N, 8),
    )
    verdict = judge(signals, rates(0.9, 0.5, 1.0, 1.0))
    assert (verdict.outcome, verdict.cause) == ("bad_data", "empty_target")


def test_a_loss_that_is_not_finite_in_a_warm_up_does_not_blame_the_rate() -> None:
    loss = np.concatenate([12.5 + 0.1 * np.random.default_rng(0).normal(size=12), np.full(8, np.nan)])
    signals = table(loss=loss, grad_norm=np.where(np.isnan(loss), np.nan, 2.4), lr=np.linspace(1e-5, 2e-4, 20))
    assert judge(signals, NOTHING).cause == "loss"


def test_growth_of_the_training_loss_is_no_explosion_if_the_validation_loss_stays_low() -> None:
    """As when the noise of the inputs is raised step by step."""
    loss = np.array([25, 2.8, 0.75, 0.63, 0.8, 1.1, 1.5, 2.0, 2.8, 3.1, 3.3, 3.6])
    signals = table(steps=100 * np.arange(1, 13), loss=loss)
    losses = [8.8, 0.73, 0.33, 0.18, 0.165, 0.144, 0.161, 0.14, 0.189, 0.222, 0.2, 0.21]
    assert judge(signals, table(steps=100 * np.arange(1, 13), loss=losses)).outcome == "undecided"


def test_a_model_that_is_frozen_in_part_may_be_meant_so() -> None:
    signals = silent(frozen=np.full(N // 10, 0.9), grad_norm=np.full(N, 5.0))
    verdict = judge(signals, rates(*np.ones(8)))
    assert (verdict.outcome, verdict.cause) == ("blank_collapse", "no_gradient")


def test_an_explosion_by_a_rising_rate_is_known_without_the_start_of_the_log() -> None:
    steps = 100 * np.arange(1, 6)
    signals = table(steps=steps, loss=[3.2, 0.9, 0.9, 2.6, 3.4], lr=[0.03, 0.09, 0.18, 0.29, 0.4])
    validation = table(steps=steps - 1, per=[0.38, 0.23, 0.38, 0.7, 0.97], loss=[1.2, 0.8, 1.1, 2.3, 5.3])
    verdict = judge(signals, validation)
    assert (verdict.outcome, verdict.cause) == ("exploded", "rate_too_high")


def test_one_gradient_that_is_not_finite_at_the_end_of_a_log_is_forgiven_if_a_later_validation_is_good() -> None:
    signals = table(steps=100 * np.arange(8), loss=np.geomspace(40, 0.6, 8), grad_norm=[*np.full(7, 6.0), np.nan])
    validation = table(steps=100 * np.arange(1, 9) - 1, per=np.geomspace(0.8, 0.1, 8), loss=np.geomspace(14, 2.5, 8))
    assert judge(signals, validation).outcome == "stable"
    ended = validation.take(validation.steps < 700)
    assert judge(signals, ended).outcome == "non_finite"
