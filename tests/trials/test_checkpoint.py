"""Checkpoints: exchanged with the official layout in both directions, exact, atomic, and clear about what is wrong."""

import math
import os
import pickletools
from pathlib import Path
from threading import Event
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stability.config.schema import Config
from stability.core.errors import Interrupted, StabilityError
from stability.data.records import Dataset
from stability.data.t15_reader import open_dataset
from stability.data.t15_writer import Utterance, write_session
from stability.engine.decoder import init_parameters
from stability.engine.evaluate import evaluate
from stability.engine.stack import Stack
from stability.engine.step import train_steps
from stability.trials.checkpoint import Best, in_background, load_weights, restore, save
from stability.trials.requests import Validation
from tests.support.checkpoints import Compiled, read
from tests.support.configs import composed, tiny
from tests.support.reference import (
    ReferenceDecoder,
    ReferenceTrainer,
    by_official_name,
    official_optimizer,
    official_scheduler,
)
from tests.support.stacks import column, copied, stack_of, trained


@pytest.mark.parametrize("overrides", [[], ["optimizer=adam_default", "schedule.lr_max_day=0.01"]])
def test_the_official_trainer_continues_our_checkpoints(dataset: Dataset, tmp_path: Path, overrides: list[str]) -> None:
    """Weights, optimiser and scheduler load strictly, and both trainers take the same steps from there.

    After five steps there may be a day that was in no batch yet. AdamW has no state for it.
    """
    config = tiny("batch.days=2", *overrides)
    stack, _ = trained([config], dataset, 5)
    save(tmp_path / "last.pt", stack, 0, Best(0.5, 20.0))
    content = read(tmp_path / "last.pt")
    assert content["val_PER"] == 0.5
    assert content["val_loss"] == 20.0

    model = ReferenceDecoder(6, 4, layers=2, units=32)
    compiled = Compiled(model)
    trainer = ReferenceTrainer(config, model)
    compiled.load_state_dict(content["model_state_dict"], strict=True)
    trainer.optimizer.load_state_dict(content["optimizer_state_dict"])
    trainer.scheduler.load_state_dict(content["scheduler_state_dict"])
    assert trainer.scheduler.last_epoch == 5
    expected = [trainer.step(dataset.train, step)[0] for step in range(5, 12)]
    tables = train_steps(stack, dataset.train, 7)
    np.testing.assert_allclose(column(tables, "loss")[0], expected, rtol=1e-4)
    ours = by_official_name(copied(stack.parameters, 0))
    for name, p in model.named_parameters():
        assert (ours[name] - p).norm() <= 1e-4 * p.norm() + 1e-6, name


def test_the_optimizer_state_equals_that_of_pytorch(dataset: Dataset, tmp_path: Path) -> None:
    """Same groups in the same order, same settings, same state after the same steps."""
    config = tiny("batch.days=2")
    model = ReferenceDecoder(6, 4, layers=2, units=32)
    model.load_state_dict(by_official_name(init_parameters(config.model, 6, 4, 0)))
    trainer = ReferenceTrainer(config, model)
    for step in range(3):
        trainer.step(dataset.train, step)
    stack, _ = trained([config], dataset, 3)
    save(tmp_path / "last.pt", stack, 0, Best())
    content = read(tmp_path / "last.pt")
    ours, theirs = content["optimizer_state_dict"], trainer.optimizer.state_dict()
    for own, wanted in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert own.pop("group_type") in ("bias", "day_layer", "other")
        assert own.pop("lr") == pytest.approx(wanted.pop("lr"))
        assert own == wanted
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert ours["state"][index].keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(ours["state"][index][key], value, atol=1e-6, rtol=1e-3)
    scheduler, wanted_scheduler = content["scheduler_state_dict"], trainer.scheduler.state_dict()
    assert scheduler.keys() == wanted_scheduler.keys()
    assert scheduler.pop("_last_lr") == pytest.approx(wanted_scheduler.pop("_last_lr"))
    assert scheduler == wanted_scheduler


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("val_loss", [12.5, np.float64(12.5), np.float32(12.5)])
def test_public_checkpoints_load(dataset: Dataset, tmp_path: Path, prefixed: bool, val_loss: Any) -> None:
    config = tiny("seed=5")
    model = ReferenceDecoder(6, 4, layers=2, units=32)
    for weight in model.parameters():
        nn.init.normal_(weight)
    written = Compiled(model) if prefixed else model
    optimizer = official_optimizer(config, written)
    scheduler = official_scheduler(config.schedule, optimizer)
    path = tmp_path / "best_checkpoint"
    torch.save(
        {
            "model_state_dict": written.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            "val_PER": 0.1,
            "val_loss": val_loss,
        },
        path,
    )
    like = init_parameters(config.model, 6, 4, 0)
    loaded = load_weights(path, like)
    assert {n: p.shape for n, p in loaded.items()} == {n: p.shape for n, p in like.items()}
    assert list(loaded) == list(like)
    for name, p in by_official_name(loaded).items():
        assert torch.equal(p, model.state_dict()[name]), name


def tensors(stack: Stack, k: int) -> dict[str, Tensor]:
    """Return all tensors of one trial."""
    own = {f"{i}.{n}": t[k] for i, kind in enumerate((stack.parameters, *stack.moments)) for n, t in kind.items()}
    return own | {n: getattr(stack, n)[k] for n in ("failed", "loss_scale", "steps_since_overflow")}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_saving_and_restoring_is_exact(dataset: Dataset, tmp_path: Path, precision: str) -> None:
    """Each trial is restored into another place of a stack. Both stacks then have the same losses, bit for bit."""
    configs = [tiny("seed=1", f"precision={precision}"), tiny("seed=2", "aug=weak", f"precision={precision}")]
    stack, _ = trained(configs, dataset, 6)
    for k in range(2):
        save(tmp_path / f"{k}.pt", stack, k, Best(0.25 * k, 3.0))
    fresh = stack_of(configs[::-1], dataset)
    bests = [restore(tmp_path / f"{1 - k}.pt", fresh, k) for k in range(2)]
    assert bests == [Best(0.25, 3.0), Best(0.0, 3.0)]
    assert fresh.steps == [6, 6]
    for k in range(2):
        wanted = tensors(stack, k)
        for name, t in tensors(fresh, 1 - k).items():
            assert torch.equal(t, wanted[name]), name
    again = stack_of(configs, dataset)
    for k in range(2):
        restore(tmp_path / f"{k}.pt", again, k)
    for own, other in zip(*(train_steps(s, dataset.train, 4) for s in (stack, again)), strict=True):
        assert own.values.tobytes() == other.values.tobytes()
    np.testing.assert_array_equal(evaluate(stack, dataset.val), evaluate(again, dataset.val))


def test_a_failed_trial_stays_failed(dataset: Dataset, tmp_path: Path) -> None:
    stack = stack_of([tiny("seed=1"), tiny("seed=2")], dataset)
    stack.parameters["out.bias"][1, 0] = math.inf
    train_steps(stack, dataset.train, 2)
    fresh = stack_of([tiny("seed=1"), tiny("seed=2")], dataset)
    for k in range(2):
        save(tmp_path / f"{k}.pt", stack, k, Best())
        restore(tmp_path / f"{k}.pt", fresh, k)
    assert fresh.failed.tolist() == [0, 1]


def test_an_infinite_best_validation_is_restored(dataset: Dataset, tmp_path: Path) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    save(tmp_path / "last.pt", stack, 0, Best())
    assert restore(tmp_path / "last.pt", stack, 0) == Best(math.inf, math.inf)


def test_best_is_the_lowest_rate_and_then_the_lowest_loss() -> None:
    best = Best()
    assert [best.improve(Validation(*v)) for v in ((0.5, 3.0), (0.5, 2.0), (0.5, 2.5), (0.6, 1.0), (0.4, 9.0))] == [
        *(True, True, False, False, True)
    ]
    assert not best.improve(Validation(math.nan, 1.0))
    assert best == Best(0.4, 9.0, validations=6)


@pytest.mark.parametrize(
    ("overrides", "days", "features", "named"),
    [
        (["model.units=16"], 4, 6, "gru.bias_hh_l0 is (96,) and should be (48,)"),
        (["model.layers=3"], 4, 6, "gru.weight_ih_l2 is missing"),
        (["model.layers=1"], 4, 6, "gru.weight_ih_l1 is not in the model"),
        ([], 5, 6, "day_weights.4 is missing"),
        ([], 3, 6, "day_weights.3 is not in the model"),
        ([], 4, 7, "day_biases.0 is (1, 6) and should be (1, 7)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    dataset: Dataset, tmp_path: Path, overrides: list[str], days: int, features: int, named: str
) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    save(tmp_path / "last.pt", stack, 0, Best())
    like = init_parameters(tiny(*overrides).model, features, days, 0)
    with pytest.raises(StabilityError, match="checkpoint of another model") as error:
        load_weights(tmp_path / "last.pt", like)
    assert named in str(error.value)


def test_unreadable_files_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny()
    stack, _ = trained([config], dataset, 1)
    whole, broken = tmp_path / "last.pt", tmp_path / "broken.pt"
    save(whole, stack, 0, Best())
    before = copied(stack.parameters, 0)
    content = whole.read_bytes()
    for data in (content[: len(content) // 2], content[:100], b"", b"no checkpoint"):
        broken.write_bytes(data)
        with pytest.raises(StabilityError, match=r"broken\.pt cannot be read as a checkpoint"):
            restore(broken, stack, 0)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(StabilityError, match=r"pipe\.pt cannot be read as a checkpoint \(it is not a regular file\)"):
        restore(tmp_path / "pipe.pt", stack, 0)
    with pytest.raises(StabilityError, match="no checkpoint at"):
        load_weights(tmp_path / "absent.pt", before)
    for value in ([1, 2], {"state": 1}, {"model_state_dict": torch.zeros(1)}, {"model_state_dict": {"h0": 1}}):
        torch.save(value, broken)
        with pytest.raises(StabilityError, match=r"broken\.pt is not a checkpoint of a decoder"):
            load_weights(broken, before)
    assert all(torch.equal(p[0], before[n]) for n, p in stack.parameters.items())


def test_a_flipped_byte_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    path = tmp_path / "best.pt"
    save(path, stack, 0, Best())
    whole = path.read_bytes()
    with ZipFile(path) as records:
        starts = [info.header_offset + 200 for info in records.infolist() if info.file_size > 200]
    for at in starts:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StabilityError, match=r"best\.pt cannot be read as a checkpoint"):
            restore(path, stack, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_PER", "x"),
        ("val_PER", None),
        ("stability", 3),
        ("stability", {}),
        ("stability", {"step": 1.5, "failed": False, "loss_scale": 1.0, "steps_since_overflow": 0}),
        ("stability", {"step": 1, "failed": "no", "loss_scale": 1.0, "steps_since_overflow": 0}),
        ("optimizer_state_dict", None),
        ("optimizer_state_dict", {"state": {0: {"step": 1}}}),
        ("optimizer_state_dict", {"state": {0: {"step": 1, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}}),
    ],
)
def test_a_checkpoint_with_other_types_is_refused(dataset: Dataset, tmp_path: Path, name: str, value: Any) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    path = tmp_path / "best.pt"
    save(path, stack, 0, Best())
    torch.save(read(path) | {name: value}, path)
    with pytest.raises(StabilityError, match=r"best\.pt is no checkpoint of a trial, or it is damaged"):
        restore(path, stack, 0)


def test_training_cannot_be_resumed_from_a_public_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    """The message says how to start from its weights."""
    stack, _ = trained([tiny()], dataset, 1)
    save(tmp_path / "last.pt", stack, 0, Best())
    content = read(tmp_path / "last.pt")
    del content["stability"]
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(StabilityError, match="init_from"):
        restore(tmp_path / "last.pt", stack, 0)
    load_weights(tmp_path / "last.pt", copied(stack.parameters, 0))


def test_a_write_that_fails_leaves_the_old_file(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    path = tmp_path / "last.pt"
    save(path, stack, 0, Best(0.5, 1.0))
    before = path.read_bytes()

    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(path, stack, 0, Best(0.4, 1.0))
    assert path.read_bytes() == before
    monkeypatch.undo()
    save(path, stack, 0, Best(0.4, 1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert (tmp_path / "previous.pt").read_bytes() == before
    assert read(path)["val_PER"] == 0.4


def test_in_the_background_the_state_at_the_time_of_the_call_is_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the file is written, and the next file waits for it."""
    stack, _ = trained([tiny()], dataset, 3)
    save(tmp_path / "wanted.pt", stack, 0, Best(0.5, 1.0))
    trained_on, torch_save = Event(), torch.save

    def slow(content: object, file: Any) -> None:
        assert trained_on.wait(60)
        torch_save(content, file)

    monkeypatch.setattr(torch, "save", slow)
    best = Best(0.5, 1.0)
    with in_background() as save_later:
        save_later(tmp_path / "last.pt", stack, 0, best)
        train_steps(stack, dataset.train, 2)
        best.improve(Validation(0.1, 1.0))
        assert not (tmp_path / "last.pt").exists()
        trained_on.set()
        save_later(tmp_path / "best.pt", stack, 0, best)
        assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "wanted.pt").read_bytes()
    assert (read(tmp_path / "best.pt")["stability"]["step"], read(tmp_path / "best.pt")["val_PER"]) == (5, 0.1)


@pytest.mark.parametrize("then", ["saved again", "ended", "stopped"])
def test_a_write_that_fails_in_the_background_raises_its_error(dataset: Dataset, tmp_path: Path, then: str) -> None:
    stack, _ = trained([tiny()], dataset, 1)
    (tmp_path / "last.pt.part").mkdir()
    saved_again = False

    def train() -> None:
        nonlocal saved_again
        with in_background() as save_later:
            save_later(tmp_path / "last.pt", stack, 0, Best())
            if then == "saved again":
                save_later(tmp_path / "best.pt", stack, 0, Best())
                saved_again = True
            elif then == "stopped":  # the message of Interrupted would claim that the checkpoint is written
                raise Interrupted

    with pytest.raises(IsADirectoryError):
        train()
    assert not saved_again


def test_a_checkpoint_names_no_device_and_nothing_of_pytorch_but_tensors(dataset: Dataset, tmp_path: Path) -> None:
    """So it can be read on another GPU and by another version."""
    stack, _ = trained([tiny()], dataset, 1)
    save(tmp_path / "last.pt", stack, 0, Best())
    with ZipFile(tmp_path / "last.pt") as file:
        (pickled,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        written = [*pickletools.genops(file.read(pickled))]
    names = {str(argument) for operation, argument, _ in written if operation.name == "GLOBAL"}
    assert names == {"torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict"}
    assert not [argument for _, argument, _ in written if isinstance(argument, str) and "cuda" in argument]


@pytest.mark.slow
def test_the_official_model_trains_validates_and_is_kept(tmp_path: Path) -> None:
    """45 days of 512 features on the CPU: one step, one validation, one checkpoint."""
    rng = np.random.default_rng(0)
    for day in range(45):
        for split in ("train", "val")[: 2 if day < 2 else 1]:
            utterances = [Utterance(features=rng.normal(size=(40, 512)), labels=np.array([3, 17, 40]))]
            write_session(tmp_path / f"day.{day:02d}", split, utterances)
    data = open_dataset(tmp_path, patch_size=14, patch_stride=4, max_cut=2, index_dir=tmp_path / "index")
    config: Config = composed("model=official", "batch.size=4", "schedule.warmup_steps=1", "device=cpu")
    stack = stack_of([config], data)
    tables = train_steps(stack, data.train, 2)
    assert np.isfinite(column(tables, "loss")).all()
    assert np.isfinite(column(tables, "grad_norm")).all()
    assert column(tables, "lr")[0].tolist() == pytest.approx([0, 0.005])
    rates, losses = evaluate(stack, data.val)
    assert np.isfinite([rates, losses]).all()
    save(tmp_path / "last.pt", stack, 0, Best())
    names = read(tmp_path / "last.pt")["model_state_dict"]
    assert sum(p.numel() for p in names.values()) == 44_315_177
    assert len(names) == 45 * 2 + 5 * 4 + 3
    assert all(name.startswith("_orig_mod.") for name in names)
