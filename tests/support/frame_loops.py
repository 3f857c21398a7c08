"""What the loops over frames of a GRU layer are tried on, whoever runs them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stability.engine.recurrent import backward_loop, forward_loop

Loops = tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]
BY_PYTORCH: Loops = (forward_loop, backward_loop)


def operands(k: int, counts: Sequence[int], units: int) -> list[Tensor]:
    """The input's share of the gates, their biases, the initial state and its weights."""
    shapes = [(k, sum(counts), 4 * units), (k, 4 * units), (k, counts[0], units), (k, 3 * units, units)]
    generator = torch.Generator().manual_seed(k)
    return [torch.randn(shape, generator=generator) / (8 if i == 3 else 1) for i, shape in enumerate(shapes)]


def forward_and_back(loops: Loops, operands: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the states, and the results of the backward loop for a fixed loss."""
    gates, biases, h0, w_hh = (v.clone() for v in operands)
    states = loops[0](gates, biases, h0, w_hh, counts)
    return states, *loops[1](gates, states, h0, w_hh, states.cos(), counts)
