"""Gradients against the reference, and of batches in parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stability.data.records import Dataset
from stability.engine.evaluate import evaluate
from stability.engine.gradients import forward_backward, gradients_of
from stability.engine.stack import join, select
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.reference import ReferenceTrainer, by_official_name, reference
from tests.support.stacks import column, copied, different, stack_of, trained


@pytest.mark.parametrize("parts", [2, 7])  # one row each, in the end
def test_micro_batches_have_the_same_mathematics(dataset: Dataset, parts: int) -> None:
    """Loss, gradients and signals of a batch in parts, its noise and dropout included, are those of the whole."""
    configs = [replace(config, batch=tiny("batch.size=7").batch) for config in different()]
    stack, _ = trained(configs, dataset, 3)
    divided = replace(select(stack, range(4)), micro_batches=parts)
    whole, added = (forward_backward(s, dataset.train) for s in (stack, divided))
    torch.testing.assert_close(added.nll, whole.nll, rtol=1e-5, atol=0)
    torch.testing.assert_close((added.loss, added.loss_per_label), (whole.loss, whole.loss_per_label))
    for name, gradient in whole.gradients.items():
        assert (added.gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    undivided, parted = (train_steps(s, dataset.train, 3) for s in (stack, divided))
    np.testing.assert_array_equal(column(parted, "input_max"), column(undivided, "input_max"))
    for own, other in zip(parted, undivided, strict=True):
        np.testing.assert_allclose(own.values, other.values, rtol=1e-3, atol=1e-5)
    divided.parameters = stack.parameters
    np.testing.assert_allclose(evaluate(divided, dataset.val), evaluate(stack, dataset.val), rtol=1e-5)
    assert divided.micro_batches == join([divided, stack]).micro_batches == select(divided, [1]).micro_batches == parts


def test_gradients_are_those_of_the_next_step(dataset: Dataset) -> None:
    """In float64, before the clip, and zero for the days that are not in the batch."""
    config = tiny("optimizer.clip_norm=null")
    stack = stack_of([config], dataset)
    stack.parameters = {n: p.double() for n, p in stack.parameters.items()}
    stack.steps = [3] * len(stack.configs)
    gradients = by_official_name({n: g[0] for n, g in gradients_of(stack, dataset.train).items()})
    trainer = ReferenceTrainer(config, reference(copied(stack.parameters, 0), 2, torch.float64))
    trainer.step(dataset.train, 3)
    expected = {n: p.grad for n, p in trainer.model.named_parameters()}
    assert None in expected.values()
    for name, gradient in gradients.items():
        wanted = expected[name]
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if wanted is None else wanted, rtol=1e-4, atol=1e-6
        )
    assert stack.steps == [3] * len(stack.configs)
