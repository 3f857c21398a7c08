"""CTC loss against a sum over all alignments, its two reductions, and the phoneme error rate."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stability.engine.decoder import init_parameters
from stability.engine.loss import ctc_losses, edit_distance, greedy_decode
from stability.engine.predict import reduce_losses
from stability.engine.stack import new_stack
from tests.support.configs import tiny
from tests.support.decoding import collapsed, levenshtein


def brute_force(logits: Tensor, label: list[int]) -> float:
    """Negative log of the summed probability of all paths that read as the label; logits (T, C)."""
    probabilities = torch.softmax(logits.double(), -1).numpy()
    frames, classes = probabilities.shape
    total = sum(
        math.prod(probabilities[t, c] for t, c in enumerate(path))
        for path in itertools.product(range(classes), repeat=frames)
        if collapsed(path) == label
    )
    return -math.log(total) if total > 0 else math.inf


def test_loss_is_the_sum_over_all_alignments() -> None:
    """Two trials of three utterances, of different lengths, with repeats; padding holds rubbish."""
    logits = 2 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[1, 2, 3], [2, 2, 9], [3, 9, 9]], [[1, 1, 1], [3, 1, 9], [2, 3, 2]]])
    counts = torch.tensor([[3, 2, 1], [3, 2, 3]])
    frames = torch.tensor([[5, 4, 2], [5, 3, 4]])
    losses = ctc_losses(logits, frames, labels.clamp(max=3), counts)
    assert losses.dtype == torch.float32
    for k, b in np.ndindex(2, 3):
        expected = brute_force(logits[k, : frames[k, b], b], labels[k, b, : counts[k, b]].tolist())
        assert losses[k, b].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_loss() -> None:
    logits = torch.randn(1, 4, 1, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = ctc_losses(logits, torch.tensor([[4]]), torch.tensor([[[1, 2]]]), torch.tensor([[2]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    step = 1e-5
    for t, c in np.ndindex(4, 3):
        up, down = logits.detach().double(), logits.detach().double()
        up[0, t, 0, c] += step
        down[0, t, 0, c] -= step
        slope = (brute_force(up[0, :, 0], [1, 2]) - brute_force(down[0, :, 0], [1, 2])) / (2 * step)
        assert gradient[0, t, 0, c].item() == pytest.approx(slope, abs=1e-5)


def test_infeasible_target_is_infinite() -> None:
    """Three equal labels need five frames; the neighbour stays finite."""
    logits = torch.zeros(1, 4, 2, 3)
    labels = torch.tensor([[[1, 1, 1], [1, 2, 1]]])
    losses = ctc_losses(logits, torch.tensor([[4, 4]]), labels, torch.tensor([[3, 3]]))
    assert losses[0, 0].item() == math.inf
    assert losses[0, 1].item() == pytest.approx(brute_force(logits[0, :, 1], [1, 2, 1]), rel=1e-5)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits = torch.randn(1, 5, 1, 4).bfloat16()
    args = torch.tensor([[5]]), torch.tensor([[[1, 2]]]), torch.tensor([[2]])
    torch.testing.assert_close(ctc_losses(logits, *args), ctc_losses(logits.float(), *args))


def test_reductions() -> None:
    """per_utterance_sum is the mean of the sums, per_label_mean PyTorch's reduction='mean'; both in one stack."""
    configs = [tiny("loss=per_utterance_sum"), tiny("loss=per_label_mean")]
    model = configs[0].model
    stack = new_stack(configs, [init_parameters(model, 6, 1, 0)] * 2, torch.device("cpu"))
    logits = torch.randn(1, 9, 3, 41).expand(2, -1, -1, -1)
    labels, counts = torch.randint(1, 41, (2, 3, 4)), torch.tensor([[4, 1, 2]]).expand(2, -1)
    labels[1] = labels[0]
    frames = torch.tensor([[9, 8, 7]]).expand(2, -1)
    nll = ctc_losses(logits, frames, labels, counts)
    loss, per_label = reduce_losses(stack, nll, counts)

    log_probs = logits[0].log_softmax(-1)
    each, mean = (torch.nn.CTCLoss(reduction=r)(log_probs, labels[0], frames[0], counts[0]) for r in ("none", "mean"))
    torch.testing.assert_close(loss, torch.stack([each.mean(), mean]))
    torch.testing.assert_close(per_label, torch.stack([mean, mean]))


def test_greedy_decoding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, length = rng.integers(1, 5), rng.integers(1, 12)
        classes = torch.from_numpy(rng.integers(0, 4, (rows, length)))
        frames = torch.from_numpy(rng.integers(0, length + 1, rows))
        expected = [collapsed(tuple(row[:n].tolist())) for row, n in zip(classes, frames, strict=True)]
        assert greedy_decode(classes, frames) == expected


def test_edit_distance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 4, rng.integers(0, 9)).tolist() for _ in range(2))
        assert edit_distance(a, b) == levenshtein(a, b)
