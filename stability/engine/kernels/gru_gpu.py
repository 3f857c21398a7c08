"""The loops over the frames of a GRU layer on a GPU, as Triton kernels: one launch computes one frame.

PyTorch's operations need five launches a frame forward and three backward, and pass their results through memory. A
frame needs all units of the frame before it, so a launch cannot do more than one frame. But no trial and no row of a
batch depends on another, so one launch serves all of a stack. Sums and gates are float32 for every dtype.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stability.engine.kernels import TRITON_OPTIONS


class Variant(NamedTuple):
    """How the work of a frame is divided. With more units a program reads the states less often, and fewer run at once.

    The sums are the same. With 64 units and 4 warps they would not fit into the registers of an A100.
    """

    columns: int  # units of a program
    warps: int  # of a program
    # A launch computes a frame; or a frame, whose programs are started `early`, while the frame before is computed, and
    # wait for it; or a `layer` (`gru_layer_gpu`).
    launches: Literal["frame", "early", "layer"] = "frame"

    def __str__(self) -> str:
        how = {"frame": "", "early": ", early", "layer": ", one launch"}
        return f"{self.columns} columns, {self.warps} warps{how[self.launches]}"


VARIANTS = (Variant(32, 4), Variant(32, 8), Variant(64, 8))
LAYER = Variant(32, 8, "layer")  # its weights fill the shared memory of a multiprocessor, and more sums its registers
_EARLY_FROM = (9, 0)  # the compute capability that has programmatic dependent launch


def variants(device: torch.device, dtype: torch.dtype, units: int) -> list[Variant]:
    """Return the variants that a layer of that many units can have on a device."""
    plain = [v for v in VARIANTS if units % v.columns == 0]
    if device.type != "cuda":  # Triton interprets, and cannot do the others
        return plain
    early = [v._replace(launches="early") for v in plain]
    layer = [LAYER] if dtype != torch.float32 and units % 64 == 0 else []
    return plain + (early if torch.cuda.get_device_capability(device) >= _EARLY_FROM else []) + layer


def forward(
    gates: Tensor, biases: Tensor, h0: Tensor, w_hh: Tensor, counts: Sequence[int], variant: Variant = VARIANTS[0]
) -> Tensor:
    """Do the same as `recurrent.forward_loop`."""
    states = gates.new_empty(*gates.shape[:2], h0.shape[-1])
    launch = _launcher(_forward, gates, h0.shape[-1], variant)
    with torch.cuda.device_of(gates):
        for frame in _frames(h0, states, counts):
            launch(frame.rows, gates, biases, states, w_hh, *frame.place)
    return states


def backward(
    gates: Tensor,
    states: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    d_states: Tensor,
    counts: Sequence[int],
    variant: Variant = VARIANTS[0],
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as `recurrent.backward_loop`."""
    d_states = d_states.contiguous()
    befores, d_gates = torch.empty_like(states), torch.empty_like(gates)
    carried = torch.zeros_like(h0, dtype=torch.float32)
    launch = _launcher(_backward, gates, h0.shape[-1], variant)
    later = (0, 0)  # start and rows of the next frame in time, which is already done
    with torch.cuda.device_of(gates):
        for frame in reversed([*_frames(h0, states, counts)]):
            launch(frame.rows, gates, d_states, w_hh, carried, befores, d_gates, counts[0], *frame.place, *later)
            later = (frame.place[-1], frame.rows)
    d_h0 = carried.to(h0.dtype).baddbmm_(d_gates[:, : counts[0], : w_hh.shape[1]], w_hh)
    return befores, d_gates, d_h0


class _Frame(NamedTuple):
    """The rows of a frame, and where their states are: one frame before, and in this frame."""

    rows: int
    # The tensor with the states before, its slots a trial, where they start in it; where the frame itself starts.
    place: tuple[Tensor, int, int, int]


def _frames(h0: Tensor, states: Tensor, counts: Sequence[int]) -> Iterator[_Frame]:
    starts = [0, *accumulate(counts)]
    yield _Frame(counts[0], (h0, counts[0], 0, 0))
    for before, start, rows in zip(starts, starts[1:], counts[1:], strict=False):
        yield _Frame(rows, (states, starts[-1], before, start))


def _launcher(kernel: Any, gates: Tensor, units: int, variant: Variant) -> Callable[..., None]:
    """Make a function that launches the kernel on one frame. Its first argument is the number of rows."""
    k, slots, _ = gates.shape
    # Tensor cores multiply 64 rows while the weights arrive from memory. Without them, in float32, each row costs time.
    rows, depth = (16, 32) if gates.dtype == torch.float32 else (64, 64 if units % 64 == 0 else 32)
    precision = "tf32" if _allows_tf32() else "ieee"
    options: dict[str, Any] = {"num_warps": variant.warps, **TRITON_OPTIONS}
    if variant.launches == "early":  # Triton has the option from 3.4 on
        options["launch_pdl"] = True

    def launch(going_on: int, *arguments: object) -> None:
        nonlocal kernel, options
        grid = (units // variant.columns, triton.cdiv(going_on, rows), k)
        shape = (units, rows, variant.columns, depth, precision, variant.launches == "early")
        compiled = kernel[grid](*arguments, slots, going_on, *shape, **options)
        # From the second frame on, launch the compiled kernel itself. Triton's lookup of it by argument types takes
        # longer on the host than a frame takes on the GPU. All frames of a layer have the same types, and the numbers
        # that differ are in `_NUMBERS`. The interpreter, which tests use, returns None.
        if compiled is not None:
            kernel, options = compiled, {}

    return launch


def _allows_tf32() -> bool:
    """Return whether the user lets products of float32 be rounded."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from PyTorch 2.9 on; there `allow_tf32` raises if this was set
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


# The arguments that change from frame to frame. By default Triton compiles again for 1 and for multiples of 16.
_NUMBERS = ("first", "before_slots", "before_start", "start", "later_start", "later_rows", "slots", "going_on")


@triton.jit
def _wait_for_the_frame_before():
    """Wait until the kernel before has ended and all its results can be read; then let the programs of the next start.

    Nothing that another kernel writes is read before this. The next kernel waits here in its turn.
    """
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    near = x * (1 - x * x * (1 / 3 - x * x * (2 / 15)))  # near 0 the quotient loses digits
    exp = tl.exp(-2 * tl.abs(x))
    far = (1 - exp) / (1 + exp)
    return tl.where(tl.abs(x) < 0.1, near, tl.where(x < 0, -far, far))


@triton.jit(do_not_specialize=_NUMBERS)
def _forward(
    gates, biases, states, weights, before, before_slots, before_start, start, slots, going_on,
    units: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Complete the gates, which hold the input's share, and compute the states: some units of some rows of a frame."""
    trial = tl.program_id(2).to(tl.int64)
    unit = tl.program_id(0) * columns + tl.arange(0, columns)
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    inside = (row < going_on)[:, None]
    slot = trial * slots + start + row
    before += (trial * before_slots + before_start + row)[:, None] * units
    weights += trial * 3 * units * units + unit[None, :] * units
    rec_new = tl.zeros((rows, columns), tl.float32)
    rec_reset = tl.zeros((rows, columns), tl.float32)
    rec_update = tl.zeros((rows, columns), tl.float32)
    if early:
        _wait_for_the_frame_before()
    for begin in range(0, units, depth):
        along = begin + tl.arange(0, depth)
        h = tl.load(before + along[None, :], mask=inside, other=0.0)
        w = weights + along[:, None]
        rec_new = tl.dot(h, tl.load(w), rec_new, input_precision=precision)
        rec_reset = tl.dot(h, tl.load(w + units * units), rec_reset, input_precision=precision)
        rec_update = tl.dot(h, tl.load(w + 2 * units * units), rec_update, input_precision=precision)
    biases += (trial * 4 * units + unit)[None, :]
    gates += slot[:, None] * 4 * units + unit[None, :]
    rec_new += tl.load(biases).to(tl.float32)
    reset = _sigmoid(rec_reset + tl.load(biases + units) + tl.load(gates + units, mask=inside))
    update = _sigmoid(rec_update + tl.load(biases + 2 * units) + tl.load(gates + 2 * units, mask=inside))
    new = _tanh(reset * rec_new + tl.load(biases + 3 * units) + tl.load(gates + 3 * units, mask=inside))
    last = tl.load(before + unit[None, :], mask=inside).to(tl.float32)
    tl.store(gates, rec_new, mask=inside)
    tl.store(gates + units, reset, mask=inside)
    tl.store(gates + 2 * units, update, mask=inside)
    tl.store(gates + 3 * units, new, mask=inside)
    tl.store(states + slot[:, None] * units + unit[None, :], new + update * (last - new), mask=inside)


@triton.jit(do_not_specialize=_NUMBERS)
def _backward(
    gates, d_states, weights, carried, befores, d_gates, first, before, before_slots, before_start, start,
    later_start, later_rows, slots, going_on,
    units: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """The loss's derivatives by the gates, from those of the next frame: some units of some rows of a frame.

    carried: (K, first, H), float32, is the derivative by a state that reaches it through the next frame's update gate.
    """
    trial = tl.program_id(2).to(tl.int64)
    unit = tl.program_id(0) * columns + tl.arange(0, columns)
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    inside, later = (row < going_on)[:, None], (row < later_rows)[:, None]
    slot = trial * slots + start + row
    carried += (trial * first + row)[:, None] * units + unit[None, :]
    d_later = d_gates + (trial * slots + later_start + row)[:, None] * 4 * units
    weights += trial * 3 * units * units + unit[None, :]
    if early:
        _wait_for_the_frame_before()
    d = tl.load(carried, mask=inside, other=0.0)
    for begin in range(0, 3 * units, depth):
        along = begin + tl.arange(0, depth)
        from_later = tl.load(d_later + along[None, :], mask=later, other=0.0)
        d = tl.dot(from_later, tl.load(weights + along[:, None] * units), d, input_precision=precision)
    here = slot[:, None] * units + unit[None, :]
    d += tl.load(d_states + here, mask=inside, other=0.0)
    before += (trial * before_slots + before_start + row)[:, None] * units + unit[None, :]
    last = tl.load(before, mask=inside, other=0.0)
    tl.store(befores + here, last, mask=inside)
    here = slot[:, None] * 4 * units + unit[None, :]
    gates += here
    d_gates += here
    rec_new = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    reset = tl.load(gates + units, mask=inside, other=0.0).to(tl.float32)
    update = tl.load(gates + 2 * units, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(gates + 3 * units, mask=inside, other=0.0).to(tl.float32)
    d_new = d * (1 - update) * (1 - new * new)
    tl.store(d_gates, d_new * reset, mask=inside)
    tl.store(d_gates + units, d_new * rec_new * reset * (1 - reset), mask=inside)
    tl.store(d_gates + 2 * units, d * (last - new) * update * (1 - update), mask=inside)
    tl.store(d_gates + 3 * units, d_new, mask=inside)
    tl.store(carried, d * update, mask=inside)
