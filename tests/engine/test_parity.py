"""The official trainer's numbers: its mathematics over fifty steps, its first loss, its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stability.config.schema import Config
from stability.data.records import Dataset
from stability.data.t15_reader import open_dataset
from stability.data.t15_writer import Utterance, write_session
from stability.engine.evaluate import evaluate
from stability.engine.gradients import gradients_of
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials.checkpoint import Best, load_weights, restore, save
from tests.support.checkpoints import Compiled, read
from tests.support.configs import composed, tiny
from tests.support.reference import ReferenceDecoder, ReferenceTrainer, by_official_name, reference, smoothed
from tests.support.stacks import column, copied, stack_of

CPU = torch.device("cpu")
STEPS = 50


@pytest.mark.parametrize(
    ("precision", "optimizer", "of_loss", "of_gradient", "of_weights"),
    [
        ("fp32", "official", 1e-6, 2e-5, 2e-4),
        pytest.param("fp32", "adam_default", 1e-6, 2e-5, 2e-4, marks=pytest.mark.slow),
        pytest.param("bf16", "official", 5e-3, 0.05, 0.03, marks=pytest.mark.slow),
        pytest.param("bf16", "adam_default", 5e-3, 0.1, 0.05, marks=pytest.mark.slow),
    ],
)
def test_fifty_steps_are_those_of_the_official_mathematics(
    dataset: Dataset, precision: str, optimizer: str, of_loss: float, of_gradient: float, of_weights: float
) -> None:
    """Beside float64, with the same weights, batches, noise and dropout, five layers of GRU and all else official.

    Every loss; every gradient, at the first weights and at the last; and the weights, by how far they have moved.
    """
    sizes = ("model.layers=5", "model.units=16", "batch.size=8", "batch.days=4", "schedule.decay_steps=60")
    config = tiny(*sizes, f"precision={precision}", f"optimizer={optimizer}")
    stack = stack_of([config], dataset)
    start = by_official_name(copied(stack.parameters, 0))
    trainer = ReferenceTrainer(config, reference(copied(stack.parameters, 0), 5, torch.float64))
    assert_same_gradients(stack, dataset, tiny(*sizes, "optimizer.clip_norm=null"), of_gradient)
    losses, _ = np.array([trainer.step(dataset.train, step) for step in range(STEPS)]).T
    tables = train_steps(stack, dataset.train, STEPS)
    assert losses[-1] < 0.6 * losses[0]
    np.testing.assert_allclose(column(tables, "loss")[0], losses, rtol=of_loss)
    ours = by_official_name(copied(stack.parameters, 0))
    for name, p in trainer.model.named_parameters():
        assert (ours[name] - p).norm() <= of_weights * (p - start[name]).norm(), name
    assert_same_gradients(stack, dataset, tiny(*sizes, "optimizer.clip_norm=null"), of_gradient)


def assert_same_gradients(stack: Stack, dataset: Dataset, unclipped: Config, bound: float) -> None:
    ours = by_official_name({name: g[0] for name, g in gradients_of(stack, dataset.train).items()})
    trainer = ReferenceTrainer(unclipped, reference(copied(stack.parameters, 0), 5, torch.float64))
    trainer.step(dataset.train, stack.step)
    for name, p in trainer.model.named_parameters():
        assert p.grad is not None
        assert (ours[name] - p.grad).norm() <= bound * p.grad.norm(), name


def recordings(folder: Path, days: int, features: int, bins: int, labels: int, utterances: int = 1) -> Dataset:
    """Sessions of z-scored noise, about so many bins and labels an utterance; the last four days have no validation."""
    rng = np.random.default_rng(0)
    for day in range(days):
        for split in ("train", "val")[: 1 + (day < days - 4 or days <= 4)]:
            lengths = rng.integers(int(0.8 * bins), int(1.2 * bins), utterances).tolist()
            made_up = [
                Utterance(features=rng.normal(size=(n, features)), labels=rng.integers(1, 41, labels), number=i)
                for i, n in enumerate(lengths)
            ]
            write_session(folder / f"day.{day:02d}", split, made_up)
    return open_dataset(folder, patch_size=14, patch_stride=4, max_cut=2, index_dir=folder / "index")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_loss_is_of_the_size_of_healthy_runs(tmp_path: Path, seed: int) -> None:
    """Three public runs of the official trainer read 754 to 757 in training and 715 in validation, both at step 0."""
    data = recordings(tmp_path, days=4, features=512, bins=900, labels=30, utterances=2)
    config = composed("model=official", "batch.size=8", f"seed={seed}", "device=cpu")
    stack = stack_of([config], data)
    tables = train_steps(stack, data.train, 1)
    assert column(tables, "loss").item() == pytest.approx(754, rel=0.15)
    assert evaluate(stack, data.val)[1].item() == pytest.approx(715, rel=0.15)


@pytest.mark.parametrize(
    ("layers", "units", "features"), [(5, 8, 6), pytest.param(5, 768, 512, marks=pytest.mark.slow)]
)
def test_a_public_checkpoint_is_written_back_unchanged(tmp_path: Path, layers: int, units: int, features: int) -> None:
    """45 days, trained a little and saved as the official trainer does; loaded, validated, saved: the same bits."""
    data = recordings(tmp_path, days=45, features=features, bins=60, labels=4)
    config = tiny(f"model.layers={layers}", f"model.units={units}", "batch.days=4", "batch.size=8")
    torch.manual_seed(0)
    model = ReferenceDecoder(features, 45, layers, units)
    for name, p in model.gru.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(p) if "hh" in name else nn.init.xavier_uniform_(p)
    trainer = ReferenceTrainer(config, model)
    for step in range(2):
        trainer.step(data.train, step)
    public: dict[str, Any] = {
        "model_state_dict": Compiled(model).state_dict(),
        "optimizer_state_dict": trainer.optimizer.state_dict(),
        "scheduler_state_dict": trainer.scheduler.state_dict(),
        "val_PER": 0.5,
        "val_loss": 20.0,
    }
    torch.save(public, tmp_path / "best_checkpoint")
    stack = stack_of([config], data)
    weights = load_weights(tmp_path / "best_checkpoint", copied(stack.parameters, 0))
    stack = new_stack([config], [weights], CPU)
    assert evaluate(stack, data.val)[1].item() == pytest.approx(validation_loss(model, data), rel=1e-4)
    save(tmp_path / "ours.pt", stack, 0, Best(0.5, 20.0))
    assert_same_tensors(read(tmp_path / "ours.pt")["model_state_dict"], public["model_state_dict"])

    state = {"step": 2, "failed": 0.0, "loss_scale": 1.0, "steps_since_overflow": 0.0}
    torch.save(public | {"stability": state}, tmp_path / "best_checkpoint")  # what a resume needs beyond it
    save(tmp_path / "ours.pt", stack, 0, restore(tmp_path / "best_checkpoint", stack, 0))
    ours = read(tmp_path / "ours.pt")
    assert ours.keys() == public.keys() | {"stability"}
    assert (ours["val_PER"], ours["val_loss"]) == (0.5, 20.0)
    assert_same_tensors(ours["model_state_dict"], public["model_state_dict"])
    kept, wanted = (content["optimizer_state_dict"]["state"] for content in (ours, public))
    assert 0 < len(wanted) < len(public["model_state_dict"]), "of days that were in no batch there is none"
    assert kept.keys() == wanted.keys()
    for index, moments in wanted.items():
        assert_same_tensors(kept[index], moments)


def validation_loss(model: ReferenceDecoder, data: Dataset) -> float:
    """Of one utterance a day."""
    losses = []
    for i, record in enumerate(data.val.records):
        with torch.no_grad():
            x = smoothed(torch.from_numpy(data.val.read(i).copy())[None]).float()
            log_probs = model(x, [record.day]).log_softmax(-1).transpose(0, 1)
        labels = torch.from_numpy(np.asarray(record.labels))[None]
        lengths = torch.tensor([len(log_probs)]), torch.tensor([labels.shape[1]])
        losses.append(F.ctc_loss(log_probs, labels, *lengths, reduction="sum").item())
    return float(np.mean(losses))


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].device) == (tensor.dtype, CPU), name
        assert torch.equal(ours[name], tensor), name
