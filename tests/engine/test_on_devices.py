"""Steps and validations on every device there is: on a GPU these are the tests of `make test-gpu`.

Noise and dropout are drawn on the device, and another kind of device draws other numbers. So they are off where devices
are compared.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stability.config.schema import Config, Synthetic
from stability.data import synthetic
from stability.data.placement import HostRows, place
from stability.data.records import Dataset, Split
from stability.data.t15_reader import open_dataset
from stability.diagnosis.table import Table
from stability.engine import engines
from stability.engine.engines import choose_engine
from stability.engine.evaluate import evaluate
from stability.engine.memory import prepare_process
from stability.engine.recurrent import Engine
from stability.engine.stack import Stack
from stability.engine.step import _train_step, train_steps
from stability.trials.capacity import in_micro_batches
from tests.support.configs import composed, tiny
from tests.support.devices import DEVICES, memory_limit, no_waits
from tests.support.stacks import column, stack_of

CPU = torch.device("cpu")
NO_NOISE = ("aug=none", "model.input_dropout=0", "model.rnn_dropout=0")
every_device = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.type)
every_engine = pytest.mark.parametrize("engine", ["loop", "library"])


def trials(k: int, *overrides: str) -> list[Config]:
    return [tiny(f"seed={seed}", *overrides) for seed in range(k)]


def placed(dataset: Dataset, device: torch.device, outputs: Path) -> Dataset:
    """The data where training on the device has them. Both devices round them to float16, as a GPU does."""
    halved = replace(dataset, train=rounded(dataset.train), val=rounded(dataset.val))
    return place(halved, device, outputs)


def rounded(split: Split) -> Split:
    """The split with its features rounded to float16."""
    values = np.concatenate([split.read(i) for i in range(len(split.records))])
    return replace(split, rows=Copied(values.astype(np.float16).astype(np.float32), split))


class Copied(HostRows):
    """Features that may be written to, as those from a file."""

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`."""
        return super().read(i).copy()


def stack_on(device: torch.device, engine: Engine, configs: list[Config], dataset: Dataset) -> Stack:
    prepare_process()
    stack = stack_of(configs, dataset, device)
    stack.engine = engine
    return stack


def losses(tables: list[Table]) -> np.ndarray:
    return column(tables, "loss")


@every_device
@every_engine
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.02)])
def test_steps_are_those_of_the_cpu_in_float32(
    device: torch.device,
    engine: Engine,
    k: int,
    precision: str,
    tolerance: float,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    there, here = placed(dataset, device, tmp_path), placed(dataset, CPU, tmp_path)
    wanted = losses(train_steps(stack_on(CPU, "loop", trials(k, *NO_NOISE, "precision=fp32"), here), here.train, 4))
    # A small loss scale, so that no gradient overflows in fp16 and no step is left out.
    overrides = (*NO_NOISE, f"precision={precision}", "precision.initial_loss_scale=64")
    stack = stack_on(device, engine, trials(k, *overrides), there)
    tables = train_steps(stack, there.train, 4)
    assert {p.dtype for p in stack.parameters.values()} == {torch.float32}
    assert not stack.failed.any()
    np.testing.assert_allclose(losses(tables), wanted, rtol=tolerance)
    if k > 1:  # and of the same trial alone
        alone = stack_on(device, engine, trials(1, *overrides), there)
        np.testing.assert_allclose(losses(train_steps(alone, there.train, 4))[0], losses(tables)[0], rtol=tolerance)


@every_device
@every_engine
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_a_validation_is_that_of_the_cpu_in_float32(
    device: torch.device, engine: Engine, precision: str, tolerance: float, dataset: Dataset, tmp_path: Path
) -> None:
    there, here = placed(dataset, device, tmp_path), placed(dataset, CPU, tmp_path)
    configs = trials(2, *NO_NOISE, f"precision={precision}")
    _, wanted = evaluate(stack_on(CPU, "loop", trials(2, *NO_NOISE, "precision=fp32"), here), here.val)
    rates, own = evaluate(stack_on(device, engine, configs, there), there.val)
    np.testing.assert_allclose(own, wanted, rtol=tolerance)
    assert (rates >= 0).all()
    (_, alone) = evaluate(stack_on(device, engine, configs[:1], there), there.val)
    np.testing.assert_allclose(alone[0], own[0], rtol=tolerance)


@every_device
@every_engine
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_host_never_waits_in_a_step(
    device: torch.device, engine: Engine, precision: str, k: int, dataset: Dataset, tmp_path: Path
) -> None:
    """In a step with all signals and in one without the expensive ones. Before, the kernels are compiled."""
    data = placed(dataset, device, tmp_path)
    stack = stack_on(device, engine, trials(k, f"precision={precision}"), data)
    train_steps(stack, data.train, 1)
    stack.steps = [0] * k
    with no_waits(device):
        for _ in range(2):
            signals = _train_step(stack, data.train)
    assert {v.device.type for v in signals.values()} == {device.type}


@every_device
@pytest.mark.parametrize("k", [1, 4])
def test_thirty_steps_of_the_official_model_never_wait(device: torch.device, k: int, tmp_path: Path) -> None:
    """On a CPU, which has nothing to wait for, three steps of a small one."""
    if device.type == "cuda":
        model, features, steps = ("model=official", "batch.size=64", "batch.days=4", "precision=bf16"), 512, 30
    else:
        model, features, steps = ("model.layers=5", "model.units=32", "batch.size=6", "precision=bf16"), 16, 3
    settings = Synthetic(
        seed=0, days=4, features=features, train_utterances=16, val_utterances=2, words=6, noise=0.5, drift=0.3
    )
    folder = synthetic.make_dataset(settings, tmp_path)
    opened = open_dataset(folder, patch_size=14, patch_stride=4, max_cut=2, index_dir=tmp_path / "index")
    data = place(opened, device, tmp_path)
    prepare_process()
    stack = stack_of([composed(*model, f"seed={seed}") for seed in range(k)], data, device)
    train_steps(stack, data.train, 1)
    with no_waits(device):
        rows = [_train_step(stack, data.train) for _ in range(steps)]
    assert torch.stack([row["loss"] for row in rows]).isfinite().all()
    assert not stack.failed.any()


@every_device
@every_engine
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_steps_have_the_same_bits(
    device: torch.device, engine: Engine, precision: str, dataset: Dataset, tmp_path: Path
) -> None:
    data = placed(dataset, device, tmp_path)
    stacks = [stack_on(device, engine, trials(2, f"precision={precision}"), data) for _ in range(2)]
    first, second = (train_steps(stack, data.train, 5) for stack in stacks)
    if engine == "library" and device.type == "cuda":  # cuDNN does not promise it
        np.testing.assert_allclose(losses(first), losses(second), rtol=1e-2)
        return
    for own, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(own.values, other.values)
    for name, p in stacks[0].parameters.items():
        assert torch.equal(p, stacks[1].parameters[name]), name


@every_device
def test_a_batch_that_the_memory_does_not_hold_is_computed_in_parts(device: torch.device, tmp_path: Path) -> None:
    settings = Synthetic(
        seed=0, days=2, features=256, train_utterances=16, val_utterances=2, words=2, noise=0.5, drift=0.3
    )
    folder = synthetic.make_dataset(settings, tmp_path)
    data = open_dataset(folder, patch_size=14, patch_stride=4, max_cut=2, index_dir=tmp_path / "index")
    config = tiny("batch.size=96", "batch.days=2", "model.units=256", *NO_NOISE, "precision=fp32")

    def steps(stack: Stack) -> np.ndarray:
        return losses([in_micro_batches(stack, lambda: train_steps(stack, data.train, 2))[0]])

    peaks = []
    for parts in (1, 4):
        stack = stack_on(device, "loop", [config], data)
        stack.micro_batches = parts
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        wanted = steps(stack)
        peaks.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
        del stack
    stack = stack_on(device, "loop", [config], data)
    with memory_limit(device, sum(peaks) // 2):
        np.testing.assert_allclose(steps(stack), wanted, rtol=1e-4)
    assert (stack.micro_batches > 1) == (device.type == "cuda")


@every_device
def test_the_engine_of_a_device_is_measured(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choose_engine.cache_clear()
    engine = choose_engine(device, "fp32", 64)
    choose_engine.cache_clear()
    monkeypatch.setattr(engines, "seconds", None)  # it is remembered
    assert choose_engine(device, "fp32", 64) == engine
    choose_engine.cache_clear()
    assert (tmp_path / "stability/measured.json").exists() == (device.type == "cuda")


@every_device
def test_the_settings_that_cuda_reads_when_it_starts(device: torch.device) -> None:
    code = (
        "import os, sys, torch\n"
        "from stability.engine.memory import prepare_process\n"
        "prepare_process()\n"
        "assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'\n"
        "assert torch.backends.cudnn.deterministic\n"
        "own = {os.environ.get(name) for name in ('PYTORCH_ALLOC_CONF', 'PYTORCH_CUDA_ALLOC_CONF')}\n"
        "assert own == {None, 'expandable_segments:True'}\n"
        "if sys.argv[1] == 'cuda':\n"
        "    kept = torch.ones(1 << 20, device='cuda')\n"
        "    assert any(segment['is_expandable'] for segment in torch.cuda.memory_snapshot())\n"
    )
    command = [sys.executable, "-W", "error:PYTORCH", "-c", code, device.type]  # the old name brings a warning
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
