"""Verdicts on made-up signals whose outcome is known, and their JSON."""

import json
import math
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FATAL, Verdict, judge, stopping_verdict
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
    verdict = judge(table(**signals), table(per=[0.5]))
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


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_are_written_as_text() -> None:
    evidence: dict[str, float | str] = {
        "loss": math.nan,
        "norm": math.inf,
        "low": -math.inf,
        "rate": 0.25,
        "expected": "a finite number",
    }
    verdict = Verdict("non_finite", "loss", 3, 3, evidence, "Look at the loss.")
    text = verdict.to_json()
    content = json.loads(text, parse_constant=no_constant)
    assert content["evidence"] == evidence | {"loss": "nan", "norm": "inf", "low": "-inf"}
    again = Verdict.from_json(text)
    assert again == replace(verdict, evidence=content["evidence"])
    assert again.to_json() == text


def test_every_verdict_can_be_written_as_strict_json() -> None:
    for name in ("loss", "grad_norm"):
        for value in (math.nan, math.inf):
            verdict = judge(learning(**{name: np.full(N, value)}), rates(0.5))
            assert verdict.outcome in ("non_finite", "bad_data")
            assert json.loads(verdict.to_json(), parse_constant=no_constant)["evidence"][name] == str(value)
    assert Verdict.from_json(judge(learning(), rates(0.3)).to_json()) == judge(learning(), rates(0.3))
