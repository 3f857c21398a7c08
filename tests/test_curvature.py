"""The experiment's curvature against dense Hessians, and the threshold against the iteration that it is about."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.curvature import largest_eigenvalue, measure, step_scale, threshold
from stability.data.batches import training_batch
from stability.data.t15 import Dataset
from stability.training.decoder import init_parameters
from stability.training.loop import Stack, gradients_of, learning_rates, new_stack, train_steps
from tests.configs import tiny
from tests.reference import ReferenceTrainer, days_of_rows, reference, smoothed

SMALL = ("model.layers=1", "model.units=3", "model.patch_size=4", "schedule.lr_max=0.02", "optimizer.epsilon=0.001")


def trained(dataset: Dataset, steps: int, *overrides: str) -> Stack:
    config = tiny(*SMALL, *overrides)
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    stack = new_stack([config], [parameters], torch.device("cpu"))
    if steps:
        train_steps(stack, dataset.train, steps)
    return stack


def exact_gradients(stack: Stack, dataset: Dataset) -> Tensor:
    """placeholder"""
    raise NotImplementedError


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_the_threshold_is_where_adam_on_a_quadratic_starts_to_diverge(factor: float) -> None:
    lr, beta1, epsilon = 0.01, 0.9, 0.1
    curvature = factor * threshold(lr, beta1) * epsilon
    w = torch.full((1,), 1e-9, dtype=torch.float64, requires_grad=True)  # so that epsilon is all of P
    adam = torch.optim.Adam([w], lr, betas=(beta1, 0.999), eps=epsilon)
    for _ in range(400):
        w.grad = curvature * w.detach()
        adam.step()
    assert threshold(lr, beta1) == pytest.approx(38 / lr)
    assert (abs(w.item()) > 1e-9) == (factor > 1)
