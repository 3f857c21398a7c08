"""Small stacks on the CPU, and the signals of their trials."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from stability.config.schema import Config
from stability.data.records import Dataset
from stability.diagnosis.table import Table
from stability.engine.decoder import Parameters, init_parameters
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from tests.support.configs import tiny

CPU = torch.device("cpu")


def stack_of(configs: Sequence[Config], dataset: Dataset, device: torch.device = CPU) -> Stack:
    """A stack of these trials before their first step."""
    days, features = len(dataset.sessions), dataset.n_features
    return new_stack(configs, [init_parameters(c.model, features, days, c.seed) for c in configs], device)


def trained(configs: Sequence[Config], dataset: Dataset, steps: int) -> tuple[Stack, list[Table]]:
    """A stack of these trials after so many steps, and their signals."""
    stack = stack_of(configs, dataset)
    return stack, train_steps(stack, dataset.train, steps)


def column(tables: Sequence[Table], name: str) -> NDArray[np.float32]:
    """One signal of all trials, (K, steps); NaN where it was not measured."""
    return np.stack([table[name] for table in tables])


def measured(tables: Sequence[Table], name: str) -> list[list[bool]]:
    """Whether one signal was measured, by trial and step."""
    return [table.measured[:, table.names.index(name)].tolist() for table in tables]


def copied(parameters: Parameters, k: int) -> Parameters:
    """A copy of one trial's parameters, without the trial axis."""
    return {n: p[k].clone() for n, p in parameters.items()}


def different() -> list[Config]:
    """Return different configurations that can share a stack. The first two have the same seed."""
    return [
        tiny("seed=1"),
        tiny("seed=1", "optimizer=adam_default", "schedule.lr_max=0.01", "aug=weak", "loss=per_label_mean"),
        tiny("seed=2", "optimizer.epsilon=1e-3", "optimizer.clip_norm=1", "schedule.warmup_steps=8"),
        tiny("seed=2", "aug=none", "optimizer.weight_decay=0.1", "aug.smooth_std=1"),
    ]


def stack_at(stack: Stack, step: int) -> Stack:
    """Return the stack with its trials moved to that step."""
    return replace(stack, steps=[step] * len(stack.configs))
