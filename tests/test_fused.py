"""The Triton kernels beside PyTorch's operations, on a GPU; where there is none, Triton interprets them on the CPU."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stability.training import loss, recurrent, trusted
from stability.training.loss import ctc_losses
from stability.training.recurrent import backward_loop, forward_loop

pytest.importorskip("triton")

from stability.training import fused_ctc, fused_gru

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning:triton"),  # NumPy's, of infinities
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = (fused_gru.forward, fused_gru.backward)


def gru_operands(k: int, counts: Sequence[int], units: int, dtype: torch.dtype) -> list[Tensor]:
    """The input's share of the gates, their biases, the initial state and its weights."""
    shapes = [(k, sum(counts), 4 * units), (k, 4 * units), (k, counts[0], units), (k, 3 * units, units)]
    generator = torch.Generator().manual_seed(k)
    return [
        torch.randn(s, generator=generator).div_(8 if i == 3 else 1).to(DEVICE, dtype) for i, s in enumerate(shapes)
    ]


def forward_and_back(loops: Any, operands: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    gates, biases, h0, w_hh = (v.clone() for v in operands)
    states = loops[0](gates, biases, h0, w_hh, counts)
    return states, *loops[1](gates, states, h0, w_hh, states.cos(), counts)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 2e-3)],  # the interpreter's product in bfloat16 is not one
)
@pytest.mark.parametrize(("k", "units"), [(1, 64), (2, 96)])
@pytest.mark.parametrize("counts", [[1], [21, 21, 20, 13, 2], [70, 3]])
def test_gru_agrees_with_a_float64_loop(
    counts: list[int], k: int, units: int, dtype: torch.dtype, tolerance: float
) -> None:
    operands = gru_operands(k, counts, units, dtype)
    ours = forward_and_back(KERNELS, operands, counts)
    wanted = forward_and_back((forward_loop, backward_loop), [v.double() for v in operands], counts)
    for own, other in zip(ours, wanted, strict=True):
        assert own.dtype == dtype
        assert (own.double() - other).abs().max() <= tolerance * other.abs().max()


def test_gru_saturates_and_keeps_nan_in_its_row() -> None:
    counts, units = [5, 5, 2], 32
    gates, *rest = gru_operands(1, counts, units, torch.float32)
    gates[0, 0, units:] = torch.tensor([-torch.inf, -1e30, -100, 1e-30, 100, 1e30, torch.inf, 0]).repeat(3 * units // 8)
    gates[0, 1] = torch.nan
    ours = forward_and_back(KERNELS, [gates, *rest], counts)
    theirs = forward_and_back((forward_loop, backward_loop), [gates, *rest], counts)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert ours[0][0].isnan().any(1).nonzero().flatten().tolist() == [1, 6, 11]


def ctc_case(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, frames, labels with repeats, and label counts: among them none, and as many as can be."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 24, 4, 41, generator=generator) * scale).to(DEVICE)
    labels = torch.randint(1, 41, (2, 4, 11), generator=generator)
    labels[..., 1] = labels[..., 0]
    frames, label_counts = torch.tensor([[[24, 23, 5, 0], [12, 24, 24, 9]], [[11, 5, 0, 0], [11, 1, 10, 7]]])
    return logits, frames, labels.to(DEVICE), label_counts


def losses_and_gradient(function: Callable[..., Tensor], logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    losses = function(logits, *rest)
    weights = torch.arange(1.0, losses.numel() + 1).view_as(losses)  # that each utterance's own reaches it
    (gradient,) = torch.autograd.grad((losses * weights).sum(), logits)
    return losses.detach(), gradient


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ctc_agrees_with_pytorch_in_float64(scale: float) -> None:
    logits, *rest = ctc_case(scale)
    losses, gradient = losses_and_gradient(lambda x, *r: fused_ctc.losses(x.log_softmax(-1), *r), logits, *rest)
    wanted, wanted_gradient = losses_and_gradient(ctc_losses, logits.double(), *rest)
    assert (losses.dtype, gradient.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=0, atol=3e-5)


def test_ctc_that_cannot_be_aligned_is_inf_and_alone_so() -> None:
    logits, frames, labels, label_counts = ctc_case()
    frames[0, 1], frames[1, 1] = 0, 9  # for 5 labels, and for 1
    label_counts[1, 3] = 9  # with a repeat they need ten
    losses, gradient = losses_and_gradient(
        lambda x, *r: fused_ctc.losses(x.log_softmax(-1), *r), logits, frames, labels, label_counts
    )
    assert losses.isinf().nonzero().tolist() == [[0, 1], [1, 3]]
    assert gradient.isnan().any(3).any(1).nonzero().tolist() == [[1, 3]]


def test_nan_in_ctc_stays_in_its_utterance() -> None:
    logits, *rest = ctc_case()
    logits[0, 3, 1, 7] = torch.nan
    losses = fused_ctc.losses(logits.log_softmax(-1), *rest)
    assert losses.isnan().nonzero().tolist() == [[0, 1]]


def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """For an A100 and an H100, of which none is needed."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compile_kernels", "80", "90"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 16
    assert [line for line in lines if "tensor cores" in line] == [line for line in lines if "in fp32" not in line]


def test_kernels_that_do_not_work_are_done_without_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> str:
        trusted.compare([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.1], dtype=torch.float64)])
        return "kernels"

    with caplog.at_level(logging.WARNING):
        assert trusted.tried(wrong, "PyTorch", "A step is slower") == "PyTorch"
    (message,) = caplog.messages
    assert "A step is slower" in message
    assert "off by 0.048" in message
    with pytest.raises(ArithmeticError):
        trusted.compare([torch.tensor([torch.nan])], [torch.tensor([1.0])])


def test_kernels_are_tried_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a GPU does at the first step, with the interpreter in its place."""
    assert recurrent._loops_on_gpu.__wrapped__(DEVICE, torch.float32, 32) == KERNELS
    assert recurrent._loops_on_gpu.__wrapped__(DEVICE, torch.float16, 64) == KERNELS
    assert loss._on_gpu.__wrapped__(DEVICE) == fused_ctc.losses
    assert not caplog.messages
    right = fused_ctc.losses
    monkeypatch.setattr(fused_ctc, "losses", lambda *operands: 1.001 * right(*operands))
    assert loss._on_gpu.__wrapped__(DEVICE) == loss._by_pytorch
    assert "CTC makes the host wait" in caplog.text
