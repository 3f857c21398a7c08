"""The kernels in C beside PyTorch's operations, and how they are compiled."""

import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stability.engine.kernels import compiler, ctc_cpu, gru_cpu
from tests.support.ctc_kernels import assert_agrees_with_float64
from tests.support.frame_loops import BY_PYTORCH, forward_and_back, operands

KERNELS = (gru_cpu.forward, gru_cpu.backward)
COUNTS, UNITS = [13, 13, 12, 9, 8, 8, 3, 1], 64
PROCESSORS = ["native", "haswell", "x86-64"] if platform.machine() == "x86_64" else ["native"]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing compiled yet, and where what is compiled goes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.compiled.cache_clear()
    yield tmp_path / "stability"
    compiler.compiled.cache_clear()


@pytest.mark.parametrize("processor", PROCESSORS)
def test_registers_of_every_width_agree_with_pytorch(
    processor: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_FLAGS", [*compiler._FLAGS, f"-march={processor}", "-Wall", "-Wextra", "-Werror"])
    given = operands(3, COUNTS, UNITS)
    assert gru_cpu.applies(given[0], UNITS)
    results = (forward_and_back(loops, given, COUNTS) for loops in (KERNELS, BY_PYTORCH))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_agrees_with_float64(ctc_cpu)


def test_gates_far_out_saturate_and_nan_stays_in_its_row() -> None:
    gates, *rest = operands(1, COUNTS, UNITS)
    gates[0, 0, UNITS:] = torch.tensor([-torch.inf, -1e30, -100, 0, 1e-30, 100, 1e30, torch.inf]).repeat(3 * UNITS // 8)
    gates[0, 1] = torch.nan
    ours, theirs = (forward_and_back(loops, [gates, *rest], COUNTS) for loops in (KERNELS, BY_PYTORCH))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert ours[0][0, :2].isnan().any(1).tolist() == [False, True]
    assert not ours[0][0, 2 : COUNTS[0]].isnan().any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_trial_is_bit_for_bit_the_same_in_any_stack(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together = operands(4, COUNTS, UNITS)
    whole = forward_and_back(KERNELS, together, COUNTS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for a, b in zip(forward_and_back(KERNELS, [v[2:3] for v in together], COUNTS), whole, strict=True):
        assert torch.equal(a[0], b[2])


def test_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    (made,) = fresh.iterdir()
    compiler.compiled.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    assert [*fresh.iterdir()] == [made]


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "no-such-compiler"), ("false", "exit status 1")])
def test_without_a_compiler_pytorch_replaces_the_kernels_with_one_warning(
    compiler: str, reason: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING):
        assert not gru_cpu.applies(torch.zeros(1), UNITS)
        assert not gru_cpu.applies(torch.zeros(1), UNITS)
    (message,) = caplog.messages
    assert "Install a C compiler" in message
    assert reason in message
    assert not [*fresh.glob("*")]


def test_other_dtypes_and_sizes_are_left_to_pytorch() -> None:
    assert not gru_cpu.applies(torch.zeros(1, dtype=torch.float64), UNITS)
    assert not gru_cpu.applies(torch.zeros(1, dtype=torch.bfloat16), UNITS)
    assert not gru_cpu.applies(torch.zeros(1), 50)
