"""The signals of a training step, against their definitions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability.config.schema import Config
from stability.data.batches import training_batch
from stability.data.records import Dataset
from stability.engine.batch import training_inputs
from stability.engine.decoder import forward, init_parameters
from stability.engine.gradients import forward_backward
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.reference import ReferenceTrainer, by_official_name, reference
from tests.support.stacks import column, copied, different, measured, stack_at, stack_of, trained


def test_signals_of_the_output(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    stack, _ = trained([config], dataset, 6)
    stack.parameters["out.weight"].normal_(std=5, generator=torch.Generator().manual_seed(0))
    stack.parameters["out.bias"][:, 0] += 5  # so that it says a mixture of blank and phonemes
    logits = []

    def spied(*args: Any, **settings: Any) -> Tensor:
        logits.append(forward(*args, **settings))
        return logits[-1]

    monkeypatch.setattr("stability.engine.predict.forward", spied)
    tables = train_steps(stack, dataset.train, 1)
    batch = training_batch(dataset.train, 6, 3, seed=config.seed, step=6)
    cut = training_inputs(stack_at(stack, 6), dataset.train).bins[0] - batch.features.shape[1]
    spoken = []
    for row, n in enumerate(batch.bins.tolist()):
        frames = math.floor((n + cut - 14) / 4 + 1)
        spoken += logits[0][0, :frames, row].argmax(-1).tolist()
    assert column(tables, "blank_fraction")[0, 0] == pytest.approx(spoken.count(0) / len(spoken))
    assert column(tables, "distinct_phonemes")[0, 0] == len(set(spoken) - {0})
    assert 0 in spoken
    assert len(set(spoken)) > 2


def test_loss_per_label(dataset: Dataset) -> None:
    by_sum, by_label = (trained([tiny(f"loss={n}")], dataset, 1)[1] for n in ("per_utterance_sum", "per_label_mean"))
    assert column(by_label, "loss") == column(by_label, "loss_per_label")
    assert column(by_sum, "loss_per_label") == column(by_label, "loss")


def test_signals_of_the_gradient(dataset: Dataset) -> None:
    """The parts, against the reference's gradients, and adding up in squares to the whole."""
    config = tiny("optimizer.clip_norm=12")
    _, tables = trained([config], dataset, 8)
    trainer = ReferenceTrainer(config, reference(init_parameters(config.model, 6, 4, 0), 2, torch.float64))
    trainer.config = tiny("optimizer.clip_norm=null")
    trainer.step(dataset.train, 0)
    squares: dict[str, float] = {}
    for name, p in trainer.model.named_parameters():
        part = "gru." + name[-1] if name.startswith("gru") else {"day": "day", "out": "head"}.get(name[:3], "h0")
        squares[part] = squares.get(part, 0.0) + (0.0 if p.grad is None else float(p.grad.square().sum()))
    assert sorted(squares) == ["day", "gru.0", "gru.1", "h0", "head"]
    for part, square in squares.items():
        assert column(tables, f"grad_norm.{part}")[0, 0] == pytest.approx(math.sqrt(square), rel=1e-4)
    whole = sum(column(tables, f"grad_norm.{part}").astype(np.float64) ** 2 for part in squares)
    np.testing.assert_allclose(column(tables, "grad_norm"), np.sqrt(whole), rtol=1e-6)
    norms = column(tables, "grad_norm")
    np.testing.assert_array_equal(column(tables, "clipped"), norms > 12)
    assert 0 < column(tables, "clipped").mean() < 1


def test_signals_of_the_update(dataset: Dataset) -> None:
    """On steps 0, 10, 20 …: the norms of actual weights before and after, and an exact count of second moments.

    The tiny model has 3,000 parameters, so few that the sample of the second moments is all of them.
    """
    config = tiny("optimizer.epsilon=0.02", "schedule.lr_max=0.02")
    stack, tables = trained([config], dataset, 10)
    assert measured(tables, "update_ratio") == [[True] + [False] * 9]
    assert column(tables, "update_ratio")[0, 0] == 0  # at rate 0
    before = copied(stack.parameters, 0)
    tables = train_steps(stack, dataset.train, 1)
    old, new = (torch.cat([p.double().flatten() for p in ps.values()]) for ps in (before, copied(stack.parameters, 0)))
    assert column(tables, "update_ratio")[0, 0] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)

    roots = []
    for name, second in stack.moments.second.items():
        steps = stack.moments.steps[name][0].double()
        corrected = second[0].double() / (1 - 0.999 ** steps.clamp(min=1)).reshape(-1, *[1] * (second.ndim - 2))
        roots.append(corrected.sqrt().flatten())
    root = torch.cat(roots)
    share = (root < 0.02).double().mean().item()
    assert 0.05 < share < 0.95
    assert column(tables, "epsilon_dominance")[0, 0] == pytest.approx(share, abs=1e-3)
    rate = column(tables, "lr")[0, 0]
    assert rate == pytest.approx(trainer_rate(config, 10), rel=1e-6)
    median = root.sort().values[(len(root) - 1) // 2].item()
    assert column(tables, "effective_lr")[0, 0] == pytest.approx(rate / (median + 0.02), rel=1e-3)


def test_applied_norm_is_that_of_the_clipped_gradient(dataset: Dataset) -> None:
    configs = [tiny("optimizer.clip_norm=12"), tiny("optimizer.clip_norm=null", "seed=1")]
    stack = stack_of(configs, dataset)
    trainers = [
        ReferenceTrainer(c, reference(copied(stack.parameters, k), 2, torch.float64)) for k, c in enumerate(configs)
    ]
    tables = train_steps(stack, dataset.train, 8)
    for k, trainer in enumerate(trainers):
        applied = []
        for step in range(8):
            trainer.step(dataset.train, step)
            applied.append(trainer.gradient_norm())
        np.testing.assert_allclose(column(tables, "applied_norm")[k], applied, rtol=1e-4)
    assert np.all(measured(tables, "applied_norm"))
    assert 0 < column(tables, "clipped")[0].mean() < 1


def test_the_applied_norm_of_a_skipped_step_is_0(dataset: Dataset) -> None:
    """One trial fails; in fp16 one overflows and goes on at a smaller scale."""
    stack = stack_of([tiny("seed=1"), tiny("seed=2")], dataset)
    stack.parameters["out.bias"][1, 0] = math.nan
    assert [n > 0 for n in column(train_steps(stack, dataset.train, 1), "applied_norm")[:, 0]] == [True, False]
    stack = stack_of([tiny("precision=fp16", f"precision.initial_loss_scale={2.0**40}")], dataset)
    tables = train_steps(stack, dataset.train, 40)
    applied, norm = column(tables, "applied_norm")[0], column(tables, "grad_norm")[0]
    assert applied[0] == 0
    np.testing.assert_array_equal(applied > 0, np.isfinite(norm))


def test_signals_of_the_weights(dataset: Dataset) -> None:
    """The norm before the update, whose size `update_ratio` gives in it; every 10th step."""
    stack, _ = trained([tiny("schedule.lr_max=0.02"), tiny("seed=1")], dataset, 10)
    before = [by_official_name(copied(stack.parameters, k)) for k in range(2)]
    tables = train_steps(stack, dataset.train, 2)
    assert measured(tables, "weight_norm") == [[True, False]] * 2
    for k, weights in enumerate(before):
        whole = torch.cat([p.double().flatten() for p in weights.values()]).norm()
        assert column(tables, "weight_norm")[k, 0] == pytest.approx(float(whole), rel=1e-5)


def test_input_max_is_of_what_the_model_reads(dataset: Dataset) -> None:
    """Noise and smoothing included; each trial its own, whatever its neighbours' length."""
    configs = different()[:3]  # the reference knows the official kernel only, and the last has another
    _, tables = trained(configs, dataset, 3)
    for k, config in enumerate(configs):
        trainer = ReferenceTrainer(config, reference(init_parameters(config.model, 6, 4, 0), 2, torch.float64))
        for step in range(3):
            x, _ = trainer._augmented(training_batch(dataset.train, 6, 3, seed=config.seed, step=step), step)
            assert column(tables, "input_max")[k, step] == pytest.approx(x.abs().max().item(), rel=1e-5)
    assert np.all(measured(tables, "input_max"))
    _, tables = trained([tiny(), tiny("aug.white_noise_std=inf")], dataset, 1)
    assert np.isfinite(column(tables, "input_max")).tolist() == [[True], [False]]


def test_infeasible_targets_are_counted(dataset: Dataset) -> None:
    """A decoder with patches too far apart for some utterances: those whose likelihood is 0, whatever it says."""
    config = tiny("model.patch_stride=12", "seed=3")
    stack = stack_of([config, tiny("model.patch_stride=12", "seed=4")], dataset)
    seen = [forward_backward(stack_at(stack, step), dataset.train) for step in range(4)]
    infinite = torch.stack([s.nll.isinf().sum(1) for s in seen], 1)
    assert 0 < infinite.sum() < 4 * 2 * 6
    tables = train_steps(stack, dataset.train, 4)
    np.testing.assert_array_equal(column(tables, "infeasible_targets"), infinite)
    assert not column(trained([tiny()], dataset, 4)[1], "infeasible_targets").any()


def test_the_utterances_that_are_trained_on_are_counted(dataset: Dataset) -> None:
    _, tables = trained([tiny(), tiny("seed=1")], dataset, 11)
    counts = column(tables, "different_utterances")
    assert counts[:, [0, 10]].tolist() == [[min(1000, len(dataset.train.records))] * 2] * 2
    assert np.isnan(counts[:, 1:10]).all()


def trainer_rate(config: Config, step: int) -> float:
    s = config.schedule
    share = (step - s.warmup_steps) / (s.decay_steps - s.warmup_steps)
    return s.lr_min + (s.lr_max - s.lr_min) * (1 + math.cos(math.pi * share)) / 2


def test_epsilon_dominance_is_sampled_evenly(dataset: Dataset) -> None:
    """With 200,000 parameters a sample is looked at: within 2 points of the exact share."""
    config = tiny("model.units=128", "optimizer.epsilon=0.003")
    stack, tables = trained([config], dataset, 1)
    roots = torch.cat([(s[0] / 0.001).sqrt().flatten() for s in stack.moments.second.values()])
    assert len(roots) > 150_000
    share = (roots < 0.003).double().mean().item()
    assert 0.1 < share < 0.9
    assert column(tables, "epsilon_dominance")[0, 0] == pytest.approx(share, abs=0.02)
