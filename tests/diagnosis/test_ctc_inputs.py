"""What the CTC loss is given, by made-up signals."""

import math
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.ctc_inputs import ctc_inputs
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from tests.support.tables import NOTHING, numbers, table

STEPS, BATCH = 60, 8


def found(**changes: Any) -> Finding | None:
    """What is found in a healthy training with these signals in the place of its own."""
    rng = np.random.default_rng(0)
    healthy: dict[str, Any] = {
        "loss": 40 + rng.normal(size=STEPS),
        "grad_norm": 5 * np.exp(0.2 * rng.normal(size=STEPS)),
        "blank_fraction": np.full(STEPS, 0.5),
        "utterances": np.full(STEPS, float(BATCH)),
    }
    counts = ("infeasible_targets", "empty_targets", "blanks_in_labels", "labels_out_of_range", "lengths_too_long")
    healthy |= {name: np.zeros(STEPS) for name in (*counts, "axes_swapped")}
    return ctc_inputs(table(**(healthy | changes)), NOTHING)


def sure(**changes: Any) -> Finding:
    finding = found(**changes)
    assert finding is not None
    assert finding.kind == "bad_data"
    return finding


def at(step: int, value: float, usual: float = 0.0) -> np.ndarray:
    values = np.full(STEPS, usual)
    values[step] = value
    return values


def test_nothing_is_found_in_a_healthy_training() -> None:
    assert found() is None


@pytest.mark.parametrize(
    ("signal", "cause"),
    [
        ("axes_swapped", "axes_swapped"),
        ("lengths_too_long", "lengths_too_long"),
        ("labels_out_of_range", "label_out_of_range"),
        ("blanks_in_labels", "blank_in_labels"),
    ],
)
@pytest.mark.parametrize("step", [0, 31])
def test_what_is_always_wrong_is_found_at_its_first_step(signal: str, cause: str, step: int) -> None:
    finding = sure(**{signal: at(step, 1)})
    assert (finding.cause, finding.onset_step, finding.detected_step) == (cause, step, step)
    assert (finding.signal, finding.value) == (signal, 1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("signal", "cause"), [("infeasible_targets", "infeasible_target"), ("empty_targets", "empty_target")]
)
def test_a_spoilt_loss_is_explained_by_the_first_such_utterance(signal: str, cause: str, loss: float) -> None:
    finding = sure(loss=at(40, loss, 30.0), **{signal: at(40, 2)})
    assert (finding.cause, finding.onset_step, finding.value) == (cause, 40, 2)
    assert numbers(finding.advice)[0] == 2


def test_a_spoilt_gradient_is_explained_unless_fp16_overflowed() -> None:
    spoilt = {"grad_norm": at(40, math.nan, 5.0), "empty_targets": at(40, 1)}
    assert sure(**spoilt).cause == "empty_target"
    assert found(**spoilt, loss_scale=np.full(STEPS, 1024.0)) is None


def test_other_reasons_of_a_loss_that_is_not_finite_are_left_to_others() -> None:
    spoilt = at(40, math.nan, 30.0)
    few = at(40, 1)
    few[7] = 1  # the loss bore it before
    assert found(loss=spoilt, infeasible_targets=few) is None
    assert found(loss=spoilt, infeasible_targets=at(40, 1), input_max=at(40, math.inf, 3.0)) is None


def test_a_few_utterances_are_no_finding() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        few = np.random.default_rng(seed).binomial(BATCH, 0.05, STEPS).astype(float)
        assert found(infeasible_targets=few) is None, seed
    assert found(infeasible_targets=at(0, 1)) is None
    assert found(empty_targets=rng.binomial(BATCH, 0.3, STEPS).astype(float)) is None, "silence is data"


def test_many_utterances_are_a_finding() -> None:
    half = np.tile([1.0, 7.0], STEPS // 2)
    finding = sure(infeasible_targets=half)
    assert (finding.cause, finding.onset_step) == ("infeasible_target", 0)
    assert finding.detected_step < 3
    share = numbers(finding.advice)[-1]
    assert share == pytest.approx(half[: finding.detected_step + 1].mean() / BATCH, rel=0.01)
    assert sure(infeasible_targets=np.ones(STEPS) * 1.5).detected_step < STEPS, "one in five"
    assert sure(empty_targets=np.full(STEPS, float(BATCH))).cause == "empty_target"


def test_a_batch_in_which_nothing_can_be_aligned_is_a_finding_at_once() -> None:
    finding = sure(infeasible_targets=at(40, BATCH))
    assert (finding.cause, finding.detected_step) == ("infeasible_target", 40)
    one = np.ones(STEPS)
    assert found(utterances=one, infeasible_targets=at(40, 1)) is None, "a batch of one tells little"


def test_transcripts_that_are_empty_from_some_step_on_are_found_at_once() -> None:
    gone = np.where(np.arange(STEPS) >= 40, float(BATCH), 0.0)
    finding = sure(empty_targets=gone)
    assert (finding.cause, finding.onset_step, finding.detected_step) == ("empty_target", 40, 41)
    assert found(empty_targets=at(40, BATCH)) is None, "one batch may be silent"


def test_the_share_needs_the_number_of_utterances() -> None:
    loss, counts = np.full(STEPS, 3.0), np.full(STEPS, 5.0)
    assert ctc_inputs(table(loss=loss, infeasible_targets=counts), NOTHING) is None


def test_a_ctc_loss_below_0_is_found_at_once() -> None:
    finding = sure(loss=np.linspace(3, -1, STEPS))
    assert finding.cause == "negative_loss"
    assert finding.onset_step == finding.detected_step == 45
    assert found(loss=np.full(STEPS, -1e-6)) is None, "0, rounded"


@pytest.mark.parametrize(
    ("per", "loss", "is_fault"),
    [(0.1, 0.4, False), (0.1, -0.4, True), (0.1, 5.0, True), (0.4, 0.4, True), (0.1, np.nan, True)],
)
def test_another_term_may_pull_a_learned_loss_below_0(per: float, loss: float, is_fault: bool) -> None:
    """The entropy of the outputs is such a term. The validation loss does not contain it."""
    signals = table(loss=np.linspace(3, -1, STEPS), blank_fraction=np.full(STEPS, 0.5))
    finding = ctc_inputs(signals, table(steps=[10, 40, 50], per=[1.0, per, 0.1], loss=[3.0, loss, 0.1]))
    assert (finding is not None) == is_fault
    later = ctc_inputs(signals, table(steps=[10, 50], per=[1.0, 0.1], loss=[3.0, 0.1]))
    assert later is not None, "when the loss fell below 0, nobody knew that it was learned"


def test_a_loss_below_0_without_ctcs_signals_is_found_if_nothing_is_learned() -> None:
    signals = table(loss=np.linspace(3, -10, STEPS))
    validation = table(steps=[5, 30, 40, 50], per=[1.0, 1.0, 1.0, 1.0])
    finding = ctc_inputs(signals, validation)
    assert finding is not None
    assert (finding.cause, finding.onset_step, finding.detected_step) == ("negative_loss", 14, 17)
    assert ctc_inputs(signals, NOTHING) is None


def test_a_loss_that_was_never_far_above_0_may_be_a_log_likelihood() -> None:
    signals = table(loss=np.linspace(0.5, -10, STEPS))
    finding = ctc_inputs(signals, table(steps=[5, 30, 40, 50], per=[1.0, 1.0, 1.0, 1.0]))
    assert finding is not None
    assert (finding.cause, finding.detected_step) == ("negative_loss", 30)
    assert ctc_inputs(signals, table(steps=[5, 30, 40], per=[1.0, 0.8, 0.7])) is None, "it learns"


def test_the_first_of_several_faults_is_returned() -> None:
    finding = sure(blanks_in_labels=np.ones(STEPS), infeasible_targets=np.full(STEPS, 8.0), axes_swapped=at(20, 1))
    assert (finding.cause, finding.detected_step) == ("blank_in_labels", 0)


def test_skipped_steps_are_not_judged() -> None:
    loss = 40 + np.random.default_rng(0).normal(size=STEPS)
    loss[[10, 11, 30]] = math.nan
    skipped = np.zeros(STEPS)
    skipped[[10, 11]] = 1
    infeasible = at(10, 8)
    infeasible[30] = 1
    signals = table(loss=loss, skipped=skipped, infeasible_targets=infeasible, utterances=np.full(STEPS, 8.0))
    assert [f.onset_step for f in findings(signals, NOTHING)][:1] == [30]
    skipped[30] = 1
    signals = table(loss=loss, skipped=skipped, infeasible_targets=infeasible, utterances=np.full(STEPS, 8.0))
    assert findings(signals, NOTHING) == []
