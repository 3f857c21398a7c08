"""One GRU layer for a stack of trials over packed frames, in PyTorch's gate order (reset, update, new).

Two engines compute the same function. The loop goes over frames: on a GPU by Triton kernels, on a CPU by compiled C for
float32, elsewhere by PyTorch's operations. It has an explicit backward: only one product a frame cannot be batched over
time, and autograd keeps no graph. The library is PyTorch's own GRU (cuDNN on a GPU), for one trial after another. Which
of them a trial uses is decided when it begins (`engines.py`), and never depends on the other trials in its stack.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stability.engine.kernels import gru_cpu, measured, selftest

aten = torch.ops.aten

_TIMES = 20  # how often a kernel whose frames overlap must have the right bits, before it is used

Engine = Literal["loop", "library"]

_Loops = tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]  # over frames, forward and back


class GruWeights(NamedTuple):
    """The weights of one GRU layer of K trials, in PyTorch's order of gates."""

    w_ih: Tensor  # (K, 3H, I)
    w_hh: Tensor  # (K, 3H, H)
    b_ih: Tensor  # (K, 3H)
    b_hh: Tensor  # (K, 3H)


def gru_layer(x: Tensor, h0: Tensor, weights: GruWeights, counts: Sequence[int], engine: Engine = "loop") -> Tensor:
    """Run one GRU layer over packed frames. Under autocast both engines multiply in its dtype.

    Args:
        x: (K, N, I), the rows of frame 0, then those of frame 1, and so on.
        h0: (K, counts[0], H), the initial states.
        weights: The weights of the layer.
        counts: The number of rows of each frame, never rising. N is their sum.
        engine: What computes it.

    Returns:
        The hidden states (K, N, H).
    """
    dtype = product_dtype(x)
    operands = [v.to(dtype) for v in (x, h0, *weights)]
    if dtype == torch.float16 and not x.is_cuda:  # a CPU multiplies it ten times more slowly than float32
        operands = [v.float() for v in operands]
    # PyTorch's autocast would hand cuDNN float16, also under bfloat16: infinite beyond 65504, with no loss scale.
    with torch.autocast(x.device.type, enabled=False):
        states: Tensor = _ENGINES[engine](*operands, counts)
    return states.to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which products with x are computed: that of autocast, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _by_loop(*operands: Any) -> Tensor:
    looped: Tensor = _Layer.apply(*operands)  # type: ignore[no-untyped-call]
    return looped


def _by_library(x: Tensor, h0: Tensor, *weights_and_counts: Any) -> Tensor:
    *weights, counts = weights_and_counts
    trains = torch.is_grad_enabled()  # on CUDA the kernel has a backward only with train=True
    sizes = torch.tensor(counts)
    with warnings.catch_warnings():  # the copy of weights that are not contiguous is cheap compared with the recurrence
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        states = []
        for k in range(len(x)):
            own = [w[k] for w in weights]
            # The positional flags: has_biases, num_layers, dropout, train, bidirectional.
            of_trial, _ = torch.gru(x[k], sizes, h0[k : k + 1].contiguous(), own, True, 1, 0.0, trains, False)
            states.append(of_trial)
    return torch.stack(states)


_ENGINES: dict[Engine, Callable[..., Tensor]] = {"loop": _by_loop, "library": _by_library}


class _Layer(torch.autograd.Function):
    """The loop over frames, with its backward.

    The gates of a slot are adjacent in memory: the new gate's recurrent share, then reset, update and new. So one
    product adds the input's share to the last three in place, another adds the state's share to the first three, and
    the backward finds there what it needs. The weights from the state are rolled to that order.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, counts: Sequence[int]
    ) -> Tensor:
        h = w_hh.shape[-1]
        w_hh, h0 = w_hh.roll(h, 1), h0.contiguous()
        biases = torch.cat([b_hh[:, 2 * h :], b_ih], 1)
        biases[:, h : 3 * h] += b_hh[:, : 2 * h]
        gates = x.new_empty(*x.shape[:2], 4 * h)
        gates[..., h:].baddbmm_(x, w_ih.transpose(1, 2), beta=0)
        loop, ctx.loop_back = _loops(gates, h)
        states, ctx.counts = loop(gates, biases, h0, w_hh, counts), counts
        ctx.save_for_backward(x, h0, w_ih, w_hh, gates, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, w_ih, w_hh, gates, states = ctx.saved_tensors
        h = w_hh.shape[-1]
        before, d_gates, d_h0 = ctx.loop_back(gates, states, h0, w_hh, grad, ctx.counts)
        d_from_x, d_from_state = d_gates[..., h:], d_gates[..., : 3 * h]
        d_bias = d_gates.sum(1)
        return (
            torch.bmm(d_from_x, w_ih) if ctx.needs_input_grad[0] else None,
            d_h0,
            torch.bmm(d_from_x.transpose(1, 2), x),
            torch.bmm(d_from_state.transpose(1, 2), before).roll(-h, 1),
            d_bias[:, h:],
            d_bias[:, : 3 * h].roll(-h, 1),
            None,
        )


def _loops(gates: Tensor, units: int) -> _Loops:
    """Return the fastest loops that work for such gates."""
    if gru_cpu.applies(gates, units):
        return gru_cpu.forward, gru_cpu.backward
    if gates.is_cuda and gates.dtype != torch.float64 and units % 32 == 0:
        return _loops_on_gpu(gates.device, gates.dtype, units, measured.STACK if len(gates) > 1 else 1)
    return forward_loop, backward_loop


@cache
def _loops_on_gpu(device: torch.device, dtype: torch.dtype, units: int, trials: int) -> _Loops:
    by_pytorch = (forward_loop, backward_loop)

    def operands(k: int, counts: Sequence[int], precision: torch.dtype) -> list[Tensor]:
        shapes = [(sum(counts), 4 * units), (4 * units,), (counts[0], units), (3 * units, units)]
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(k, *shape, generator=generator) for shape in shapes]
        drawn[3] /= units**0.5
        return [v.to(dtype).to(device, precision, copy=True) for v in drawn]

    def results(loops: _Loops, given: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
        gates, biases, h0, w_hh = given
        states = loops[0](gates, biases, h0, w_hh, counts)
        return states, *loops[1](gates, states, h0, w_hh, states.cos(), counts)

    def kernels() -> _Loops:
        from stability.engine.kernels import gru_gpu, gru_layer_gpu

        def loops_of(variant: gru_gpu.Variant) -> _Loops:
            module = gru_layer_gpu if variant.launches == "layer" else gru_gpu
            return partial(module.forward, variant=variant), partial(module.backward, variant=variant)

        def seconds(variant: gru_gpu.Variant) -> float:
            given = operands(trials, measured.COUNTS, dtype)
            time = measured.median_seconds(partial(results, loops_of(variant), given, measured.COUNTS), device)
            return time if time == inf or variant.launches == "frame" or waits(variant) else inf

        def waits(variant: gru_gpu.Variant) -> bool:
            # Frames that did not wait for each other would read half a state now and then. The sums are those of the
            # variant that launches frame by frame, so all bits must be.
            given = operands(trials, measured.COUNTS, dtype)
            wanted, *others = (
                results(loops_of(v), [t.clone() for t in given], measured.COUNTS)
                for v in (variant._replace(launches="frame"), *[variant] * _TIMES)
            )
            return all(torch.equal(a, b) for other in others for a, b in zip(other, wanted, strict=True))

        def fastest() -> str:
            times = {name: seconds(variant) for name, variant in variants.items()}
            return min(times, key=times.__getitem__)

        variants = {str(v): v for v in gru_gpu.variants(device, dtype, units)}
        chosen = next(iter(variants))
        if device.type == "cuda":
            what = f"kernels of {trials} GRU layers of {units} units in {dtype}"
            chosen = measured.remembered_choice(device, what, [*variants], fastest)
        loops, counts = loops_of(variants[chosen]), [70, 40, 1]
        own, exact = (operands(2, counts, precision) for precision in (dtype, torch.float64))
        selftest.check_results(results(loops, own, counts), results(by_pytorch, exact, counts))
        return loops

    return selftest.kernel_or_fallback(kernels, by_pytorch, "The GRU takes several launches a frame instead of one")


def forward_loop(gates: Tensor, biases: Tensor, h0: Tensor, w_hh: Tensor, counts: Sequence[int]) -> Tensor:
    """Compute the hidden states frame by frame.

    Args:
        gates: (K, N, 4H), in the order of `_Layer`. The last three hold the input's share; all four are completed in
            place.
        biases: (K, 4H), of the gates.
        h0: (K, counts[0], H), the initial states.
        w_hh: (K, 3H, H), the weights from the state to the first three gates.
        counts: The number of rows of each frame.

    Returns:
        The states (K, N, H).
    """
    h = h0.shape[-1]
    gates[..., :h] = biases[:, None, :h]
    gates[..., h:] += biases[:, None, h:]
    states = gates.new_empty(*gates.shape[:2], h)
    w_hh_t = w_hh.transpose(1, 2).contiguous()
    # Make all views before the loop: a slice for each frame and operand would cost as much as the arithmetic.
    operands = (states, *(gates[..., a * h : b * h] for a, b in ((0, 3), (1, 3), (0, 1), (1, 2), (2, 3), (3, 4))))
    slots = (torch.split(v, list(counts), 1) for v in operands)
    for before, out, from_state, rz, rec_n, r, z, n in zip(_before(h0, states, counts), *slots, strict=True):
        from_state.baddbmm_(before, w_hh_t)
        rz.sigmoid_()
        n.addcmul_(r, rec_n).tanh_()
        torch.lerp(n, before, z, out=out)
    return states


def backward_loop(
    gates: Tensor, states: Tensor, h0: Tensor, w_hh: Tensor, d_states: Tensor, counts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the derivatives of the loss by the gates and the initial states, frame by frame from the last.

    Args:
        gates: (K, N, 4H), as the forward loop left them.
        states: (K, N, H), as the forward loop returned them.
        h0: (K, counts[0], H), the initial states.
        w_hh: (K, 3H, H), the weights from the state to the first three gates.
        d_states: (K, N, H), the derivatives by the states.
        counts: The number of rows of each frame.

    Returns:
        The state before each slot (K, N, H), the derivatives by the gates (K, N, 4H) and those by h0.
    """
    h = h0.shape[-1]
    before = torch.cat(_before(h0, states, counts), 1)
    rec_n, r, z, n = torch.split(gates, h, -1)
    # First d(state) / d(pre-activation of each gate) without the chain through time, for all frames at once.
    d_gates = torch.empty_like(gates)
    to_rec_n, to_r, to_z, to_n = torch.split(d_gates, h, -1)
    aten.tanh_backward.grad_input(1 - z, n, grad_input=to_n)
    torch.mul(to_n, r, out=to_rec_n)
    aten.sigmoid_backward.grad_input(to_n * rec_n, r, grad_input=to_r)
    aten.sigmoid_backward.grad_input(before - n, z, grad_input=to_z)
    # Then the derivatives of the loss, by the chain through time.
    d_h0, d_states = torch.zeros_like(h0), d_states.clone(memory_format=torch.contiguous_format)
    by_gate = d_gates.view(*d_gates.shape[:2], 4, h)
    operands = (d_states, d_states.unsqueeze(-2), z, by_gate, d_gates[..., : 3 * h])
    slots = (torch.split(v, list(counts), 1) for v in operands)
    frames = [*zip(_before(d_h0, d_states, counts), *slots, strict=True)]
    for d_before, d, d_of_gates, z_t, d_by_gate, d_from_state in reversed(frames):
        d_by_gate.mul_(d_of_gates)
        d_before.addcmul_(d, z_t).baddbmm_(d_from_state, w_hh)
    return before, d_gates, d_h0


def _before(h0: Tensor, states: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return views of the states of each frame's rows one frame before. One split costs a quarter of as many slices."""
    sizes = [size for now, then in pairwise([*counts, 0]) for size in (then, now - then)]
    return [h0, *torch.split(states, sizes, 1)[:-2:2]]
