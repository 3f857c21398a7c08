"""The kernels of CTC beside PyTorch's own. Without a GPU, Triton interprets its kernels on the CPU."""

from types import ModuleType

import pytest
import torch

from stability.engine.kernels import ctc_cpu
from stability.engine.loss import ctc_losses
from tests.support.ctc_kernels import assert_agrees_with_float64, case, losses_and_gradient

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning:triton")  # NumPy's, of infinities


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "cpu":
        return ctc_cpu
    pytest.importorskip("triton")
    from stability.engine.kernels import ctc_gpu

    return ctc_gpu


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_kernel_agrees_with_pytorch_in_float64(scale: float, kernel: ModuleType) -> None:
    assert_agrees_with_float64(kernel, scale)


def test_only_utterances_that_cannot_be_aligned_have_an_infinite_loss(kernel: ModuleType) -> None:
    logits, frames, labels, label_counts = case(kernel)
    frames[0, 1], frames[1, 1] = 0, 9  # for 5 labels, and for 1
    label_counts[1, 3] = 9  # with a repeat they need ten
    losses, gradient = losses_and_gradient(kernel.losses, logits, frames, labels, label_counts)
    assert losses.isinf().nonzero().tolist() == [[0, 1], [1, 3]]
    assert gradient.isnan().any(3).any(1).nonzero().tolist() == [[1, 3]]


def test_impossible_classes_make_only_their_labels_infinite(kernel: ModuleType) -> None:
    """Logits of minus infinity, in labels that need them and in one that does not."""
    logits, frames, labels, label_counts = case(kernel)
    logits[0, :, 1, labels[0, 1, 2]] = logits[0, :, 2, 7] = -torch.inf
    losses = kernel.losses(logits.log_softmax(-1), frames, labels, label_counts)
    wanted = ctc_losses(logits.double(), frames, labels, label_counts)
    assert losses.isinf().nonzero().tolist() == [[0, 1]]
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("class_", [0, 7])
def test_nan_stays_in_its_utterance(class_: int, kernel: ModuleType) -> None:
    logits, *rest = case(kernel)
    logits[0, 3, 1, class_] = torch.nan
    losses = kernel.losses(logits.log_softmax(-1), *rest)
    assert losses.isnan().nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_trial_is_bit_for_bit_the_same_in_any_stack(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together = case(ctc_cpu)
    whole = losses_and_gradient(ctc_cpu.losses, *together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits, *rest = together
    again = losses_and_gradient(ctc_cpu.losses, logits, *rest)
    losses = ctc_cpu.losses(logits[1:].log_softmax(-1), *(v[1:] for v in rest))
    assert torch.equal(losses[0], whole[0][1])
    for a, b in zip(again, whole, strict=True):
        assert torch.equal(a, b)
