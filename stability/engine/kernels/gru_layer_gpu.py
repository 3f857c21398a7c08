"""The loops over the frames of a GRU layer on a GPU, in one launch a layer, for bf16 and fp16.

A program has some units of all frames. It reads its weights once, and the compiler keeps them in shared memory, as they
are the same in every frame. The programs of a trial wait for each other after each frame, so all of them must run at
the same time: the launch is cooperative, and large stacks are launched in parts. The sums are those of `gru_gpu`.

No GPU has run this yet. `recurrent` uses it where it was measured to be the fastest, with the bits of `gru_gpu`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stability.core.device import to_device
from stability.engine.kernels import TRITON_OPTIONS, gru_gpu
from stability.engine.kernels.gru_gpu import Variant, _sigmoid, _tanh

_ROWS, _DEPTH = 64, 64  # rows of a program, and how much of a sum is added up at once: as in `gru_gpu`


def forward(gates: Tensor, biases: Tensor, h0: Tensor, w_hh: Tensor, counts: Sequence[int], variant: Variant) -> Tensor:
    """Do the same as `recurrent.forward_loop`."""
    at_once = _trials_at_once(gates.device, counts[0], h0.shape[-1], variant)
    if not at_once:
        return gru_gpu.forward(gates, biases, h0, w_hh, counts, variant._replace(launches="frame"))
    states = gates.new_empty(*gates.shape[:2], h0.shape[-1])
    _launch(_forward, (gates, biases, h0, w_hh, states), counts, at_once, variant)
    return states


def backward(
    gates: Tensor,
    states: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    d_states: Tensor,
    counts: Sequence[int],
    variant: Variant,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as `recurrent.backward_loop`."""
    at_once = _trials_at_once(gates.device, counts[0], h0.shape[-1], variant)
    if not at_once:
        return gru_gpu.backward(gates, states, h0, w_hh, d_states, counts, variant._replace(launches="frame"))
    befores, d_gates = torch.empty_like(states), torch.empty_like(gates)
    carried = torch.empty_like(h0, dtype=torch.float32)
    operands = (gates, d_states.contiguous(), h0, w_hh, states, befores, d_gates, carried)
    _launch(_backward, operands, counts, at_once, variant)
    d_h0 = carried.to(h0.dtype).baddbmm_(d_gates[:, : counts[0], : w_hh.shape[1]], w_hh)
    return befores, d_gates, d_h0


def _trials_at_once(device: torch.device, rows: int, units: int, variant: Variant) -> int:
    """Return how many trials the device computes at the same time. Each multiprocessor holds one program's weights."""
    programs = units // variant.columns * int(triton.cdiv(rows, _ROWS))
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count) // programs
    # Triton's interpreter runs one program after another, so none may wait for another.
    return int(units == variant.columns)


def _launch(kernel: Any, operands: Sequence[Tensor], counts: Sequence[int], at_once: int, variant: Variant) -> None:
    """Launch the kernel on so many trials at once. The operands begin with the gates, and have a trial axis."""
    (k, slots, units), device = operands[0].shape, operands[0].device
    units //= 4
    blocks = triton.cdiv(counts[0], _ROWS)
    starts = [0, *accumulate(counts)][:-1]
    places = to_device(torch.tensor([starts, counts], dtype=torch.int32), device)
    arrived = torch.zeros(k, blocks, dtype=torch.int32, device=device)
    # With more stages the compiler would read a frame's operands ahead of the barrier.
    options = {"num_warps": variant.warps, "num_stages": 1, "launch_cooperative_grid": True, **TRITON_OPTIONS}
    with torch.cuda.device_of(operands[0]):
        for begin in range(0, k, at_once):
            part = [v[begin : begin + at_once] for v in (*operands, arrived)]
            grid = (units // variant.columns, blocks, len(part[0]))
            numbers = (len(counts), slots, counts[0])
            kernel[grid](*part, places, *numbers, units, _ROWS, variant.columns, _DEPTH, **options)


_NUMBERS = ("frames", "slots", "first")


_PATIENCE = tl.constexpr(1 << 22)  # looks, of a microsecond or less
_GIVEN_UP = tl.constexpr(1 << 30)  # more than can arrive


@triton.jit
def _wait_for_all(arrived, wanted):
    """Wait until so many programs have come here. What they wrote before can be read after it.

    Return 0, or NaN if they did not come within some seconds. Then nobody waits any more, and no result can be mistaken
    for a right one.
    """
    tl.debug_barrier()  # all threads of this program have written
    count = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1
    looks = 0
    while (count < wanted) & (looks < _PATIENCE):
        count = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
        looks += 1
    if count < wanted:
        tl.atomic_max(arrived, _GIVEN_UP, sem="relaxed", scope="gpu")
        count += _GIVEN_UP
    tl.debug_barrier()
    return tl.where(count < _GIVEN_UP, 0.0, float("nan"))


@triton.jit(do_not_specialize=_NUMBERS)
def _forward(
    gates, biases, h0, weights, states, arrived, places, frames, slots, first,
    units: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """Complete the gates, which hold the input's share, and compute the states: some units of some rows."""
    trial = tl.program_id(2).to(tl.int64)
    unit = tl.program_id(0) * columns + tl.arange(0, columns)
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    arrived += trial * tl.num_programs(1) + tl.program_id(1)
    weights += trial * 3 * units * units + unit[None, :] * units
    to_new = ()
    to_reset = ()
    to_update = ()
    for i in tl.static_range(units // depth):
        w = weights + (i * depth + tl.arange(0, depth))[:, None]
        to_new += (tl.load(w),)  # type: ignore[assignment]
        to_reset += (tl.load(w + units * units),)  # type: ignore[assignment]
        to_update += (tl.load(w + 2 * units * units),)  # type: ignore[assignment]
    biases += (trial * 4 * units + unit)[None, :]
    bias_rec_new = tl.load(biases).to(tl.float32)
    bias_reset = tl.load(biases + units).to(tl.float32)
    bias_update = tl.load(biases + 2 * units).to(tl.float32)
    bias_new = tl.load(biases + 3 * units).to(tl.float32)
    before = h0 + (trial * first + row)[:, None] * units
    last = tl.load(before + unit[None, :], mask=(row < first)[:, None], other=0.0).to(tl.float32)
    for frame in range(0, frames):
        inside = (row < tl.load(places + frames + frame))[:, None]
        slot = trial * slots + tl.load(places + frame) + row
        rec_new = tl.zeros((rows, columns), tl.float32)
        rec_reset = tl.zeros((rows, columns), tl.float32)
        rec_update = tl.zeros((rows, columns), tl.float32)
        for i in tl.static_range(units // depth):
            h = tl.load(before + (i * depth + tl.arange(0, depth))[None, :], mask=inside, other=0.0)
            rec_new = tl.dot(h, to_new[i], rec_new)
            rec_reset = tl.dot(h, to_reset[i], rec_reset)
            rec_update = tl.dot(h, to_update[i], rec_update)
        own = gates + slot[:, None] * 4 * units + unit[None, :]
        rec_new += bias_rec_new
        reset = _sigmoid(rec_reset + bias_reset + tl.load(own + units, mask=inside))
        update = _sigmoid(rec_update + bias_update + tl.load(own + 2 * units, mask=inside))
        new = _tanh(reset * rec_new + bias_new + tl.load(own + 3 * units, mask=inside))
        tl.store(own, rec_new, mask=inside)
        tl.store(own + units, reset, mask=inside)
        tl.store(own + 2 * units, update, mask=inside)
        tl.store(own + 3 * units, new, mask=inside)
        state = (new + update * (last - new)).to(states.dtype.element_ty)
        before = states + slot[:, None] * units
        tl.store(before + unit[None, :], state, mask=inside)
        last = state.to(tl.float32) + _wait_for_all(arrived, (frame + 1) * tl.num_programs(0))


@triton.jit(do_not_specialize=_NUMBERS)
def _backward(
    gates, d_states, h0, weights, states, befores, d_gates, carried, arrived, places, frames, slots, first,
    units: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """The loss's derivatives by the gates, from the last frame on: some units of some rows.

    carried: (K, first, H), float32, is the derivative by h0 that reaches it through the first frame's update gate.
    """
    trial = tl.program_id(2).to(tl.int64)
    unit = tl.program_id(0) * columns + tl.arange(0, columns)
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    arrived += trial * tl.num_programs(1) + tl.program_id(1)
    weights += trial * 3 * units * units + unit[None, :]
    from_gates = ()
    for i in tl.static_range(3 * units // depth):
        from_gates += (tl.load(weights + (i * depth + tl.arange(0, depth))[:, None] * units),)  # type: ignore[assignment]
    d = tl.zeros((rows, columns), tl.float32)
    d_later = d_gates + (trial * slots + row)[:, None] * 4 * units  # of the next frame in time, which has no rows yet
    later = (row < 0)[:, None]
    for back in range(0, frames):
        frame = frames - 1 - back
        inside = (row < tl.load(places + frames + frame))[:, None]
        slot = trial * slots + tl.load(places + frame) + row
        for i in tl.static_range(3 * units // depth):
            along = i * depth + tl.arange(0, depth)
            d = tl.dot(tl.load(d_later + along[None, :], mask=later, other=0.0), from_gates[i], d)
        here = slot[:, None] * units + unit[None, :]
        d += tl.load(d_states + here, mask=inside, other=0.0)
        if frame == 0:
            before = h0 + trial * first * units
        else:
            before = states + (trial * slots + tl.load(places + frame - 1)) * units
        last = tl.load(before + row[:, None] * units + unit[None, :], mask=inside, other=0.0)
        tl.store(befores + here, last, mask=inside)
        own = gates + slot[:, None] * 4 * units + unit[None, :]
        rec_new = tl.load(own, mask=inside, other=0.0).to(tl.float32)
        reset = tl.load(own + units, mask=inside, other=0.0).to(tl.float32)
        update = tl.load(own + 2 * units, mask=inside, other=0.0).to(tl.float32)
        new = tl.load(own + 3 * units, mask=inside, other=0.0).to(tl.float32)
        d_new = d * (1 - update) * (1 - new * new)
        d_later = d_gates + slot[:, None] * 4 * units
        later = inside
        d_own = d_later + unit[None, :]
        tl.store(d_own, d_new * reset, mask=inside)
        tl.store(d_own + units, d_new * rec_new * reset * (1 - reset), mask=inside)
        tl.store(d_own + 2 * units, d * (last - new) * update * (1 - update), mask=inside)
        tl.store(d_own + 3 * units, d_new, mask=inside)
        d = d * update + _wait_for_all(arrived, (back + 1) * tl.num_programs(0))
    tl.store(carried + (trial * first + row)[:, None] * units + unit[None, :], d, mask=(row < first)[:, None])
