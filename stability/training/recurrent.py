"""One GRU layer for a stack of trials over packed frames, in PyTorch's gate order (reset, update, new).

Two engines compute the same: PyTorch's own kernel (cuDNN on CUDA) for a stack of one on a GPU, and a time loop
batched over the stack for everything else. The loop has its backward written out: one product a frame is all
that cannot be batched over time, and no graph is kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gru_layer(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, counts: Sequence[int]
) -> Tensor:
    """Run one GRU layer over packed frames.

    x: (K, N, I), the rows of frame 0, then of frame 1, …, `counts` of them, falling; h0: (K, counts[0], H);
    w_ih: (K, 3H, I); w_hh: (K, 3H, H); b_ih, b_hh: (K, 3H). Returns the hidden states (K, N, H). Under autocast
    both engines multiply in its dtype.
    """
    if x.is_cuda and x.shape[0] == 1:
        weights = [w_ih[0], w_hh[0], b_ih[0], b_hh[0]]
        states, _ = torch.gru(x[0], torch.tensor(counts), h0.contiguous(), weights, True, 1, 0.0, False, False)
        return states.unsqueeze(0)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, h0, w_ih, w_hh, b_ih, b_hh = (v.to(dtype) for v in (x, h0, w_ih, w_hh, b_ih, b_hh))
    looped: Tensor = _Loop.apply(x, h0, w_ih, w_hh, b_ih, b_hh, counts)  # type: ignore[no-untyped-call]
    return looped


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, counts: Sequence[int]
    ) -> Tensor:
        h = w_hh.shape[-1]
        # The input's share of the gates, for all frames at once; the gates themselves overwrite it in place.
        gates = torch.baddbmm(b_ih.unsqueeze(1), x, w_ih.transpose(1, 2))
        recurrent = torch.empty_like(gates)
        states = torch.empty_like(gates[..., :h], memory_format=torch.contiguous_format)
        w_hh_t, bias = w_hh.transpose(1, 2).contiguous(), b_hh.unsqueeze(1)
        # All views are made beforehand: one a frame and operand would cost as much as the arithmetic.
        rz, r, z, n = (gates[..., a * h : b * h] for a, b in ((0, 2), (0, 1), (1, 2), (2, 3)))
        operands = (states, recurrent, recurrent[..., : 2 * h], recurrent[..., 2 * h :], rz, r, z, n)
        state = h0
        for count, (out, rec, rec_rz, rec_n, rz_t, r_t, z_t, n_t) in zip(
            counts, zip(*(torch.split(v, list(counts), 1) for v in operands), strict=True), strict=True
        ):
            state = state[:, :count]
            torch.baddbmm(bias, state, w_hh_t, out=rec)
            rz_t.add_(rec_rz).sigmoid_()
            n_t.addcmul_(r_t, rec_n).tanh_()
            state = torch.lerp(n_t, state, z_t, out=out)
        ctx.counts = counts
        ctx.save_for_backward(x, h0, w_ih, w_hh, gates, recurrent, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, w_ih, w_hh, gates, recurrent, states = ctx.saved_tensors
        counts = ctx.counts
        h = w_hh.shape[-1]
        before = torch.cat(
            [h0, *(s[:, :n] for s, n in zip(torch.split(states, counts, 1), counts[1:], strict=False))], 1
        )
        r, z, n = gates.split(h, -1)
        # d(pre-activation of each gate) / d(state), but for the chain through time: all frames at once.
        # The new gate's recurrent share is multiplied by r, so it has a gradient of its own (through).
        to_n = (1 - z).mul_(torch.addcmul(torch.ones((), dtype=n.dtype, device=n.device), n, n, value=-1))
        through = torch.empty_like(gates)
        torch.mul(to_n, recurrent[..., 2 * h :], out=through[..., :h]).mul_(r).mul_(1 - r)
        torch.sub(before, n, out=through[..., h : 2 * h]).mul_(z).mul_(1 - z)
        torch.mul(to_n, r, out=through[..., 2 * h :])
        d_states = grad.clone(memory_format=torch.contiguous_format)
        d_state = torch.zeros_like(h0[:, :0])
        by_gate = through.view(*through.shape[:2], 3, h)
        frames = [*zip(*(torch.split(v, counts, 1) for v in (d_states, z, through, by_gate)), strict=True)]
        for d, z_t, d_gates, d_by_gate in reversed(frames):
            d[:, : d_state.shape[1]] += d_state  # of the rows that go on
            d_by_gate.mul_(d.unsqueeze(-2))
            d_state = torch.baddbmm(d * z_t, d_gates, w_hh)
        d_input = through.clone()
        torch.mul(d_states, to_n, out=d_input[..., 2 * h :])
        return (
            torch.bmm(d_input, w_ih) if ctx.needs_input_grad[0] else None,
            d_state,
            torch.bmm(d_input.transpose(1, 2), x),
            torch.bmm(through.transpose(1, 2), before),
            d_input.sum(1),
            through.sum(1),
            None,
        )
