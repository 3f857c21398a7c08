"""The engines of the GRU layers: which one a device has, and that both compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stability.core.device import DTYPES, Precision
from stability.engine import engines
from stability.engine.engines import choose_engine, faster_engine, seconds
from stability.engine.recurrent import Engine, GruWeights, gru_layer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COUNTS = [3, 3, 2, 1]


@pytest.mark.parametrize(
    ("loop", "library", "stack", "engine"),
    [
        (1.0, 1.0, 4.0, "loop"),
        (1.2, 1.0, 9.0, "loop"),  # one trial is served
        (2.0, 1.0, 4.0, "loop"),  # a stack is served: a trial has one engine, alone and in a stack
        (1.3, 1.0, 4.1, "library"),
    ],
)
def test_the_engine_serves_one_trial_or_a_stack(loop: float, library: float, stack: float, engine: Engine) -> None:
    assert faster_engine(loop, library, stack) == engine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A GPU on which PyTorch's GRU is faster, without earlier measurements. Returns what is measured."""
    measured: list[tuple[Any, ...]] = []

    def times(engine: Engine, trials: int, *rest: Any) -> float:
        measured.append((engine, trials, *rest))
        return 1.0 if engine == "library" else 2.0 * trials

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(engines, "seconds", times)
    return measured


def choose_again(precision: Precision = "bf16", units: int = 768) -> Engine:
    """Choose as a new process does."""
    choose_engine.cache_clear()
    try:
        return choose_engine(GPU, precision, units)
    finally:
        choose_engine.cache_clear()


def test_a_device_is_measured_once_and_remembered(gpu: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert choose_again() == "library"
    rest = (GPU, "bf16", 768)
    assert gpu == [("loop", 1, *rest), ("library", 1, *rest), ("loop", 4, *rest)]
    assert choose_again() == "library"
    assert len(gpu) == 3
    choose_again("fp16")
    choose_again(units=512)
    assert len(gpu) == 9, "of other sizes nothing is known"
    known = json.loads((tmp_path / "stability/measured.json").read_text())
    assert len(known) == 3
    assert set(known.values()) == {"library"}


@pytest.mark.parametrize("content", ["", "[]", "[1]", "3", "{", '{"engine": 3}'])
def test_a_damaged_memory_is_measured_again(content: str, gpu: list[tuple[Any, ...]], tmp_path: Path) -> None:
    (tmp_path / "stability").mkdir()
    (tmp_path / "stability/measured.json").write_text(content)
    assert choose_again() == choose_again() == "library"
    assert len(gpu) == 3


def test_without_a_place_for_the_memory_each_process_measures(gpu: list[tuple[Any, ...]], tmp_path: Path) -> None:
    (tmp_path / "stability").write_text("a file where the folder should be")
    assert choose_again() == choose_again() == "library"
    assert len(gpu) == 6


def test_a_cpu_has_the_loop() -> None:
    assert choose_engine(CPU, "fp32", 128) == "loop"


@pytest.mark.parametrize("engine", ["loop", "library"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_time_of_an_engine_is_measured_where_gradients_are_off(engine: Engine, precision: Precision) -> None:
    with torch.no_grad():
        assert 0 < seconds(engine, 2, CPU, precision, 32) < 60


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_both_engines_compute_the_same(precision: Precision, tolerance: float) -> None:
    k, h = 3, 32
    shapes = [(k, sum(COUNTS), 5), (k, COUNTS[0], h), (k, 3 * h, 5), (k, 3 * h, h), (k, 3 * h), (k, 3 * h)]
    generator = torch.Generator().manual_seed(0)
    operands = [(torch.randn(shape, generator=generator) / 4).requires_grad_() for shape in shapes]

    def results(engine: Engine, dtype: torch.dtype) -> list[torch.Tensor]:
        x, h0, *weights = given = [v.detach().to(dtype).requires_grad_() for v in operands]
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32" and dtype == torch.float32):
            states = gru_layer(x, h0, GruWeights(*weights), COUNTS, engine)
        assert states.dtype == (DTYPES[precision] if dtype == torch.float32 else dtype)
        return [states, *torch.autograd.grad(states.double().square().sum(), given)]

    exact = results("loop", torch.float64)
    for engine in ("loop", "library"):
        for own, other in zip(results(engine, torch.float32), exact, strict=True):
            assert (own.double() - other).abs().max() <= tolerance * other.abs().max()
