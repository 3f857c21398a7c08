"""How fast are the engines of the recurrence? Times one GRU layer, forward and backward, for stacks of trials.

    python -m experiments.benchmarks.engine_speed [--units 768] [--trials 1 2 4 8 16] [--rows 64] [--frames 500]

On a GPU in bf16. `under autocast` is PyTorch's GRU as most people run it: float32 weights and input under autocast,
which hands cuDNN float16. `ours` is the variant of the kernels that training uses on this GPU; the others follow. Our
loop is also captured in a CUDA graph, with the kernels and with PyTorch's operations: a graph is launched at once but
is valid only for the lengths of one batch. On a CPU all is fp32. Also prints the floor: the least time that the layer
can take on the device. The engines are measured in turn, several times. Run nothing else on the machine meanwhile.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from experiments.benchmarks import step_floor
from stability.core.device import choose_device
from stability.engine import recurrent
from stability.engine.memory import prepare_process
from stability.engine.recurrent import Engine, GruWeights, backward_loop, forward_loop, gru_layer

ROUNDS = 10
_Work = Callable[[], object]


def main() -> None:
    """Measure and print."""
    device = choose_device("auto")
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=768 if on_gpu else 128)
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16] if on_gpu else [1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--frames", type=int, default=500 if on_gpu else 100, help="of the longest row")
    arguments = parser.parse_args()
    prepare_process()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    lengths = torch.linspace(0.15, 1, arguments.rows).mul(arguments.frames).ceil()
    counts = (lengths.unsqueeze(1) > torch.arange(arguments.frames)).sum(0).tolist()
    size, copied = (8192, 1 << 30) if on_gpu else (1024, 1 << 26)
    rates = step_floor.measure(device, dtype, arguments.rows, arguments.units, size, copied)
    rows: list[dict[str, float]] = []
    for trials in arguments.trials:
        operands = _operands(trials, counts, arguments.units, device, dtype)
        times = _times(_engines(operands, counts), device)
        floor = _floor(trials, counts, arguments.units, rates, dtype)
        rows.append({name: t / trials for name, t in {**times, "floor": floor}.items()})
    title = (
        f"ms a trial of a layer of {arguments.units} units on {arguments.rows} rows of {int(lengths[0])} to "
        f"{arguments.frames} frames in {str(dtype).removeprefix('torch.')}, median of {ROUNDS} rounds"
    )
    table = Table("trials", *rows[0], title=title, title_justify="left", box=None, header_style="dim")
    for trials, row in zip(arguments.trials, rows, strict=True):
        table.add_row(str(trials), *(f"{1e3 * t:.2f}" for t in row.values()))
    console = Console(highlight=False, width=150)
    console.print(table)
    console.print(
        f"The floor: operations at {rates.operations / 1e9:.4g} GFLOP/s, the weights from memory for each frame at "
        f"{rates.bandwidth / 1e9:.4g} GB/s, and\nthe chain of the frames at {rates.product * 1e6:.3g} µs a product; "
        "the largest of them."
    )


def _operands(k: int, counts: Sequence[int], h: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(k, sum(counts), h), (k, counts[0], h), (k, 3 * h, h), (k, 3 * h, h), (k, 3 * h), (k, 3 * h)]
    drawn = [torch.randn(shape, device=device) / h**0.5 for shape in shapes]
    return [v.to(dtype).requires_grad_() for v in drawn]


def _engines(operands: list[Tensor], counts: Sequence[int]) -> dict[str, _Work]:
    """Functions that compute the states and all gradients, by the name of the engine."""
    upstream = torch.randn_like(operands[0])

    def run(engine: Engine) -> None:
        x, h0, *weights = operands
        torch.autograd.grad(gru_layer(x, h0, GruWeights(*weights), counts, engine), operands, upstream)

    def by_operations() -> None:
        with patch.object(recurrent, "_loops", return_value=(forward_loop, backward_loop)):
            run("loop")

    together = partial(run, "loop")
    engines: dict[str, _Work] = {
        "PyTorch's GRU, in turn": partial(run, "library"),
        "PyTorch's operations": by_operations,
        "ours": together,
    }
    if upstream.is_cuda:
        engines["under autocast, in turn"] = _under_autocast(operands, counts)
        engines |= {f"ours, {variant}": _by_variant(variant, together) for variant in _variants(upstream)}
        engines |= {"operations in a graph": _captured(by_operations), "ours in a graph": _captured(together)}
    return engines


def _variants(states: Tensor) -> list[Any]:
    from stability.engine.kernels import gru_gpu  # late: there is no Triton for every machine

    return gru_gpu.variants(states.device, states.dtype, states.shape[-1])


def _by_variant(variant: Any, work: _Work) -> _Work:
    """Let the kernels divide their work in that way."""
    from stability.engine.kernels import gru_gpu, gru_layer_gpu

    module = gru_layer_gpu if variant.launches == "layer" else gru_gpu
    loops = partial(module.forward, variant=variant), partial(module.backward, variant=variant)

    def by_variant() -> None:
        with patch.object(recurrent, "_loops", return_value=loops):
            work()

    return by_variant


def _under_autocast(operands: list[Tensor], counts: Sequence[int]) -> _Work:
    """PyTorch's own module on a packed sequence, one trial after another, as most people train it in bf16."""
    x, h0, *weights = (v.detach().float() for v in operands)
    units, names = x.shape[-1], ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    modules = []
    for k in range(len(x)):
        module = torch.nn.GRU(units, units, device=x.device)
        module.load_state_dict({name: w[k] for name, w in zip(names, weights, strict=True)})
        modules.append(module)
    sizes = torch.tensor(counts)

    def work() -> None:
        for k, module in enumerate(modules):
            packed = PackedSequence(x[k].detach().requires_grad_(), sizes)
            with torch.autocast("cuda", torch.bfloat16):
                states, _ = module(packed, h0[k : k + 1])
            torch.autograd.grad(states.data.sum(), [packed.data, *module.parameters()])

    return work


def _captured(work: _Work) -> _Work:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _times(engines: dict[str, _Work], device: torch.device) -> dict[str, float]:
    """The median seconds of each engine."""
    times = defaultdict[str, list[float]](list)
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, work in engines.items():
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - begun)
    return {name: median(own[1:]) for name, own in times.items()}


def _floor(trials: int, counts: Sequence[int], h: int, rates: step_floor.Rates, dtype: torch.dtype) -> float:
    """The floor in seconds, if no cache keeps the weights from one frame to the next."""
    multiplied = (
        trials * sum(counts) * 2 * 3 * h * 2 * h * 3
    )  # from input and state; forward, and backward to both factors
    moved = trials * 2 * len(counts) * 3 * h * h * dtype.itemsize
    return max(multiplied / rates.operations, moved / rates.bandwidth, 2 * len(counts) * rates.product)


if __name__ == "__main__":
    main()
