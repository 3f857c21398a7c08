"""The Triton kernels beside PyTorch's operations, on a GPU; where there is none, Triton interprets them on the CPU."""

import logging
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stability.data.records import Dataset
from stability.engine import loss, patches, recurrent
from stability.engine.kernels import ctc_cpu, measured, selftest
from stability.engine.packing import pack
from stability.engine.step import train_steps
from tests.support.configs import tiny
from tests.support.frame_loops import BY_PYTORCH, forward_and_back, operands
from tests.support.stacks import stack_of

pytest.importorskip("triton")

import triton.language as tl

from stability.engine.kernels import ctc_gpu, gru_gpu, gru_layer_gpu, patches_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning:triton"),  # NumPy's, of infinities
]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = (gru_gpu.forward, gru_gpu.backward)
EARLY = tuple(v._replace(launches="early") for v in gru_gpu.VARIANTS)


def loops_of(variant: gru_gpu.Variant) -> Any:
    module = gru_layer_gpu if variant.launches == "layer" else gru_gpu
    return partial(module.forward, variant=variant), partial(module.backward, variant=variant)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5 if DEVICE.type == "cuda" else 1e-6),
        (torch.float16, 2e-3),
        # The interpreter's product in bfloat16 is not one.
        pytest.param(torch.bfloat16, 2e-2, marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")),
    ],
)
@pytest.mark.parametrize(("k", "units", "counts"), [(1, 64, [1]), (2, 96, [21, 21, 20, 13, 2]), (1, 64, [70, 3])])
@pytest.mark.parametrize("variant", [*gru_gpu.VARIANTS, *EARLY, gru_gpu.LAYER], ids=str)
def test_gru_agrees_with_a_float64_loop(
    variant: gru_gpu.Variant, counts: list[int], k: int, units: int, dtype: torch.dtype, tolerance: float
) -> None:
    if variant not in gru_gpu.variants(DEVICE, dtype, units):
        pytest.skip("no variant for so many units, or for this device")
    given = [v.to(DEVICE, dtype) for v in operands(k, counts, units)]
    ours = forward_and_back(loops_of(variant), given, counts)
    wanted = forward_and_back(BY_PYTORCH, [v.double() for v in given], counts)
    for own, other in zip(ours, wanted, strict=True):
        assert own.dtype == dtype
        assert (own.double() - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("counts", [[1], [5, 5, 2], [70, 40, 3], [130, 129, 64, 1]])
def test_one_launch_a_layer_has_the_bits_of_one_a_frame(
    counts: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of a stack, and for several blocks of rows. Interpreted, a layer has one program for each of them."""
    dtype, units = (torch.bfloat16, 768) if DEVICE.type == "cuda" else (torch.float16, 64)
    variant = gru_gpu.LAYER if DEVICE.type == "cuda" else gru_gpu.Variant(64, 8, "layer")
    monkeypatch.setattr(gru_layer_gpu, "_trials_at_once", lambda *_: at_once)
    monkeypatch.setattr(gru_gpu, "forward", None if DEVICE.type == "cpu" else gru_gpu.forward)
    given = [v.to(DEVICE, dtype) for v in operands(3, counts, units)]
    ours = forward_and_back(loops_of(variant), given, counts)
    monkeypatch.undo()
    wanted = forward_and_back(loops_of(variant._replace(launches="frame")), given, counts)
    for own, other in zip(ours, wanted, strict=True):
        assert torch.equal(own, other)


def test_a_layer_that_does_not_fit_is_launched_frame_by_frame() -> None:
    """Here its two programs would wait for each other for ever."""
    counts = [3, 2]
    given = [v.to(DEVICE, torch.float16) for v in operands(1, counts, 64)]
    if DEVICE.type == "cuda":
        counts = [64 * torch.cuda.get_device_properties(DEVICE).multi_processor_count] * 2
        given = [v.to(DEVICE, torch.float16) for v in operands(1, counts, 64)]
    assert not gru_layer_gpu._trials_at_once(DEVICE, counts[0], 64, gru_gpu.LAYER)
    ours = forward_and_back(loops_of(gru_gpu.LAYER), given, counts)
    wanted = forward_and_back(loops_of(gru_gpu.LAYER._replace(launches="frame")), given, counts)
    assert all(map(torch.equal, ours, wanted))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there all programs run at the same time")
def test_programs_that_wait_in_vain_end_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, the first of two programs waits for the second, which begins after it."""
    monkeypatch.setattr(gru_layer_gpu, "_trials_at_once", lambda *_: 1)
    monkeypatch.setattr(gru_layer_gpu, "_PATIENCE", tl.constexpr(3))
    given = [v.half() for v in operands(1, [3, 2], 64)]
    states, _, d_gates, d_h0 = forward_and_back(loops_of(gru_gpu.LAYER), given, [3, 2])
    assert states[:, 3:].isnan().all()
    assert d_gates[:, :3].isnan().all()
    assert d_h0.isnan().all()


# Bins, features, size and stride of a patch.
PATCHES = [(41, 150, 14, 4), (14, 3, 14, 4), (33, 5, 5, 2), (9, 2, 2, 3), (8, 3, 3, 3)]


def patch_operands(bins: int, features: int, size: int, stride: int, dtype: torch.dtype) -> list[Any]:
    """For two trials of three rows: the arguments of `to_patches` without dropout, and the gradient of the patches."""
    longest = (bins - size) // stride + 1
    packing = pack(torch.tensor([[longest, 1, longest], [max(1, longest - 1), longest, 1]]))
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, bins, features), (2, 2, 1, features), (2, packing.row.shape[1], size * features)]
    products, biases, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    products[0, 0, 0, 0], products[1, 2, 0, 1] = 0, 1e4
    leaves = [products.to(DEVICE, dtype).requires_grad_(), biases.to(DEVICE).requires_grad_()]
    return [*leaves, (2, 1), None, 1.25, packing, size, stride, grad.to(DEVICE, dtype)]


def patches_and_gradients(make: Any, given: list[Any]) -> tuple[torch.Tensor, ...]:
    *arguments, grad = given
    made = make(*arguments)
    return made.detach(), *torch.autograd.grad(made, arguments[:2], grad)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        # The interpreter rounds to bfloat16 in another way.
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")),
    ],
)
@pytest.mark.parametrize("masks", [0, 1, 2])
@pytest.mark.parametrize("shape", PATCHES)
def test_patches_have_the_bits_of_pytorchs_operations(
    shape: tuple[int, int, int, int], masks: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back; but the sums of the biases' gradients have another order."""
    given = patch_operands(*shape, dtype)
    if masks:
        drawn = torch.rand(masks, *given[0].shape[1:], generator=torch.Generator().manual_seed(1))
        given[3] = (drawn >= 0.2).to(DEVICE)
    monkeypatch.setattr(patches, "_fold_by_frame", patches._fold_by_part)  # a CPU adds in another order
    made, d_products, d_biases = patches_and_gradients(patches_gpu.to_patches, given)
    wanted, d_products_wanted, d_biases_wanted = patches_and_gradients(patches._by_pytorch, given)
    assert made.dtype == d_products.dtype == dtype
    assert torch.equal(made, wanted)
    assert torch.equal(d_products, d_products_wanted)
    assert (d_biases - d_biases_wanted).abs().max() <= 1e-6 * d_biases_wanted.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", PATCHES)
def test_patches_agree_with_unfold_in_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    given = patch_operands(*shape, dtype)
    given[3] = (torch.rand(given[0].shape, generator=torch.Generator().manual_seed(1)) >= 0.2).to(DEVICE)
    products, biases, _, kept, scale, packing, size, stride, grad = given
    wide = [v.detach().double().requires_grad_() for v in (products, biases)]
    x = F.softsign(wide[0] + wide[1][:, [0, 0, 1]]) * kept * scale
    windows = x.unfold(2, size, stride).transpose(-1, -2).flatten(3)  # (K, B, T', size x F)
    exact = torch.stack([w[packing.row[k], packing.frame] for k, w in enumerate(windows)])
    wanted = exact.detach(), *torch.autograd.grad(exact, wide, grad.double())
    for own, other in zip(patches_and_gradients(patches_gpu.to_patches, given), wanted, strict=True):
        assert (own.double() - other).abs().max() <= tolerance * other.abs().max()


def test_a_product_that_is_not_finite_stays_in_its_patches() -> None:
    """Also where dropout would not keep it: what has exploded must be seen."""
    given = patch_operands(33, 5, 5, 2, torch.float32)
    with torch.no_grad():
        given[0][0, 1, 0, 3] = torch.nan
        given[0][1, 2, 0, 4] = torch.inf
    given[3] = torch.zeros_like(given[0], dtype=torch.bool)
    made, d_products, d_biases = patches_and_gradients(patches_gpu.to_patches, given)
    for k, feature in ((0, 3), (1, 4)):
        assert made[k].isnan().sum() == 1
        assert made[k, :, feature].isnan().any()
    assert d_products[0].isnan().nonzero().tolist() == [[1, 0, 3]]
    assert d_biases.isnan().nonzero().tolist() == [[0, 0, 0, 3]]


def test_gru_saturates_and_keeps_nan_in_its_row() -> None:
    counts, units = [5, 5, 2], 32
    gates, *rest = (v.to(DEVICE) for v in operands(1, counts, units))
    gates[0, 0, units:] = torch.tensor([-torch.inf, -1e30, -100, 1e-30, 100, 1e30, torch.inf, 0]).repeat(3 * units // 8)
    gates[0, 1] = torch.nan
    ours = forward_and_back(KERNELS, [gates, *rest], counts)
    theirs = forward_and_back(BY_PYTORCH, [gates, *rest], counts)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert ours[0][0].isnan().any(1).nonzero().flatten().tolist() == [1, 6, 11]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_kernels_compile_for_gpus(architecture: str, tmp_path: Path) -> None:
    """For an A100 and an H100, of which none is needed."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-m", "tests.support.compile_kernels", architecture]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    early = 6 if architecture == "90" else 0
    assert len(lines) == 18 + early + 2
    assert ["starts early" in line for line in lines].count(True) == early
    products = [line for line in lines if "gru_" in line and "in fp32" not in line]
    assert [line for line in lines if "tensor cores" in line] == products
    layers = [line for line in lines if "gru_layer_gpu" in line]
    assert all(line.endswith(", 0 bytes spilled") for line in lines if line not in layers)
    for line in layers:  # weights of 144 KB and some rows of states
        (shared,) = re.findall(r"(\d+) KB shared", line)
        assert 144 < int(shared) <= 163


def test_kernels_that_do_not_work_are_replaced_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> str:
        selftest.check_results([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.1], dtype=torch.float64)])
        return "kernels"

    with caplog.at_level(logging.WARNING):
        assert selftest.kernel_or_fallback(wrong, "PyTorch", "A step is slower") == "PyTorch"
    (message,) = caplog.messages
    assert "A step is slower" in message
    assert "off by 0.048" in message
    with pytest.raises(ArithmeticError):
        selftest.check_results([torch.tensor([torch.nan])], [torch.tensor([1.0])])


@pytest.mark.slow
def test_a_compiler_that_triton_lacks_is_named_with_the_mend(tmp_path: Path) -> None:
    """Triton's own search for a C compiler and its call of one, where there is none and where it fails."""
    code = (
        "from stability.engine.kernels.selftest import kernel_or_fallback\n"
        "from triton.runtime.build import compile_module_from_src\n"
        "build = lambda: compile_module_from_src(src='#include <Python.h>', name='stub')\n"
        "print(kernel_or_fallback(build, 'PyTorch', 'A step is slower'))"
    )
    paths = {name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ}
    env = paths | {"TRITON_CACHE_DIR": str(tmp_path), "PATH": "", "TRITON_INTERPRET": "0"}
    said = []
    for compiler in ({}, {"CC": "/bin/false"}):
        result = subprocess.run(
            [sys.executable, "-c", code], env=env | compiler, capture_output=True, text=True, check=False
        )
        assert result.stdout == "PyTorch\n", result.stderr
        said.append(result.stderr)
    assert "Failed to find C compiler" in said[0]
    assert said[0].endswith("Install gcc or clang, or name a C compiler in CC, and start again.\n")
    assert said[1].endswith(
        "The C compiler failed: install Python's headers (python3-dev on Debian), and start again.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "precision"),
    [
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "tf32"),
        ("torch.set_float32_matmul_precision('high')", "tf32"),
        ("pass", "ieee"),
    ],
)
def test_whether_float32_is_rounded_is_read_however_it_was_set(setting: str, precision: str) -> None:
    code = (
        f"import torch\n{setting}\nfrom stability.engine.memory import prepare_process\nprepare_process()\n"
        "from stability.engine.kernels import gru_gpu\nprint('tf32' if gru_gpu._allows_tf32() else 'ieee')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == f"{precision}\n", result.stderr


def test_kernels_work_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns() -> str:
        warnings.warn("Triton's next version will do this in another way", UserWarning, stacklevel=1)
        return "kernels"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selftest.kernel_or_fallback(warns, "PyTorch", "A step is slower") == "kernels"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[gru_gpu.Variant, float]:
    """A made-up GPU, on which the variants take the seconds in this dictionary for one trial."""
    times: dict[gru_gpu.Variant, float] = {}

    def seconds(work: Any, device: torch.device) -> float:
        loops, given, _ = work.args
        return times[loops[0].keywords["variant"]] / (
            len(given[0]) if loops[0].keywords["variant"].columns == 64 else 1
        )

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(measured, "median_seconds", Mock(side_effect=seconds))
    monkeypatch.setattr(selftest, "check_results", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda v, *_, **__: v.clone())  # all stays on the CPU
    return times


def chosen_variant(units: int, trials: int) -> gru_gpu.Variant:
    """Choose as a new process does."""
    loops: Any = recurrent._loops_on_gpu.__wrapped__(SimpleNamespace(type="cuda"), torch.float32, units, trials)
    forward, backward = loops
    assert forward.keywords == backward.keywords
    variant: gru_gpu.Variant = forward.keywords["variant"]
    return variant


def test_of_the_variants_that_work_the_fastest_is_chosen_and_remembered(timed: dict[gru_gpu.Variant, float]) -> None:
    """On a GPU on which one variant cannot be launched."""
    timed |= dict(zip(gru_gpu.VARIANTS, (2.0, float("inf"), 4.0), strict=True))
    for units, trials, chosen in (
        (64, 1, (32, 4)),
        (64, 4, (64, 8)),
        (64, 1, (32, 4)),
        (64, 4, (64, 8)),
        (32, 4, (32, 4)),
    ):
        assert chosen_variant(units, trials)[:2] == chosen
    asked: Any = measured.median_seconds
    assert asked.call_count == 3 + 3 + 2, "once for each number of units, and for one trial and for several"


@pytest.mark.parametrize(("wrong_at", "chosen"), [(None, True), (0, False), (19, False)])
def test_a_variant_that_starts_early_must_have_the_same_bits_again_and_again(
    wrong_at: int | None, chosen: bool, timed: dict[gru_gpu.Variant, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the fastest, and one of its results is off by the last digit."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(measured, "COUNTS", [3, 2])
    for i, variant in enumerate(gru_gpu.variants(SimpleNamespace(type="cuda"), torch.float32, 32)):  # type: ignore[arg-type]
        timed[variant] = 4.0 - i
    assert min(timed, key=timed.__getitem__) == (32, 8, "early")
    runs = Counter[gru_gpu.Variant]()

    def forward(*operands: Any, variant: gru_gpu.Variant) -> torch.Tensor:
        states = recurrent.forward_loop(*operands)
        if variant == (32, 8, "early") and runs[variant] == wrong_at:
            states[0, 0, 0] = states[0, 0, 0].nextafter(torch.tensor(9.0))
        runs[variant] += 1
        return states

    def backward(*operands: Any, variant: gru_gpu.Variant) -> tuple[torch.Tensor, ...]:
        return recurrent.backward_loop(*operands)

    monkeypatch.setattr(gru_gpu, "forward", forward)
    monkeypatch.setattr(gru_gpu, "backward", backward)
    assert (chosen_variant(32, 1) == (32, 8, "early")) is chosen


def test_a_kernel_is_tried_again_if_memory_ran_out_at_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loss._on_gpu.cache_clear()
    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        with monkeypatch.context() as full:
            full.setattr(ctc_gpu, "losses", Mock(side_effect=error))
            full.setattr(gru_gpu, "forward", Mock(side_effect=error))
            with pytest.raises(type(error)):
                loss._on_gpu(DEVICE)
            with pytest.raises(type(error)):
                recurrent._loops_on_gpu(DEVICE, torch.float32, 32, 1)
    assert loss._on_gpu(DEVICE) == ctc_gpu.losses
    assert recurrent._loops_on_gpu(DEVICE, torch.float32, 32, 1) != BY_PYTORCH
    loss._on_gpu.cache_clear()
    recurrent._loops_on_gpu.cache_clear()
    assert not caplog.messages


def test_kernels_are_tested_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a GPU does at the first step, or the first validation, with the interpreter in its place."""
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        for dtype, units in ((torch.float32, 32), (torch.float16, 64)):
            loops: Any = recurrent._loops_on_gpu.__wrapped__(DEVICE, dtype, units, 1)
            assert [loop.func for loop in loops] == [*KERNELS]
        assert loss._on_gpu.__wrapped__(DEVICE) == ctc_gpu.losses
        assert patches._on_gpu.__wrapped__(DEVICE, torch.float32, 24, 14, 4) == patches_gpu.to_patches
    assert not caplog.messages
    right = ctc_gpu.losses
    monkeypatch.setattr(ctc_gpu, "losses", lambda *operands: 1.01 * right(*operands))
    assert loss._on_gpu.__wrapped__(DEVICE) == loss._by_pytorch
    assert "CTC makes the host wait" in caplog.text


@pytest.mark.slow
def test_a_stack_is_trained_as_without_them(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [tiny(f"seed={seed}", "precision=fp32") for seed in range(2)]
    without, by_kernels = (stack_of(configs, dataset, DEVICE) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(recurrent, "_loops", lambda *_: BY_PYTORCH)
        patch.setattr(loss, "_on_gpu", lambda _: loss._by_pytorch)
        patch.setattr(patches, "_on_gpu", lambda *_: patches._by_pytorch)
        wanted = train_steps(without, dataset.train, 1)
    monkeypatch.setattr(recurrent, "_loops", lambda *_: KERNELS)
    monkeypatch.setattr(ctc_cpu, "applies", lambda _: False)
    monkeypatch.setattr(loss, "_by_pytorch", ctc_gpu.losses)
    monkeypatch.setattr(patches, "_by_pytorch", patches_gpu.to_patches)
    tables = train_steps(by_kernels, dataset.train, 1)
    for own, other in zip(tables, wanted, strict=True):
        np.testing.assert_allclose(own.values, other.values, rtol=1e-4, atol=1e-5)
    for name, gradient in by_kernels.moments.first.items():  # of the first step, but for their size
        torch.testing.assert_close(gradient, without.moments.first[name], rtol=1e-4, atol=1e-6)
