"""One GRU layer for a stack of trials, in PyTorch's gate order (reset, update, new).

Two engines compute the same: PyTorch's own kernel (cuDNN on CUDA) for a stack of one on a GPU, and a time loop
batched over the stack for everything else. The loop has its backward written out: one product a step is all
that cannot be batched over time, and no graph is kept.
"""

from typing import Any

import torch
from torch import Tensor


def gru_layer(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Run one GRU layer over time.

    x: (K, T, B, I); h0: (K, B, H); w_ih: (K, 3H, I); w_hh: (K, 3H, H); b_ih, b_hh: (K, 3H).
    Returns the hidden states (K, T, B, H). Under autocast both engines multiply in its dtype.
    """
    if x.is_cuda and x.shape[0] == 1:
        weights = [w_ih[0], w_hh[0], b_ih[0], b_hh[0]]
        states, _ = torch.gru(x[0], h0, weights, True, 1, 0.0, False, False, False)
        return states.unsqueeze(0)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, h0, w_ih, w_hh, b_ih, b_hh = (v.to(dtype) for v in (x, h0, w_ih, w_hh, b_ih, b_hh))
    out: Tensor = _Loop.apply(x, h0, w_ih, w_hh, b_ih, b_hh)  # type: ignore[no-untyped-call]
    return out


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        k, t_max, b, i = x.shape
        h = w_hh.shape[-1]
        x_flat = x.reshape(k, t_max * b, i)
        # The input's share of the gates, for all steps at once; the gates themselves overwrite it in place.
        gates = torch.baddbmm(b_ih.unsqueeze(1), x_flat, w_ih.transpose(1, 2)).view(k, t_max, b, 3 * h)
        recurrent = torch.empty_like(gates)
        states = x.new_empty(k, t_max + 1, b, h)
        states[:, 0] = h0
        w_hh_t, bias = w_hh.transpose(1, 2).contiguous(), b_hh.unsqueeze(1)
        # All views are made beforehand: one a step and operand would cost as much as the arithmetic.
        steps = zip(
            states.unbind(1),
            states[:, 1:].unbind(1),
            recurrent.unbind(1),
            *(recurrent[..., part].unbind(1) for part in (slice(2 * h), slice(2 * h, None))),
            *(gates[..., part].unbind(1) for part in (slice(2 * h), slice(h), slice(h, 2 * h), slice(2 * h, None))),
            strict=False,
        )
        for state, next_state, rec, rec_rz, rec_n, rz, r, z, n in steps:
            torch.baddbmm(bias, state, w_hh_t, out=rec)
            rz.add_(rec_rz).sigmoid_()
            n.addcmul_(r, rec_n).tanh_()
            torch.lerp(n, state, z, out=next_state)
        ctx.save_for_backward(x_flat, w_ih, w_hh, gates, recurrent, states)
        return states[:, 1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_flat, w_ih, w_hh, gates, recurrent, states = ctx.saved_tensors
        k, t_max, b, h3 = gates.shape
        h = h3 // 3
        r, z, n = gates.split(h, -1)
        # d(pre-activation of each gate) / d(state), but for the chain through time: all steps at once.
        # The new gate's recurrent share is multiplied by r, so it has a gradient of its own (through).
        to_n = (1 - z) * (1 - n * n)
        through = torch.empty_like(gates)
        torch.mul(to_n * recurrent[..., 2 * h :], r * (1 - r), out=through[..., :h])
        torch.mul(states[:, :-1] - n, z * (1 - z), out=through[..., h : 2 * h])
        torch.mul(to_n, r, out=through[..., 2 * h :])
        d_state = torch.zeros_like(states[:, 0])
        d_states = torch.empty_like(n)
        steps = zip(*(v.unbind(1) for v in (grad, d_states, z, through, through.view(k, t_max, b, 3, h))), strict=True)
        for grad_t, d, z_t, d_gates, d_gates_3 in reversed(list(steps)):
            torch.add(d_state, grad_t, out=d)
            d_gates_3.mul_(d.unsqueeze(-2))
            d_state = torch.baddbmm(d * z_t, d_gates, w_hh)
        d_recurrent = through.view(k, t_max * b, h3)
        d_input = d_recurrent.clone()
        torch.mul(d_states, to_n, out=d_input.view(k, t_max, b, h3)[..., 2 * h :])
        return (
            torch.bmm(d_input, w_ih).view(k, t_max, b, -1) if ctx.needs_input_grad[0] else None,
            d_state,
            torch.bmm(d_input.transpose(1, 2), x_flat),
            torch.bmm(d_recurrent.transpose(1, 2), states[:, :-1].reshape(k, t_max * b, h)),
            d_input.sum(1),
            d_recurrent.sum(1),
        )
