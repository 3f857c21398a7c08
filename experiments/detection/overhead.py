"""Measure the cost of monitoring: a plain PyTorch loop of the `small` model with and without each detector.

    python -m experiments.detection.overhead

Prints each detector's share of a step, in processor time: the median over rounds of (watched - unwatched) / unwatched.
Run it with OMP_NUM_THREADS=1 and nothing else on the machine.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from experiments.benchmarks.step_speed import AfterBackward, plain_loop
from experiments.detection.peers import Peer, installed_peers
from stability import Monitor
from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.data.batches import Batch
from stability.trials.setup import open_data

_ROUNDS, _STEPS = 8, 10


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


def _seconds(train: Callable[[int], None]) -> float:
    start = time.process_time()
    train(_STEPS)
    return (time.process_time() - start) / _STEPS


def main() -> None:
    """Measure and print."""
    register_schema()
    with initialize_config_dir(config_dir=str(conf_folder())):
        c = resolve_config(compose("config"))
    device = torch.device("cpu")
    dataset = open_data(c, device)
    watched = {"stability": _ours} | {kind.name: partial(_peer, kind) for kind in installed_peers()}
    loops = {"nothing": plain_loop(c, dataset, device)}
    loops |= {name: plain_loop(c, dataset, device, watch) for name, watch in watched.items()}
    rounds = [{name: _seconds(train) for name, train in loops.items()} for _ in range(_ROUNDS + 1)][1:]
    plain = median(times["nothing"] for times in rounds)
    print(f"a step unwatched: {plain * 1e3:.1f} ms")
    for name in watched:
        share = median(times[name] / times["nothing"] - 1 for times in rounds)
        print(f"{name:24s} {share:6.1%}")


if __name__ == "__main__":
    main()
