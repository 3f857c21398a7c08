"""The kernels in C beside PyTorch's operations, and how they are compiled."""

import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil
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


@pytest.fixture
def quick(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and what is compiled is not optimised."""
    monkeypatch.setattr(compiler, "_FLAGS", [*compiler._FLAGS, "-O0"])
    return fresh


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


def test_is_compiled_once(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    (made,) = quick.iterdir()
    compiler.compiled.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    assert [*quick.iterdir()] == [made]


def _cut(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def _flip(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 3] ^= 1
    library.write_bytes(content)


def _empty(library: Path) -> None:
    library.write_bytes(b"")


def _open_to_all(library: Path) -> None:
    library.chmod(0o777)


def _replace_by_a_pipe(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def test_a_library_that_is_not_as_it_was_compiled_is_compiled_again(
    quick: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    (library,) = quick.iterdir()
    whole = library.read_bytes()
    library.rename(quick / "in use")  # to change this file would change code that runs here
    for spoil in (_cut, _flip, _empty, _open_to_all, _replace_by_a_pipe):
        library.write_bytes(whole)
        spoil(library)
        compiler.compiled.cache_clear()
        with monkeypatch.context() as without_compiler:
            without_compiler.setenv("CC", "false")
            assert not gru_cpu.applies(torch.zeros(1), UNITS), f"{spoil.__name__}: it is used"
    compiler.compiled.cache_clear()
    caplog.clear()
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    assert (library.read_bytes(), library.stat().st_mode & 0o777) == (whole, 0o700)
    assert not caplog.messages


def test_nobody_else_may_put_a_library_there(quick: Path) -> None:
    quick.mkdir()
    quick.chmod(0o777)
    assert gru_cpu.applies(torch.zeros(1), UNITS)
    assert quick.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh.mkdir()
    os.chown(fresh, 12345, -1)
    assert not gru_cpu.applies(torch.zeros(1), UNITS)
    assert f"{fresh} belongs to another user: name a folder of your own in XDG_CACHE_HOME" in caplog.text


def test_a_compiler_that_hangs_is_ended_with_all_its_processes(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(compiler, "_PATIENCE", 0.5)
    assert not gru_cpu.applies(torch.zeros(1), UNITS)
    assert "timed out after 0.5 seconds" in caplog.text
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert not [*fresh.iterdir()]


@pytest.mark.parametrize(
    ("compiler", "reason"), [("no-such-compiler", "no-such-compiler"), ("false", "exit status 1"), ("touch", "touch")]
)
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
