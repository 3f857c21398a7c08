"""The experiment's curvature against dense Hessians, and the threshold against the iteration that it is about."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from experiments.curvature import PROBE_SEEDS, largest_eigenvalue, measure, step_scale, threshold
from experiments.curvature_study import Trial
from stability.data.batches import training_batch
from stability.data.records import Dataset
from stability.engine.decoder import init_parameters
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.reference import (
    ReferenceDecoder,
    ReferenceTrainer,
    by_official_name,
    days_of_rows,
    reference,
    smoothed,
)

SMALL = (
    "batch.size=3",
    "model.layers=1",
    "model.units=2",
    "model.patch_size=2",
    "model.patch_stride=8",
    "optimizer.epsilon=0.001",
    "schedule.lr_max=0.02",
)


def trained(dataset: Dataset, steps: int, *overrides: str) -> Stack:
    config = tiny(*overrides)
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    stack = new_stack([config], [parameters], torch.device("cpu"))
    train_steps(stack, dataset.train, steps)
    return stack


def dense_hessian(stack: Stack, dataset: Dataset) -> NDArray[np.float64]:
    """Of the loss on the fixed batches, of PyTorch's own layers, from gradients at points on one side."""
    own = {n: p[0].double() for n, p in stack.parameters.items()}
    model = ReferenceDecoder(dataset.n_features, len(dataset.sessions), 1, 2, patch_size=2, patch_stride=8).double()
    named = dict(model.named_parameters())
    days = range(len(dataset.sessions))
    leaves = [named[n] for o in own for n in ([f"{o}.{d}" for d in days] if o.startswith("day_") else [o])]
    batches = [training_batch(dataset.train, 3, 3, seed=seed, step=0) for seed in PROBE_SEEDS]
    inputs = [smoothed(batch.features) for batch in batches]
    size = sum(p.numel() for p in leaves)

    def gradient(shift: Tensor) -> Tensor:
        parts = torch.split(shift, [p.numel() for p in own.values()])
        moved = {n: own[n] + part.view_as(own[n]) for n, part in zip(own, parts, strict=True)}
        model.load_state_dict(by_official_name(moved))
        losses = []
        for batch, x in zip(batches, inputs, strict=True):
            frames = (batch.bins - 2) // 8 + 1
            log_probs = model(x, days_of_rows(batch)).log_softmax(2).transpose(0, 1)
            losses.append(F.ctc_loss(log_probs, batch.labels, frames, batch.label_counts, reduction="none"))
        gradients = torch.autograd.grad(torch.cat(losses).mean(), leaves, materialize_grads=True)
        return torch.cat([g.flatten() for g in gradients])

    here = gradient(torch.zeros(size).double())
    columns = [(gradient(e * 1e-6) - here) / 1e-6 for e in torch.eye(size).double()]
    return torch.stack(columns).numpy()


def test_the_ratio_is_that_of_a_dense_hessian(dataset: Dataset) -> None:
    stack = trained(dataset, 6, *SMALL)
    root = step_scale(stack).sqrt().numpy()
    dense = root[:, None] * dense_hessian(stack, dataset) * root
    expected = np.linalg.eigvalsh((dense + dense.T) / 2)[-1] / 38
    measured = measure(stack, dataset.train)
    assert measured.ratio == pytest.approx(expected, rel=0.02)
    assert measured.direction is not None
    again = measure(stack, dataset.train, start=measured.direction)
    assert again.ratio == pytest.approx(expected, rel=0.02)


def test_the_distance_of_the_gradients_does_not_matter(dataset: Dataset) -> None:
    stack = trained(dataset, 6, *SMALL)
    ratios = [measure(stack, dataset.train, relative_step=h).ratio for h in (1e-7, 1e-6, 1e-5, 1e-4)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=0.02)


@pytest.mark.parametrize("own", [False, True])
def test_measuring_changes_nothing(dataset: Dataset, own: bool) -> None:
    measured, undisturbed = (trained(dataset, 3) for _ in range(2))
    measure(measured, dataset.train, own=own)
    for stack in (measured, undisturbed):
        train_steps(stack, dataset.train, 2)
    for name, p in undisturbed.parameters.items():
        assert torch.equal(measured.parameters[name], p)


def test_weights_that_are_not_finite_have_no_curvature(dataset: Dataset) -> None:
    stack = trained(dataset, 2)
    stack.parameters["out.bias"][0, 3] = torch.nan
    assert np.isnan(measure(stack, dataset.train).ratio)


def test_the_scale_is_that_of_the_next_step(dataset: Dataset) -> None:
    """Days of no batch yet are never moved; the others by steps of their own."""
    config = tiny("batch.days=1", "optimizer.epsilon=0.01", "schedule.lr_max_day=0.02")
    stack = trained(dataset, 2, "batch.days=1", "optimizer.epsilon=0.01", "schedule.lr_max_day=0.02")
    initial = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    trainer = ReferenceTrainer(config, reference(initial, 2, torch.float64))
    for step in range(2):
        trainer.step(dataset.train, step)
    groups = {p: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {}
    for name, p in trainer.model.named_parameters():
        state = trainer.optimizer.state.get(p)
        expected[name] = torch.zeros_like(p)
        if state:
            root = (state["exp_avg_sq"] / (1 - 0.999 ** state["step"])).sqrt()
            expected[name] = groups[p] / (root + 0.01)
    sizes = [p[0].numel() for p in stack.parameters.values()]
    parts = zip(stack.parameters.items(), torch.split(step_scale(stack), sizes), strict=True)
    actual = by_official_name({name: part.view_as(p[0]) for (name, p), part in parts})
    assert any(not scale.any() for scale in expected.values())
    for name, scale in expected.items():
        torch.testing.assert_close(actual[name], scale, rtol=1e-3, atol=1e-9)


def test_eigenvalue_of_a_quadratic() -> None:
    """Signed: curvature below zero, however strong, is none that Adam's threshold is about."""
    generator = np.random.default_rng(1)
    basis, _ = np.linalg.qr(generator.standard_normal((50, 50)))
    hessian = torch.from_numpy(basis * np.concatenate([[-90.0], np.linspace(0, 7, 49)]) @ basis.T)
    value, direction, products = largest_eigenvalue(lambda w: w @ hessian, torch.ones(50).double(), torch.ones(50))
    assert value == pytest.approx(7, rel=0.02)
    assert direction is not None
    assert abs(direction @ basis[:, -1]) > 0.9
    assert products > 1


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_the_threshold_is_where_adam_on_a_quadratic_starts_to_diverge(factor: float) -> None:
    lr, beta1, epsilon = 0.01, 0.9, 0.1
    curvature = factor * threshold(lr, beta1) * epsilon
    w = torch.full((1,), 1e-40, dtype=torch.float64, requires_grad=True)  # epsilon is all of P, even after it has grown
    adam = torch.optim.Adam([w], lr, betas=(beta1, 0.999), eps=epsilon)
    sizes = []
    for _ in range(160):
        w.grad = curvature * w.detach()
        adam.step()
        sizes.append(abs(w.item()))
    assert threshold(lr, beta1) == pytest.approx(38 / lr)
    assert (max(sizes[140:]) > max(sizes[100:120])) == (factor > 1)  # once the mean of the gradients is unbiased


@pytest.mark.parametrize(
    ("ratios", "onset", "warning", "lead"),
    [
        ([0.5, 2, 3, 0.5], 20, 15, 5),
        ([0.5, 2, 0.9, 2], 20, None, None),  # never twice in a row
        ([0.5, 2, "", 2], 20, None, None),
        ([2, float("nan"), 2, 2], 20, 20, 0),
        ([0.5, 0.5, 2, 2], 15, 20, None),  # too late
        ([2, 2, 0.5, 0.5], "", 10, None),  # a false one
    ],
)
def test_a_warning_is_two_measurements_in_a_row(
    ratios: list[float | str], onset: int | str, warning: int | None, lead: int | None
) -> None:
    trial = Trial([{"step": str(5 * i), "ratio": str(r), "onset": str(onset)} for i, r in enumerate(ratios, 1)])
    assert trial.warning("ratio above 1, twice") == warning
    assert trial.lead("ratio above 1, twice") == lead
