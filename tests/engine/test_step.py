"""Training steps against the reference trainer; steps that fail; half precision."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stability.config.schema import Config
from stability.data.batches import Batch, training_batch
from stability.data.records import Dataset, Split
from stability.engine.decoder import init_parameters
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.reference import ReferenceDecoder, ReferenceTrainer, by_official_name, reference
from tests.support.stacks import column, copied, stack_of, trained

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["optimizer=adam_default"], 1e-3),  # the sign of a gradient near zero decides there
        (["loss=per_label_mean", "optimizer.clip_norm=null", "batch.size=7"], 1e-5),
        (["aug=weak", "schedule.lr_max_day=0.02", "optimizer.weight_decay=0.1", "optimizer.fused=false"], 1e-5),
        (["aug=none", "optimizer.clip_norm=1", "optimizer.weight_decay_day=0.05"], 1e-5),
    ],
)
def test_training_agrees_with_the_reference(dataset: Dataset, overrides: list[str], tolerance: float) -> None:
    """Losses and weights of ten steps, with the same batches, noise and dropout; the reference in float64."""
    config = tiny("optimizer.clip_norm=8", *overrides)
    stack = stack_of([config], dataset)
    trainer = ReferenceTrainer(config, reference(copied(stack.parameters, 0), 2, torch.float64))
    expected = [trainer.step(dataset.train, step) for step in range(10)]
    tables = train_steps(stack, dataset.train, 10)
    losses, norms = np.array(expected).T
    np.testing.assert_allclose(column(tables, "loss")[0], losses, rtol=tolerance)
    np.testing.assert_allclose(column(tables, "grad_norm")[0], norms, rtol=10 * tolerance)
    if config.optimizer.clip_norm is not None:
        assert (norms > config.optimizer.clip_norm).any()
    start = by_official_name(init_parameters(config.model, 6, 4, config.seed))
    ours = by_official_name(copied(stack.parameters, 0))
    for name, p in trainer.model.named_parameters():
        moved = (p - start[name]).norm()
        assert (ours[name] - p).norm() <= 10 * tolerance * moved + 1e-6 * p.norm(), name


def test_two_runs_are_bit_for_bit_the_same(dataset: Dataset) -> None:
    (first, a), (second, b) = (trained([tiny()], dataset, 8) for _ in range(2))
    assert a[0].values.tobytes() == b[0].values.tobytes()
    assert all(torch.equal(p, second.parameters[n]) for n, p in first.parameters.items())


def test_blocks_of_steps_make_no_difference(dataset: Dataset) -> None:
    _, whole = trained([tiny()], dataset, 7)
    stack = stack_of([tiny()], dataset)
    parts = [train_steps(stack, dataset.train, n) for n in (1, 4, 2)]
    np.testing.assert_array_equal(np.concatenate([part.values for (part,) in parts]), whole[0].values)
    assert parts[1][0].steps.tolist() == [1, 2, 3, 4]


def test_the_steps_before_one_that_fails_are_returned(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = trained([tiny()], dataset, 3)

    def unreadable(split: Split, size: int, days: int, seed: int, step: int) -> Batch:
        if step == 3:
            raise OSError("the third batch")
        return training_batch(split, size, days, seed=seed, step=step)

    monkeypatch.setattr("stability.engine.batch.training_batch", unreadable)
    stack = stack_of([tiny()], dataset)
    tables = train_steps(stack, dataset.train, 10)
    assert tables[0].steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(tables[0].values, whole[0].values)
    with pytest.raises(OSError, match="the third batch"):
        train_steps(stack, dataset.train, 7)
    assert stack.steps == [3]


@pytest.mark.parametrize("weight", ["out.bias", "gru.weight_hh_l1", "day_weights"])
def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were(dataset: Dataset, weight: str) -> None:
    stack = stack_of([tiny("seed=1"), tiny("seed=2")], dataset)
    train_steps(stack, dataset.train, 2)
    stack.parameters[weight][1, ..., 0] = math.inf
    before = [{n: t.clone() for n, t in kind.items()} for kind in (stack.parameters, *stack.moments)]
    tables = train_steps(stack, dataset.train, 3)
    assert stack.failed.tolist() == [0, 1]
    loss, norm = column(tables, "loss"), column(tables, "grad_norm")
    assert not np.isfinite(norm[1]).any()
    assert np.isfinite([loss[0], norm[0]]).all()
    for kind, old in zip((stack.parameters, *stack.moments), before, strict=True):
        for n, t in kind.items():
            assert torch.equal(t[1], old[n][1]), n
    assert not torch.equal(stack.parameters["h0"][0], before[0]["h0"][0])


def test_a_failed_trial_is_never_stepped_again(dataset: Dataset) -> None:
    stack = stack_of([tiny()], dataset)
    bias = stack.parameters["out.bias"]
    healthy = bias.clone()
    bias[0, 0] = math.nan
    train_steps(stack, dataset.train, 1)
    bias.copy_(healthy)
    before = copied(stack.parameters, 0)
    tables = train_steps(stack, dataset.train, 6)
    assert np.isfinite(column(tables, "loss")).all()
    assert all(torch.equal(p[0], before[n]) for n, p in stack.parameters.items())


def test_fp16_overflow_halves_the_scale_and_skips_the_step(dataset: Dataset) -> None:
    config = tiny("precision=fp16", f"precision.initial_loss_scale={2.0**40}")
    stack = stack_of([config], dataset)
    before = copied(stack.parameters, 0)
    tables = train_steps(stack, dataset.train, 1)
    assert column(tables, "loss_scale").tolist() == [[2.0**40]]
    assert np.isfinite(column(tables, "loss")).all()
    assert not np.isfinite(column(tables, "grad_norm")).any()
    assert stack.loss_scale.tolist() == [2.0**39]
    assert stack.failed.tolist() == [0]
    assert all(torch.equal(p[0], before[n]) for n, p in stack.parameters.items())
    assert not any(s.any() for s in stack.moments.steps.values())
    tables = train_steps(stack, dataset.train, 40)
    assert stack.failed.tolist() == [0]
    finite = np.isfinite(column(tables, "grad_norm")[0])
    assert finite[-5:].all()
    overflows = 1 + int((~finite).sum())
    assert stack.loss_scale.item() == 2.0 ** (40 - overflows)
    assert stack.moments.steps["h0"].item() == finite.sum()


def test_fp16_scale_grows_back(dataset: Dataset) -> None:
    stack = stack_of([tiny("precision=fp16", "precision.initial_loss_scale=1024")], dataset)
    stack.steps_since_overflow = torch.tensor([1998.0])
    tables = train_steps(stack, dataset.train, 3)
    assert column(tables, "loss_scale").tolist() == [[1024, 1024, 2048]]


def test_fp16_without_a_smaller_scale_fails(dataset: Dataset) -> None:
    stack = stack_of([tiny("precision=fp16", "precision.initial_loss_scale=1")], dataset)
    stack.parameters["gru.weight_ih_l1"].mul_(math.nan)
    train_steps(stack, dataset.train, 1)
    assert stack.failed.tolist() == [1]


class ClipsBeforeUnscaling(ReferenceTrainer):
    """The fault as public code has it: `unscale_` is forgotten, and the clip sees the scaled gradients."""

    def __init__(self, config: Config, model: ReferenceDecoder, scale: float) -> None:
        super().__init__(config, model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def update(self, loss: Tensor) -> float:
        assert self.config.optimizer.clip_norm is not None
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm.item()


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"), [("fp32", 4, 1e-4), ("fp32", 65536, 1e-4), ("fp16", 4, 0.02), ("fp16", 1024, 0.02)]
)
def test_clip_before_unscale_is_the_fault_of_public_code(
    dataset: Dataset, dtype: str, scale: float, tolerance: float
) -> None:
    """Ten steps, compared with a plain loop in float32 with PyTorch's own GradScaler."""
    common = ("optimizer=adam_default", "optimizer.epsilon=1e-3", "optimizer.clip_norm=20", "optimizer.fused=false")
    config = tiny(*common, "precision=fp16_clip_before_unscale", f"precision.dtype={dtype}")
    stack = stack_of([config], dataset)
    stack.loss_scale.fill_(scale)  # in float32 too, where the comparison is exact
    start = by_official_name(copied(stack.parameters, 0))
    trainer = ClipsBeforeUnscaling(config, reference(copied(stack.parameters, 0), 2, torch.float32), scale)
    tables = train_steps(stack, dataset.train, 10)
    assert (column(tables, "loss_scale") == scale).all()
    for step in range(10):
        loss, scaled_norm = trainer.step(dataset.train, step)
        assert column(tables, "loss")[0, step] == pytest.approx(loss, rel=tolerance)
        assert column(tables, "grad_norm")[0, step] == pytest.approx(scaled_norm / scale, rel=10 * tolerance)
        assert column(tables, "clipped")[0, step] == (scaled_norm > 20)
        assert column(tables, "applied_norm")[0, step] == pytest.approx(trainer.gradient_norm(), rel=10 * tolerance)
    assert (column(tables, "applied_norm") < 20.01 / scale).all()
    ours = by_official_name(copied(stack.parameters, 0))
    for name, p in trainer.model.named_parameters():
        moved = (p - start[name]).norm()
        assert (ours[name] - p).norm() <= 10 * tolerance * moved + 1e-6 * p.norm(), name


def test_without_a_loss_scale_clip_before_unscale_changes_nothing(dataset: Dataset) -> None:
    wrong, right = (
        trained([tiny("precision=" + n, "precision.dtype=bf16")], dataset, 4)[1]
        for n in ("fp16_clip_before_unscale", "fp16")
    )
    assert wrong[0].values.tobytes() == right[0].values.tobytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("fp16", 0.005)])
def test_half_precision_trains_nearly_like_float32(dataset: Dataset, dtype: str, tolerance: float) -> None:
    _, full = trained([tiny()], dataset, 12)
    stack, half = trained([tiny(f"precision={dtype}", "precision.initial_loss_scale=1024")], dataset, 12)
    np.testing.assert_allclose(column(half, "loss"), column(full, "loss"), rtol=tolerance)
    assert not np.array_equal(column(half, "loss"), column(full, "loss"))
    assert all(p.dtype == torch.float32 for p in stack.parameters.values())
    np.testing.assert_allclose(column(half, "grad_norm"), column(full, "grad_norm"), rtol=20 * tolerance)
