"""How fast are stacks? Times their steps and those of a plain PyTorch loop, the parts of a step, and whole sweeps.

    python -m experiments.benchmarks.stack_speed [--quick]          # make benchmark-stacks
    python -m experiments.benchmarks.stack_speed model=official data=synthetic_t15 data.synthetic.days=6 --trials 1 4 16

Everything is measured in turn, several times, in about 35 minutes. With overrides it measures only the steps of that
configuration. Eight trials share a seed, and so their batches, as in `experiment=diagnosis`. Sweeps are run with each
launcher. Run nothing else on the machine meanwhile.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import step_floor
from experiments.benchmarks.step_speed import plain_loop
from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.config.schema import Config
from stability.core.device import DTYPES, choose_device, choose_precision
from stability.data.records import Dataset
from stability.engine import batch, gradients, measure, predict, step
from stability.engine.decoder import init_parameters
from stability.engine.memory import prepare_process
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials.setup import open_data

_UNITS, _TRIALS = (32, 64, 128, 256), (1, 2, 4, 8, 16, 32)
_PER_SEED = 8  # trials that share a seed
_BUDGET = 500  # steps of a trial of `model=small`
_SETTLED = 3.0  # seconds without a new trial, after which the steps are counted
_LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib, 2": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "stacked": ("hydra/launcher=stacked",),
    "stacked, 2 workers": ("hydra/launcher=stacked", "hydra.launcher.workers=2"),
}
# The parts of a step, and the functions of each. Time in a nested function counts only for its own part.
PARTS = {
    "data": ((batch, "training_batch"),),
    "augmentation": ((gradients, "training_inputs"),),
    "forward": ((predict, "forward"),),
    "CTC": ((predict, "ctc_losses"),),
    "backward": ((torch.autograd, "grad"),),
    "optimiser": ((step, "adamw_step"), (step, "gradient_norms"), (step, "clip_coefficients")),
    "signals": (
        (measure, "norms_by_part"),
        (measure, "output_signals"),
        (measure, "frame_information"),
        (measure, "input_max"),
        (measure, "infeasible_targets"),
        (measure, "update_signals"),
        (measure, "epsilon_signals"),
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*", help="measure only the steps of this configuration")
    parser.add_argument("--trials", nargs="+", type=int, help="sizes of the stacks")
    parser.add_argument("--quick", action="store_true", help="only the smallest, in two minutes")
    arguments = parser.parse_intermixed_args()
    units, trials = (_UNITS[:1], _TRIALS[1:3]) if arguments.quick else (_UNITS, _TRIALS)
    trials = arguments.trials or trials
    rounds, seconds = (2, 2.0) if arguments.quick else (5, 4.0)
    console = Console(highlight=False, width=150)
    prepare_process()
    every = [arguments.overrides] if arguments.overrides else [[f"model.units={number}"] for number in units]
    configs = {c.model.units: c for c in (composed(*overrides) for overrides in every)}
    device = choose_device("auto")
    dataset = open_data(next(iter(configs.values())), device)
    console.print(_steps(configs, trials, dataset, device, rounds))
    console.print(_shares(configs, trials, dataset, device, rounds))
    if not arguments.overrides:
        console.print(_sweeps(units, trials, seconds))


def composed(*overrides: str) -> Config:
    """Return the default configuration with these overrides."""
    register_schema()
    with initialize_config_dir(str(conf_folder())):
        return resolve_config(compose("config", overrides=[*overrides]))


def _stack(c: Config, trials: int, dataset: Dataset, device: torch.device) -> Stack:
    configs = [deepcopy(c) for _ in range(trials)]
    for k, own in enumerate(configs):
        own.seed, own.schedule.lr_max = k // _PER_SEED, 0.005 - 0.0001 * (k % _PER_SEED)
    parameters = [init_parameters(c.model, dataset.n_features, len(dataset.sessions), own.seed) for own in configs]
    return new_stack(configs, parameters, device)


def _seconds(train: Callable[[int], object], steps: int) -> float:
    """Seconds that a step takes."""
    begun = time.perf_counter()
    train(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def _steps(
    configs: dict[int, Config], trials: Sequence[int], dataset: Dataset, device: torch.device, rounds: int
) -> Table:
    title = f"ms a step and trial, median of {rounds} rounds (stack of one / plain: median of the rounds' ratios)"
    columns = ("units", "plain loop", *(f"stack of {k}" for k in sorted({1, *trials})), "stack of one / plain")
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="dim")
    for units, c in configs.items():
        stacks = {k: _stack(c, k, dataset, device) for k in sorted({1, *trials})}
        plain = plain_loop(c, dataset, device)
        times = defaultdict[int, list[float]](list)
        for _ in range(rounds + 1):
            times[0].append(_seconds(plain, 2))
            for k, stack in stacks.items():
                times[k].append(_seconds(partial(train_steps, stack, dataset.train), 2) / k)
        ratio = median(one / reference for one, reference in zip(times[1][1:], times[0][1:], strict=True))
        table.add_row(str(units), *(f"{median(t[1:]) * 1e3:.1f}" for t in times.values()), f"{ratio:.2f}")
    return table


def _shares(
    configs: dict[int, Config], trials: Sequence[int], dataset: Dataset, device: torch.device, rounds: int
) -> Table:
    size = 8192 if device.type == "cuda" else 1024
    dtype = DTYPES[choose_precision(next(iter(configs.values())).precision.dtype, device)]
    rate = _matrix_rate(device, dtype, size)
    title = (
        f"share of a step's time in each part, and in a floor of all its products at {rate / 1e9:.0f} GFLOP/s, the "
        f"rate of one of {size} x {size} in {str(dtype).removeprefix('torch.')} (backward: that of CTC, too)"
    )
    columns = ("units", "trials", "ms a step", *PARTS, "rest", "floor", "GB of GPU, at most")
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="dim")
    for units, c in configs.items():
        for k in trials:
            stack = _stack(c, k, dataset, device)
            with step_floor.counter() as counter:
                train_steps(stack, dataset.train, 1)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with timed_parts(device) as spent:
                whole = _seconds(partial(train_steps, stack, dataset.train), 2 * rounds)
            shares = {part: spent[part] / (2 * rounds) / whole for part in PARTS}
            floor = counter.get_total_flops() / rate / whole
            cells = [f"{cell:.0%}" for cell in (*shares.values(), 1 - sum(shares.values()), floor)]
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else ""
            table.add_row(str(units), str(k), f"{whole * 1e3:.1f}", *cells, memory)
    return table


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second in a product of two matrices."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(_seconds(lambda steps: [a @ a for _ in range(steps)], 5) for _ in range(5))


@contextmanager
def timed_parts(device: torch.device) -> Iterator[dict[str, float]]:
    """Count the seconds that the body spends in each part of a step."""
    spent: dict[str, float] = defaultdict(float)
    running: list[str] = []
    last = 0.0

    def switch() -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if running:
            spent[running[-1]] += now - last
        last = now

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            switch()
            running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                running.pop()

        return call

    plain = [(part, module, name, getattr(module, name)) for part, names in PARTS.items() for module, name in names]
    try:
        for part, module, name, function in plain:
            setattr(module, name, timed(part, function))
        yield spent
    finally:
        for _, module, name, function in plain:
            setattr(module, name, function)


def _sweeps(units: Sequence[int], trials: Sequence[int], seconds: float) -> Table:
    title = (
        f"trials of {_BUDGET} steps a minute (and MB of memory of its own), by the steps that a sweep makes in "
        f"{seconds:.0f} s or more, once it has begun; validation and figures not counted"
    )
    table = Table("units", "trials", *_LAUNCHERS, title=title, title_justify="left", box=None, header_style="dim")
    for number in units:
        for k in trials:
            cells = []
            for launcher in _LAUNCHERS.values():
                rate, memory = _sweep(number, k, launcher, seconds)
                cells.append(f"{60 * rate / _BUDGET:.1f} ({memory / 1e6:.0f})")
            table.add_row(str(number), str(k), *cells)
    return table


def _sweep(units: int, trials: int, launcher: Sequence[str], seconds: float) -> tuple[float, float]:
    """Steps a second of all trials of a sweep together, and the largest memory of its processes, in bytes."""
    rates = ",".join(f"{0.005 - 0.0001 * i:.4f}" for i in range(min(trials, _PER_SEED)))
    factors = (f"schedule.lr_max={rates}", f"seed=range({-(-trials // _PER_SEED)})", f"model.units={units}")
    never = ("steps=1000000", "validate_every=1000000", "checkpoint_every=1000000")
    data = f"data.path={Path('outputs/data').absolute()}"
    with tempfile.TemporaryDirectory() as outputs, tempfile.TemporaryFile("w+") as log:
        rest = (data, f"outputs={outputs}", "tracking=none", "sweep.claims=null")
        command = [sys.executable, "-m", "stability.train", "--multirun", *launcher, *factors, *never, *rest]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            return _watch(process, Path(outputs), seconds)
        except RuntimeError:
            log.seek(0)
            sys.exit(f"error: {' '.join(command)} ended unexpectedly:\n{log.read()}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watch(process: "subprocess.Popen[bytes]", outputs: Path, seconds: float) -> tuple[float, float]:
    readings: list[tuple[float, int]] = []  # times at which more steps were found, and their number
    begun, since, memory = 0, 0.0, 0.0
    while len(readings) < 3 or readings[-1][0] - readings[0][0] < seconds:
        if process.poll() is not None:
            raise RuntimeError
        now, tables = time.perf_counter(), [path.read_bytes().count(b"\n") for path in outputs.glob("*/*/signals.csv")]
        if len(tables) > begun:
            begun, since, readings = len(tables), now, []
        if now - since > _SETTLED and sum(tables) > (readings[-1][1] if readings else begun):  # each file has a header
            readings.append((now, sum(tables)))
        memory = max(memory, _own_memory(process.pid))
        time.sleep(0.05)
    return (readings[-1][1] - readings[0][1]) / (readings[-1][0] - readings[0][0]), memory


def _own_memory(process: int) -> float:
    """Bytes that a process and its descendants do not share with others."""
    total = 0.0
    for one in (psutil.Process(process), *psutil.Process(process).children(recursive=True)):
        try:
            total += one.memory_full_info().uss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return total


if __name__ == "__main__":
    main()
