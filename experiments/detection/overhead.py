"""Measure the cost of monitoring: a plain PyTorch loop of the `small` model with and without each detector.

    python -m experiments.detection.overhead [DETECTOR…]

Prints each detector's share of a step, in processor time, and its 95 % interval. The loops take turns at every step,
and each is as often the first, so that a slower minute of the machine slows all of them. Some detectors do more at
every tenth step. So the cost is the median over rounds at each of ten steps, averaged over the ten. A step that the
machine disturbed does not count. For one detector it takes about three minutes. Run it with OMP_NUM_THREADS=1 and
nothing else on the machine.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from experiments.benchmarks.step_speed import AfterBackward, plain_loop
from experiments.detection.peers import Peer, installed_peers
from stability import Monitor
from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.data.batches import Batch
from stability.trials.setup import open_data

_ROUNDS = 60
_STEPS = 10  # in a round


def _ours(model: nn.Module, optimizer: torch.optim.Optimizer) -> AfterBackward:
    monitor = Monitor(model, optimizer)

    def watch(step: int, loss: Tensor, logits: Tensor, frames: Tensor, inputs: Tensor, batch: Batch) -> None:
        targets = {"labels": batch.labels, "label_counts": batch.label_counts}
        monitor.step(loss, logits, frames, inputs=inputs, **targets, batch=batch.utterances)

    return watch


def _peer(kind: type[Peer], model: nn.Module, optimizer: torch.optim.Optimizer) -> AfterBackward:
    peer = kind(model, optimizer, 1000)

    def watch(step: int, loss: Tensor, logits: Tensor, frames: Tensor, inputs: Tensor, batch: Batch) -> None:
        peer.before_update(step, loss.detach(), logits.detach(), inputs, frames)
        peer.after_update(step, loss.detach())

    return watch


def _round(loops: dict[str, Callable[[int], None]]) -> list[dict[str, float]]:
    """Train some steps with each loop in turn, and return the processor time of each step, in seconds."""
    steps = []
    order = [*loops.items()]
    for _ in range(_STEPS):
        seconds = {}
        for name, train in order:
            start = time.process_time()
            train(1)
            seconds[name] = time.process_time() - start
        steps.append(seconds)
        order = [*order[1:], order[0]]
    return steps


def _share(costs: np.ndarray) -> float:
    """Return the cost of a step, from those of all rounds, `[rounds, steps]`."""
    return float(np.median(costs, axis=0).mean())


def _interval(costs: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of `_share`, by the bootstrap over rounds."""
    drawn = np.random.default_rng(0).integers(0, len(costs), (10_000, len(costs)))
    low, high = np.quantile([_share(costs[rounds]) for rounds in drawn], [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure and print."""
    register_schema()
    with initialize_config_dir(config_dir=str(conf_folder())):
        c = resolve_config(compose("config"))
    device = torch.device("cpu")
    dataset = open_data(c, device)
    watched = {"stability": _ours} | {kind.name: partial(_peer, kind) for kind in installed_peers()}
    if unknown := {*sys.argv[1:]} - {*watched}:
        sys.exit(f"There is no detector {', '.join(sorted(unknown))}. There are {', '.join(watched)}.")
    watched = {name: watch for name, watch in watched.items() if name in sys.argv[1:]} or watched
    loops = {"nothing": plain_loop(c, dataset, device)}
    loops |= {name: plain_loop(c, dataset, device, watch) for name, watch in watched.items()}
    rounds = [_round(loops) for _ in range(_ROUNDS + 1)][1:]
    seconds = {name: np.array([[step[name] for step in steps] for steps in rounds]) for name in loops}
    plain = np.median(seconds["nothing"])
    print(f"a step unwatched: {plain * 1e3:.1f} ms")
    for name in watched:
        costs = (seconds[name] - seconds["nothing"]) / plain
        low, high = _interval(costs)
        print(f"{name:24s} {_share(costs):6.1%}  ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
