"""CTC's recursions over time on a GPU, as Triton kernels: one program for each utterance.

The host never waits for them. With PyTorch's own CTC, which copies the lengths to the host, it waits twice a step.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stability.core.device import to_device
from stability.data.phonemes import BLANK
from stability.engine.kernels import TRITON_OPTIONS


def losses(log_probs: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """Compute CTC's negative log-likelihood of each utterance.

    Args:
        log_probs: (K, T, B, C), float32.
        frames: (K, B) frames of each utterance, on the host.
        labels: (K, B, L).
        label_counts: (K, B), on the host.

    Returns:
        (K, B), in nats; inf for an utterance with too few frames for its labels.
    """
    size = max(16, triton.next_power_of_2(2 * labels.shape[2] + 1))
    spelled = labels.new_full((*labels.shape[:2], size), BLANK)  # the states: a blank before, between and after labels
    spelled[..., 1 : 2 * labels.shape[2] : 2] = labels
    lengths = to_device(torch.stack([frames, label_counts]), labels.device)
    nll: Tensor = _Losses.apply(log_probs.contiguous(), spelled, lengths)
    return nll


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, spelled: Tensor, lengths: Tensor) -> Tensor:
        (k, t, b, c), size = log_probs.shape, spelled.shape[2]
        alphas, nll = log_probs.new_zeros(k, b, t, size), log_probs.new_empty(k, b)
        with torch.cuda.device_of(log_probs):
            _forward[(k * b,)](log_probs, spelled, *lengths, alphas, nll, t, b, c, BLANK, size, **TRITON_OPTIONS)
        ctx.save_for_backward(log_probs, spelled, lengths, alphas, nll)
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        log_probs, spelled, lengths, alphas, nll = ctx.saved_tensors
        (k, t, b, c), size = log_probs.shape, spelled.shape[2]
        shares = torch.zeros_like(alphas)
        with torch.cuda.device_of(log_probs):
            _backward[(k * b,)](
                log_probs, spelled, *lengths, alphas, nll, shares, t, b, c, BLANK, size, **TRITON_OPTIONS
            )
        # One matrix product: scatter_add on a GPU adds in no fixed order, and its sums differ from run to run.
        says = spelled.unsqueeze(3) == torch.arange(c, device=spelled.device)  # (K, B, S, C)
        return torch.matmul(shares, says.float() * -grad[..., None, None]).transpose(1, 2), None, None


@triton.jit
def _log_sum_exp(a, b, c):
    top = tl.maximum(tl.maximum(a, b), c)
    top = tl.where(top == float("-inf"), 0.0, top)
    return tl.log(tl.exp(a - top) + tl.exp(b - top) + tl.exp(c - top)) + top


_NUMBERS = ("times", "batch", "classes")


@triton.jit(do_not_specialize=_NUMBERS)
def _forward(
    log_probs, spelled, frames, label_counts, alphas, nll, times, batch, classes,
    blank: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Log-probability of all paths to each state at each frame. A path starts at the first blank, before frame 0."""
    utterance = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, size)
    spells = tl.load(spelled + utterance * size + state)
    skips = (state >= 2) & (spells != blank) & (spells != tl.gather(spells, tl.maximum(state - 2, 0), 0))
    last = 2 * tl.load(label_counts + utterance)
    log_probs += (utterance // batch * times * batch + utterance % batch) * classes + spells
    alphas += utterance * times * size + state
    alpha = tl.where(state == 0, 0.0, float("-inf"))
    for _ in range(0, tl.load(frames + utterance)):
        step = tl.where(state >= 1, tl.gather(alpha, tl.maximum(state - 1, 0), 0), float("-inf"))
        skip = tl.where(skips, tl.gather(alpha, tl.maximum(state - 2, 0), 0), float("-inf"))
        alpha = tl.where(state <= last, _log_sum_exp(alpha, step, skip) + tl.load(log_probs), float("-inf"))
        tl.store(alphas, alpha)
        log_probs += batch * classes
        alphas += size
    ends = tl.where((state == last) | (state == last - 1), alpha, float("-inf"))
    top = tl.max(ends, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(nll + utterance, -(tl.log(tl.sum(tl.exp(ends - top), 0)) + top))


@triton.jit(do_not_specialize=_NUMBERS)
def _backward(
    log_probs, spelled, frames, label_counts, alphas, nll, shares, times, batch, classes,
    blank: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Probability of being in each state at each frame, given the labels."""
    utterance = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, size)
    spells = tl.load(spelled + utterance * size + state)
    skips = (state + 2 < size) & (spells != blank)
    skips = skips & (spells != tl.gather(spells, tl.minimum(state + 2, size - 1), 0))
    last = 2 * tl.load(label_counts + utterance)
    count = tl.load(frames + utterance)
    log_probs += ((utterance // batch * times + count - 1) * batch + utterance % batch) * classes + spells
    end = (utterance * times + count - 1) * size + state
    alphas += end
    shares += end
    loss = tl.load(nll + utterance)
    beta = tl.where((state == last) | (state == last - 1), 0.0, float("-inf"))
    for _ in range(0, count):
        share = tl.exp(tl.load(alphas) + beta + loss)
        tl.store(shares, share / tl.sum(share, 0))  # the sum is 1, except for rounding
        beta += tl.load(log_probs)
        step = tl.where(state + 1 < size, tl.gather(beta, tl.minimum(state + 1, size - 1), 0), float("-inf"))
        skip = tl.where(skips, tl.gather(beta, tl.minimum(state + 2, size - 1), 0), float("-inf"))
        beta = tl.where(state <= last, _log_sum_exp(beta, step, skip), float("-inf"))
        log_probs -= batch * classes
        alphas -= size
        shares -= size
