"""How fast are batches read? Times three ways of reading them, and a copy of a batch in memory, which is the floor.

    python -m experiments.benchmarks.data_speed [overrides]          # make benchmark-data

The ways are: HDF5 files opened again for each batch, as in the official trainer; HDF5 files that stay open; and the
place where training keeps the features on this machine. A batch is ready when it is on the device, in float32. They are
measured in turn. Without overrides the data are 4 days of `data=synthetic_t15`. Run nothing else on the machine
meanwhile.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from statistics import median

import h5py
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.core.device import choose_device
from stability.data.batches import training_batch
from stability.data.records import Split
from stability.data.t15_reader import FileRows
from stability.trials.setup import open_data

DEFAULT = ("data=synthetic_t15", "data.synthetic.days=4", "model=official")
ROUNDS, BATCHES = 8, 4


def opened_again(split: Split, utterances: tuple[int, ...], device: torch.device) -> Tensor:
    """A batch as a plain loader makes it: a file opened for each day, its utterances read, padded and copied."""
    features = []
    for day, of_day in groupby(utterances, lambda i: split.records[i].day):
        with h5py.File(split.path / split.sessions[day] / "data_train.hdf5", locking=False) as file:
            features += [torch.from_numpy(file[split.records[i].name]["input_features"][()]) for i in of_day]
    return pad_sequence(features, batch_first=True).to(device)


def main() -> None:
    """Time all ways and print."""
    register_schema()
    with initialize_config_dir(config_dir=str(conf_folder())):
        c = resolve_config(compose("config", overrides=sys.argv[1:] or [*DEFAULT]))
    device = choose_device(c.device)
    dataset = open_data(c, device)
    split = dataset.train
    files = [split.path / session / "data_train.hdf5" for session in split.sessions]
    in_files = replace(split, rows=FileRows(files, split.records, split.n_features))

    def batch_of(split: Split, step: int) -> Tensor:
        return training_batch(split, c.batch.size, c.batch.days, seed=0, step=step).features

    drawn = [training_batch(split, c.batch.size, c.batch.days, seed=0, step=step).utterances for step in range(BATCHES)]
    sources = [batch_of(split, step) for step in range(BATCHES)]
    targets = [torch.empty_like(source) for source in sources]
    nbytes = sum(source.nbytes for source in sources) / BATCHES

    ways: dict[str, Callable[[int], object]] = {
        "HDF5 files opened again": lambda step: opened_again(split, drawn[step], device),
        "HDF5 files kept open": lambda step: batch_of(in_files, step).to(device),
        f"ours: {dataset.location}": lambda step: batch_of(split, step),
        "floor: a copy of the batch": lambda step: targets[step].copy_(sources[step]),
    }

    def seconds(way: Callable[[int], object]) -> float:
        start = time.perf_counter()
        for step in range(BATCHES):
            way(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / BATCHES

    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(ROUNDS + 1)][1:]  # the first warms up
    first, *_, floor = ways
    table = Table("", "ms a batch", "batches a second", "GB/s", "times as fast", "of the floor")
    for name in ways:
        own = median(r[name] for r in rounds)
        gain = median(r[first] / r[name] for r in rounds)
        share = median(r[floor] / r[name] for r in rounds)
        rate = f"{nbytes / own / 1e9:.2f}"
        table.add_row(name, f"{own * 1e3:.1f}", f"{1 / own:.1f}", rate, f"{gain:.1f}", f"{share:.0%}")
    console = Console()
    what = f"{c.batch.size} utterances of {c.batch.days} days, {nbytes / 1e6:.0f} MB with their padding, on {device}"
    console.print(f"{what}; medians of {ROUNDS} rounds of {BATCHES} batches")
    console.print(table)


if __name__ == "__main__":
    main()
