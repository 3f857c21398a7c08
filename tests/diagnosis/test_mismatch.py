"""Losses that are learned without the error rate: made-up trainings whose cause is known."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.mismatch import (
    is_far_from_training,
    other_labels,
    why_the_error_contradicts,
    why_the_error_stays,
)
from stability.diagnosis.table import Table
from tests.support.tables import numbers, table

FEW: dict[str, Any] = {"blank_fraction": np.full(200, 0.3), "distinct_phonemes": np.ones(200)}


def learned_loss(level: float = 0.0, **signals: Any) -> Table:
    return table(loss=level + np.r_[np.linspace(60, 3, 100), np.full(100, 3.0)], **FEW, **signals)


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


def test_other_labels_are_not_seen_if_the_validation_loss_is_learned_too() -> None:
    validation = table(steps=[20, 150], per=[1.0, 0.97], loss=[40.0, 1.1 * learned_loss()["loss"][150]])
    assert other_labels(learned_loss(), validation) is None


def test_other_labels_are_not_seen_in_a_training_that_blew_up_at_once() -> None:
    """Its first validation comes when the loss is still that of the start, small beside what follows."""
    loss = np.r_[90.0, 90.0, 1e3, 1e4, np.full(96, 1e5)]
    validation = Table(("per",), np.array([0, 50]), np.full((2, 1), 0.97, np.float32), np.ones((2, 1), bool))
    assert other_labels(table(loss=loss), validation) is None


LEARNED = 100  # step since which the training loss is learned
HARDLY = table(steps=[50, 150, 199], per=[1.0, 0.98, 0.97])  # error rates of a decoder that learned nothing


def falling(end: float = 2.0, start: float = 80.0, distance: int = 1, **signals: Any) -> Table:
    """A training whose loss stands on the blank plateau, and falls to its end from step 60 on."""
    at = np.arange(0, 2 * LEARNED, distance)
    plateau = max(0.3 * start, end)
    loss = np.interp(at, [0, 10, 60, LEARNED], [start, plateau, plateau, end])
    return table(steps=at, loss=loss, **signals)


def with_loss(*losses: float) -> Table:
    return table(steps=[50, 150, 199], per=[1.0, 0.98, 0.97], loss=losses)


def why(signals: Table, validation: Table) -> tuple[str, str]:
    reason = why_the_error_stays(signals, validation)
    assert reason is not None
    return reason


@pytest.mark.parametrize("distance", [1, 10])
@pytest.mark.parametrize(
    ("losses", "cause"),
    [((60, 3, 2.5), "metric"), ((60, 60, 90), "labels"), ((60, 20, 90), "overfitting")],
)
def test_the_validation_loss_tells_why_the_error_rate_stays(
    losses: tuple[float, ...], cause: str, distance: int
) -> None:
    found, advice = why(falling(distance=distance), with_loss(*losses))
    assert found == cause
    assert numbers(advice)[:2] == pytest.approx([2, np.median(losses)], rel=1e-3)


@pytest.mark.parametrize(("batch_norm", "cause"), [(1.0, "train_eval"), (0.0, "labels")])
def test_a_model_that_normalises_batches_may_differ_in_evaluation(batch_norm: float, cause: str) -> None:
    assert why(falling(batch_norm=np.full(200, batch_norm)), with_loss(60, 60, 90))[0] == cause


def test_a_validation_loss_that_no_ignorance_explains_is_that_of_wrong_statistics() -> None:
    """It moves between thousands of nats, and was highest at first."""
    cause, _ = why(falling(batch_norm=np.full(20, 1.0)), with_loss(18_000, 8_000, 36_000))
    assert cause == "train_eval"


@pytest.mark.parametrize(
    ("held_out", "rate", "contradicts"), [(0.01, 0.84, True), (0.01, 0.1, False), (3, 0.84, False)]
)
def test_a_validation_loss_of_nearly_0_contradicts_a_high_error_rate(
    held_out: float, rate: float, contradicts: bool
) -> None:
    found = why_the_error_contradicts(falling(end=0.01), table(steps=[50, 199], per=[0.9, rate], loss=[20, held_out]))
    assert (found is not None) == contradicts
    if found is not None:
        assert found[0] == "metric"
        assert numbers(found[1])[:2] == [held_out, rate]


def test_batch_norm_does_not_explain_a_loss_that_is_learned_in_both() -> None:
    assert why(falling(batch_norm=np.ones(200)), with_loss(60, 3, 2.5))[0] == "metric"


def test_without_a_validation_loss_the_advice_asks_for_it() -> None:
    cause, advice = why(falling(), HARDLY)
    assert cause == "labels"
    assert numbers(advice) == [2]
    assert "Log the validation loss" in advice


def test_a_loss_that_stays_on_the_blank_plateau_is_not_learned() -> None:
    assert why_the_error_stays(falling(end=24), with_loss(60, 24, 24)) is None


def test_one_validation_since_the_loss_was_learned_is_too_early() -> None:
    assert why_the_error_stays(falling(), table(steps=[20, 50, 199], per=[1.0, 1.0, 1.0])) is None
    assert why_the_error_stays(falling(), table(steps=[20, 150, 199], per=[1.0, 1.0, 1.0])) is not None


def test_the_frame_information_decides_if_it_was_measured() -> None:
    at = np.arange(0, 200, 10)
    assert why_the_error_stays(falling(frame_information=np.full(20, 0.01)), HARDLY) is None
    assert why_the_error_stays(falling(end=20, frame_information=np.where(at < 100, 0.01, 1.0)), HARDLY) is not None


@pytest.mark.parametrize(("last", "cause"), [(20.0, None), (8.0, "metric")])
def test_a_decoder_without_output_has_learned_if_its_losses_came_down(last: float, cause: str | None) -> None:
    signals = falling(end=last, start=24, frame_information=np.full(20, 0.6))
    validation = table(steps=[50, 100, 150, 199], per=np.ones(4), loss=[23, last, last, last])
    assert (why_the_error_stays(signals, validation) or (None,))[0] == cause


def test_a_decoder_that_outputs_only_blank_has_not_learned_its_loss() -> None:
    assert why_the_error_stays(falling(blank_fraction=np.full(200, 0.99)), HARDLY) is None
    assert why_the_error_stays(falling(blank_fraction=np.full(200, 0.6)), HARDLY) is not None


def test_a_loss_that_began_below_a_nat_is_learned_if_the_decoder_outputs_something() -> None:
    signals = table(loss=np.full(40, 0.6))
    assert why(signals, table(steps=[20, 39], per=[0.97, 0.97]))[0] == "labels"
    assert why_the_error_stays(signals, table(steps=[20, 39], per=[1.0, 1.0])) is None  # it may be divided by something


def test_validation_losses_that_are_exactly_the_same_are_those_of_another_model() -> None:
    cause, advice = why(falling(), table(steps=[*range(19, 200, 20)], per=[1.1] * 10, loss=[25.5] * 10))
    assert cause == "train_eval"
    assert numbers(advice) == [2, 10, 25.5]
    on_plateau = table(steps=[*range(19, 200, 20)], per=[1.0] * 10, loss=[2.0] * 10)
    assert (why_the_error_stays(falling(), on_plateau) or ("",))[0] != "train_eval"


def test_a_validation_loss_that_rises_is_not_learned_however_near_it_is() -> None:
    at = np.arange(0, 200, 10)
    learned_late = np.where(at < 60, 0.01, 1.0)
    assert why(falling(end=7, frame_information=learned_late), with_loss(18, 19, 20))[0] == "labels"
    assert why_the_error_stays(falling(end=12, frame_information=learned_late), with_loss(18, 19, 20)) is None


def test_a_negative_loss_is_no_evidence() -> None:
    assert why_the_error_stays(table(loss=np.linspace(80, -50, 200)), HARDLY) is None


@pytest.mark.parametrize(("held_out", "far"), [(0.5, False), (40.0, True)])
def test_a_training_loss_of_nearly_0_is_compared_with_the_validation_loss(held_out: float, far: bool) -> None:
    assert is_far_from_training(falling(end=0.1), with_loss(60, held_out, held_out)) == far
    assert not is_far_from_training(falling(end=20), with_loss(60, held_out, held_out))
    assert not is_far_from_training(falling(end=0.1), HARDLY)


def plateau(last: float) -> Table:
    """A log with a reading in 100 steps, whose training loss is not yet known to be learned."""
    return table(steps=np.arange(10) * 100, loss=np.r_[10.0, np.linspace(3.5, last, 9)])


def checks(losses: Any, rates: Any) -> Table:
    return table(steps=np.arange(1, 11) * 100 - 1, loss=losses, per=rates)


ABOUT_1 = [1.05, 1.07, 1.04, 1.05, 1.06, 1.05, 1.07, 1.06, 1.07, 1.08]


def test_a_validation_loss_that_goes_on_falling_beside_an_error_rate_that_does_not_is_a_wrong_metric() -> None:
    reason = why_the_error_stays(plateau(1.2), checks(np.geomspace(3.7, 0.7, 10), ABOUT_1))
    assert reason is not None
    assert reason[0] == "metric"
    # A decoder without output is on the plateau, or on its way to it.
    assert why_the_error_stays(plateau(3.0), checks(np.geomspace(20, 3.3, 10), np.ones(10))) is None


def test_a_validation_loss_that_rises_while_the_other_falls_shows_other_labels() -> None:
    reason = why_the_error_stays(plateau(2.4), checks(np.linspace(3.4, 5.0, 10), ABOUT_1))
    assert reason is not None
    assert reason[0] == "labels"
    assert why_the_error_stays(plateau(3.5), checks(np.linspace(3.4, 5.0, 10), ABOUT_1)) is None


def test_a_validation_loss_far_above_that_of_a_silent_decoder_is_another_mode() -> None:
    signals = learned_loss()
    validation = table(steps=[50, 150, 180, 199], per=[1.0, 1.0, 1.0, 1.0], loss=[9e3, 8e3, 1e4, 2e4])
    reason = why_the_error_stays(signals, validation)
    assert reason is not None
    assert reason[0] == "train_eval"


def test_a_training_in_which_no_number_changes_is_not_trained() -> None:
    validation = table(steps=np.arange(6) * 30, per=np.full(6, 3.4), loss=np.full(6, 66.0))
    reason = why_the_error_stays(table(loss=np.full(200, 0.5)), validation)
    assert reason is not None
    assert reason[0] == "no_update"


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ([40.0] * 200, "overfitting"),
        ([400.0] * 200, "labels"),
        ([*range(200)], "labels"),  # each utterance is new: nothing can be memorized
    ],
)
def test_a_corpus_of_few_utterances_explains_what_holds_in_training_only(counts: list[float], cause: str) -> None:
    found, advice = why(falling(different_utterances=counts), with_loss(30, 40, 50))
    assert found == cause
    assert ("only 40 different utterances" in advice) == (cause == "overfitting")


def test_few_utterances_are_no_excuse_for_what_is_learned_in_both_splits() -> None:
    signals = falling(different_utterances=[40.0] * 200)
    assert why(signals, with_loss(80, 6, 4))[0] == why(falling(), with_loss(80, 6, 4))[0] == "metric"
