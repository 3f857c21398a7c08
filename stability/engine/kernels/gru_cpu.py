"""The loops over the frames of a GRU layer on a CPU, computed by `gru.c`."""

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from stability.engine.kernels.compiler import compiled, threads


def applies(x: Tensor, units: int) -> bool:
    """Return whether the compiled kernel exists and works for a layer of that many units, on an input like x."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and compiled() is not None and units % (2 * compiled().width()) == 0


def forward(gates: Tensor, biases: Tensor, h0: Tensor, w_hh: Tensor, counts: Sequence[int]) -> Tensor:
    """Do the same as `recurrent.forward_loop`."""
    k, units, width = len(gates), h0.shape[-1], compiled().width()
    weights = w_hh.view(k, 3, units // width, width, units).permute(0, 2, 4, 1, 3).contiguous()
    states = gates.new_empty(*gates.shape[:2], units)
    _in_shares(compiled().gru_forward, counts, h0, (weights, biases, gates, states))
    return states


def backward(
    gates: Tensor, states: Tensor, h0: Tensor, w_hh: Tensor, d_states: Tensor, counts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as `recurrent.backward_loop`."""
    k, units, width = len(gates), h0.shape[-1], 2 * compiled().width()
    weights = w_hh.view(k, 3 * units, units // width, width).transpose(1, 2).contiguous()
    befores, d_gates, d_h0 = torch.empty_like(states), torch.empty_like(gates), torch.zeros_like(h0)
    _in_shares(
        compiled().gru_backward, counts, h0, (weights, gates, states, d_states.contiguous(), befores, d_gates, d_h0)
    )
    return befores, d_gates, d_h0


def _in_shares(function: Any, counts: Sequence[int], h0: Tensor, tensors: Sequence[Tensor]) -> None:
    k, _, units = h0.shape
    pointers = [c_void_p(t.data_ptr()) for t in (h0, *tensors)]
    function(*threads(), k, len(counts), (c_int64 * len(counts))(*counts), units, *pointers)
