"""Which changes may mend a failed training: from the cause, the evidence, and the names of the settings."""

from typing import Any

import pytest

from stability.analysis.remedies import no_setting_mends, remedies, role_of
from stability.diagnosis.verdict import Verdict

DECODER: dict[str, Any] = {
    "schedule.lr_max": 0.03,
    "schedule.lr_min": 0.0001,
    "schedule.warmup_steps": 50,
    "schedule.decay_steps": 6000,
    "optimizer.epsilon": 0.1,
    "optimizer.weight_decay": 0.001,
    "optimizer.clip_norm": 10.0,
    "loss.reduction": "per_label_mean",
    "precision.dtype": "fp32",
    "precision.clip_before_unscale": False,
    "aug.white_noise_std": 0.25,
    "model.rnn_dropout": 0.4,
    "data.synthetic.noise": 1.0,
    "steps": 500,
}
DOMINATED = {"share of second-moment roots below epsilon": 1.0}


def changes(verdict: Verdict, settings: dict[str, Any], norm: float | None = None) -> list[str]:
    return [str(change) for change in remedies(verdict, settings, norm)]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("schedule.lr_max", "learning rate"),
        ("schedule.lr_max_day", "learning rate"),
        ("settings.optim.learning_rate", "learning rate"),
        ("settings.peak-lr", "learning rate"),
        ("schedule.lr_min", "lowest rate"),
        ("settings.min_lr", "lowest rate"),
        ("settings.warmup", "warm-up"),
        ("settings.lr_warmup_steps", "warm-up"),
        ("settings.warmup_ratio", "warm-up"),
        ("settings.adam_epsilon", "epsilon"),
        ("settings.eps", "epsilon"),
        ("settings.grad_clip", "clip"),
        ("settings.gradient_clip_val", "clip"),
        ("settings.max_grad_norm", "clip"),
        ("optimizer.weight_decay", "weight decay"),
        ("settings.wd", "weight decay"),
        ("model.rnn_dropout", "dropout"),
        ("aug.white_noise_std", "noise"),
        ("settings.max_steps", "steps"),
        ("settings.fp16", "precision"),
        ("data.synthetic.noise", None),
        ("trainer.steps", None),
        ("settings.slr", None),
        ("settings.name", None),
    ],
)
def test_a_settings_role_is_known_by_its_name(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_too_high_a_rate_is_lowered_first_and_the_lowest_rate_follows_where_it_has_to() -> None:
    verdict = Verdict("exploded", "rate_too_high", onset_step=60)
    found = changes(verdict, DECODER, 2.0)
    assert found[:4] == [
        "schedule.lr_max=0.01",
        "schedule.lr_max=0.003",
        "optimizer.clip_norm=2",
        "schedule.warmup_steps=150",
    ]
    assert changes(verdict, DECODER | {"schedule.lr_max": 0.0002})[:2] == [
        "schedule.lr_max=6.67e-5 schedule.lr_min=3.33e-5",
        "schedule.lr_max=2e-5 schedule.lr_min=1e-5",
    ]
    assert "schedule.warmup_steps=500" not in found, "that would be the whole training"
    late = Verdict("exploded", "rate_too_high", onset_step=400)
    assert not any("warmup" in one for one in changes(late, DECODER)), "it began long after the warm-up"


def test_the_settings_of_a_command_are_changed_by_their_names() -> None:
    settings = {"settings.lr": 3, "settings.eps": 1e-8, "settings.grad_clip": None, "settings.warmup": 0}
    verdict = Verdict("exploded", "rate_too_high")
    found = changes(verdict, settings, 0.512345)
    assert found[:2] == ["settings.lr=1", "settings.lr=0.3"]
    assert {*found[2:5]} == {"settings.grad_clip=0.512", "settings.warmup=100", "settings.eps=1e-6"}
    assert remedies(verdict, {"settings.file": "a"}) == ()


def test_too_small_a_step_gets_a_smaller_epsilon_only_where_epsilon_dominates() -> None:
    found = changes(Verdict("blank_collapse", "step_too_small", evidence={**DOMINATED}), DECODER)
    assert found[:4] == [
        "optimizer.epsilon=0.01",
        "optimizer.epsilon=0.001",
        "loss.reduction=per_utterance_sum",
        "schedule.lr_max=0.09",
    ]
    small = {"share of second-moment roots below epsilon": 0.0, "share of steps clipped": 0.9}
    found = changes(Verdict("undecided", "step_too_small", evidence={**small}), DECODER | {"optimizer.epsilon": 1e-8})
    assert found[:3] == ["schedule.lr_max=0.09", "schedule.lr_max=0.3", "loss.reduction=per_utterance_sum"]
    assert not any("epsilon" in one or "clip" in one for one in found), "Adam's steps do not depend on the clip then"
    clipped = DOMINATED | {"share of steps clipped": 0.9}
    found = changes(Verdict("undecided", "step_too_small", evidence={**clipped}), DECODER)
    assert "optimizer.clip_norm=100" in found
    found = changes(Verdict("undecided", "step_too_small", evidence={**DOMINATED}), DECODER | {"schedule.lr_max": 2e-6})
    assert found[0] == "schedule.lr_max=6e-6", "with a rate that is tiny, no epsilon makes the steps large enough"


def test_changes_that_leave_the_updates_too_small_are_not_tried() -> None:
    evidence: dict[str, float | str] = {"size of an update over size of the weights": 1e-5}
    found = changes(Verdict("undecided", "step_too_small", evidence=evidence), {"settings.lr": 1e-6})
    assert found == ["settings.lr=0.0001", "settings.lr=0.0003", "settings.lr=0.001", "settings.lr=0.01"]


@pytest.mark.parametrize(
    ("outcome", "cause", "first"),
    [
        ("degraded", "decay", "optimizer.weight_decay=0.0001"),
        ("undecided", "in_warmup", "schedule.warmup_steps=17"),
        ("degraded", "overfitting", "aug.white_noise_std=0.5"),
        ("exploded", "bad_batch", "optimizer.clip_norm=1"),
        ("exploded", "unknown", "schedule.lr_max=0.01"),
        ("undecided", None, "schedule.lr_max=0.01"),
        ("not_training", "no_update", "schedule.lr_max=0.09"),
    ],
)
def test_each_cause_has_its_own_first_change(outcome: Any, cause: str | None, first: str) -> None:
    assert changes(Verdict(outcome, cause), DECODER)[0] == first


def test_without_evidence_both_directions_of_the_rate_are_tried_the_nearest_first() -> None:
    found = changes(Verdict("undecided", "no_evidence"), DECODER)
    assert found[:2] == ["schedule.lr_max=0.01", "schedule.lr_max=0.09"]
    assert "steps=1000" in found


def test_half_precision_is_replaced_and_clipping_comes_after_unscaling() -> None:
    verdict = Verdict("blank_collapse", "precision")
    fp16 = DECODER | {"precision.dtype": "fp16", "precision.clip_before_unscale": True}
    assert changes(verdict, fp16) == [
        "precision.clip_before_unscale=false",
        "precision.dtype=bf16",
        "precision.dtype=fp32",
    ]
    assert changes(verdict, {"settings.fp16": True}) == ["settings.fp16=false"]


def test_a_warm_up_that_is_longer_than_the_training_is_made_shorter_than_that() -> None:
    endless = DECODER | {"schedule.warmup_steps": 100_000}
    found = changes(Verdict("undecided", "in_warmup"), endless)
    assert found[:2] == ["schedule.warmup_steps=167", "schedule.warmup_steps=50"]


def test_a_strong_weight_decay_is_suspected_whatever_was_measured() -> None:
    found = changes(Verdict("blank_collapse", "no_information"), DECODER | {"optimizer.weight_decay": 30.0})
    assert found[:2] == ["optimizer.weight_decay=3", "optimizer.weight_decay=0.3"]
    assert "optimizer.weight_decay=0" in found
    found = changes(Verdict("undecided", "no_information"), DECODER | {"model.rnn_dropout": 0.97})
    assert found[:2] == ["model.rnn_dropout=0.7", "model.rnn_dropout=0.35"]


def test_a_rate_that_has_fallen_early_falls_later() -> None:
    early, later = (DECODER | {"schedule.decay_steps": steps} for steps in (20, 100))
    for verdict in (
        Verdict("undecided", "step_too_small"),
        Verdict("blank_collapse", "step_too_small", evidence={"share of second-moment roots below epsilon": 0.99}),
        Verdict("not_training", "no_update"),
        Verdict("undecided", "no_information"),
    ):
        assert changes(verdict, early)[0] == "schedule.decay_steps=500", "with 60 it would still fall early"
    found = changes(Verdict("undecided", "step_too_small"), later)
    assert found[:2] == ["schedule.decay_steps=300", "schedule.decay_steps=500"]
    late = DECODER | {"schedule.decay_steps": 300}
    assert changes(Verdict("undecided", "step_too_small"), late)[0].startswith("schedule.lr_max=")


def test_a_rate_of_zero_gets_a_usual_one() -> None:
    assert changes(Verdict("not_training", "no_update"), {"settings.lr": 0.0})[0] == "settings.lr=0.001"


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [("bad_data", "infeasible_target"), ("undecided", "metric"), ("not_training", "not_in_optimizer")],
)
def test_faults_that_no_setting_mends_have_no_change(outcome: Any, cause: str) -> None:
    assert no_setting_mends(Verdict(outcome, cause))
    assert remedies(Verdict(outcome, cause), DECODER) == ()
