"""Stacks: a trial in a stack trains as it does alone, whatever its neighbours do."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability.config.schema import Model
from stability.data.records import Dataset
from stability.engine.decoder import Dropout, Parameters, forward
from stability.engine.packing import Packing
from stability.engine.stack import join, select
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.stacks import column, different, stack_of, trained


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 0, 1)])
def test_a_trial_in_a_stack_is_as_alone(dataset: Dataset, order: tuple[int, ...]) -> None:
    configs = different()
    _, together = trained([configs[i] for i in order], dataset, 20)
    for place, i in enumerate(order):
        _, alone = trained([configs[i]], dataset, 20)
        for name in ("loss", "grad_norm", "blank_fraction"):
            own, wanted = column(together, name)[place], column(alone, name)[0]
            np.testing.assert_allclose(own, wanted, rtol=1e-4, err_msg=f"{name} of trial {i}")


def test_trials_come_and_go_at_steps_of_their_own(dataset: Dataset) -> None:
    """The second joins at the first's step 13, the third when the first leaves; none notices."""
    a, b, c = different()[:3]
    stack = stack_of([a], dataset)
    parts = [train_steps(stack, dataset.train, 13)]
    stack = join([stack, stack_of([b], dataset)])
    parts.append(train_steps(stack, dataset.train, 4))
    assert [table.steps.tolist() for table in parts[1]] == [[13, 14, 15, 16], [0, 1, 2, 3]]
    stack = join([stack_of([c], dataset), select(stack, [1])])
    parts.append(train_steps(stack, dataset.train, 9))
    for config, tables in ((a, [tables[0] for tables in parts[:2]]), (b, [tables[1] for tables in parts[1:]])):
        own = np.concatenate([table.values for table in tables])
        _, (alone,) = trained([config], dataset, len(own))
        np.testing.assert_array_equal(np.concatenate([table.measured for table in tables]), alone.measured)
        np.testing.assert_allclose(own, alone.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["absurd rate", "poisoned weight"])
def test_an_exploding_neighbour_disturbs_nobody(dataset: Dataset, how: str) -> None:
    healthy = [tiny("seed=1"), tiny("seed=2", "aug=weak")]
    neighbour = tiny("seed=1", "schedule.lr_max=1e38" if how == "absurd rate" else "schedule.lr_max=0.005")
    stack = stack_of([healthy[0], neighbour, healthy[1]], dataset)
    if how == "poisoned weight":
        stack.parameters["out.weight"][1, 3, 3] = math.inf
    tables = train_steps(stack, dataset.train, 20)
    assert stack.failed.tolist() == [0, 1, 0]
    assert not np.isfinite(column(tables, "grad_norm")[1]).all()
    for place, config in ((0, healthy[0]), (2, healthy[1])):
        _, alone = trained([config], dataset, 20)
        np.testing.assert_allclose(column(tables, "loss")[place], column(alone, "loss")[0], rtol=1e-4)


def test_trials_of_one_seed_are_paired(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share batches, unit noise, cut and dropout; a trial of another seed has its own."""
    seen = []

    def spied(
        parameters: Parameters,
        x: Tensor,
        frames: Tensor,
        rows: Sequence[int],
        *,
        model: Model,
        dropout: Dropout,
        **_: Any,
    ) -> Tensor:
        def recorded(h: Tensor, purpose: str, p: float, packing: Packing | None) -> Tensor:
            seen.append(dropout(h, purpose, p, packing).expand(len(h), *h.shape[1:]))
            return seen[-1]

        seen.append(x)
        return forward(parameters, x, frames, rows, model, recorded)

    monkeypatch.setattr("stability.engine.predict.forward", spied)
    trained([tiny("seed=1"), tiny("seed=1", "optimizer=adam_default"), tiny("seed=2")], dataset, 1)
    assert len(seen) == 3  # features, and the masks of the input and of the one gap between layers
    for values in seen:
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stack_of_ragged_trials_trains_in_half_precision(dataset: Dataset, precision: str) -> None:
    configs = [tiny(f"seed={seed}", f"precision={precision}") for seed in (1, 2)]
    _, together = trained(configs, dataset, 4)
    for place, config in enumerate(configs):
        _, alone = trained([config], dataset, 4)
        np.testing.assert_allclose(column(together, "loss")[place], column(alone, "loss")[0], rtol=0.02)
