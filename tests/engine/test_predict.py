"""Dropout masks."""

import math

import pytest
import torch

from stability.data.records import Dataset
from stability.engine.batch import training_inputs
from stability.engine.predict import dropout_of
from tests.support.configs import tiny
from tests.support.stacks import stack_of


def test_dropout_masks(dataset: Dataset) -> None:
    """The share that is dropped, and a new mask every step and layer."""
    stack = stack_of([tiny()], dataset)
    inputs = training_inputs(stack, dataset.train)
    ones = torch.ones_like(inputs.x)
    first = dropout_of(stack, inputs)(ones, "input", 0.2, None)
    assert set(first.flatten().tolist()) == {0.0, 1.0}
    assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / first.numel()))
    assert not torch.equal(first, dropout_of(stack, inputs)(ones, "layer 1", 0.2, None))
    stack.steps = [1] * len(stack.configs)
    assert not torch.equal(first, dropout_of(stack, inputs)(ones, "input", 0.2, None))
