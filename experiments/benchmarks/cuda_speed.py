"""How fast is training on CUDA? Times the official trainer and ours on one GPU, with the same sessions.

    python -m experiments.benchmarks.cuda_speed CLONE [--data FOLDER] [--quick]
    make benchmark-cuda OFFICIAL=CLONE

CLONE is your clone of the official trainer. It runs unchanged, torch.compile included. FOLDER holds sessions in the
layout of the T15 recordings; without it, synthetic ones of that size are written once. The two trainers run in turn,
several times, each in its own process, and are timed from outside by what they log. Run nothing else on the machine
meanwhile.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import official, step_floor
from experiments.benchmarks.stack_speed import PARTS, composed, timed_parts
from experiments.benchmarks.step_floor import Floor, Rates
from stability.config.schema import Config, Synthetic
from stability.core.errors import StabilityError
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.data import synthetic
from stability.data.augment import draw_cut
from stability.data.batches import training_batch
from stability.diagnosis.readers import read_log
from stability.engine.decoder import init_parameters
from stability.engine.memory import prepare_process
from stability.engine.optimizer import DAY_LAYER
from stability.engine.stack import new_stack
from stability.engine.step import train_steps
from stability.trials.setup import open_data

_WORK = Path("outputs/benchmark-cuda")
_SMOOTHED = 20  # steps over which a loss is a median
_TIMED = 50  # steps of ours whose parts are timed
_POLL = 0.02  # seconds
_TAIL = 20  # last lines of a training's output that an error shows
_QUERY = "timestamp,memory.used,utilization.gpu"


class _Size(NamedTuple):
    """How much is run. The warm-up is long, because the official trainer compiles again for a while."""

    rounds: int
    steps: int
    warm_up: int
    days: int  # of the synthetic sessions
    train_utterances: int  # a day
    val_utterances: int  # a day


_WHOLE, _QUICK = _Size(3, 1000, 400, 45, 40, 32), _Size(2, 200, 100, 6, 20, 8)


class Training(NamedTuple):
    """A training to run in its own process, and a function that reads from its files how far it is."""

    name: str
    command: Sequence[str]
    folder: Path  # where it is started
    log: Path  # for `read_log`
    progress: Callable[[], tuple[int, int]]  # steps and validations


class Sample(NamedTuple):
    """A measurement of the GPU by its driver."""

    when: float  # as `time.time` counts
    memory: float  # bytes in use
    busy: float  # share of the time since the last measurement in which a kernel ran


@dataclass(frozen=True)
class Run:
    """The measurements of a training. Times are in seconds since its process was started."""

    begun: float  # as `time.time` counts
    seen: Sequence[tuple[float, int]]  # times at which more steps were found in the log, and their number
    validated: float  # when the validation after the last step was logged
    losses: NDArray[np.float32]  # (steps,)
    gpu: Sequence[Sample] = ()  # from before its start to its end

    def since(self, step: int) -> float:
        """The time at which that many steps were logged."""
        return next(when for when, count in self.seen if count >= step)

    def rate(self, warm_up: int) -> float:
        """Steps a second after the warm-up."""
        (begun, before), (ended, after) = next(look for look in self.seen if look[1] >= warm_up), self.seen[-1]
        return (after - before) / (ended - begun)

    def smoothed(self) -> NDArray[np.float32]:
        """The median of the last 20 losses, from the 20th step on."""
        smoothed: NDArray[np.float32] = np.median(np.lib.stride_tricks.sliding_window_view(self.losses, _SMOOTHED), 1)
        return smoothed

    def memory(self) -> float:
        """The largest number of bytes of GPU memory that it used."""
        return max(sample.memory for sample in self.gpu) - self.gpu[0].memory

    def busy(self, warm_up: int) -> float:
        """Share of the time after the warm-up in which the GPU was busy."""
        begun, ended = self.begun + self.since(warm_up), self.begun + self.seen[-1][0]
        return float(np.mean([sample.busy for sample in self.gpu if begun <= sample.when <= ended]))

    def until(self, loss: float) -> float:
        """The time at which the smoothed loss first was at most this. It must have been."""
        return self.since(int(np.argmax(self.smoothed() <= loss)) + _SMOOTHED)


def main() -> None:
    """Run both trainers, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("official", nargs="?", type=Path, metavar="CLONE", help="a clone of the official trainer")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="sessions in the layout of the T15 recordings")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the official trainer")
    parser.add_argument("--quick", action="store_true", help="few steps and small synthetic sessions")
    arguments = parser.parse_args()
    try:
        _benchmark(arguments.official, arguments.data, arguments.python, _QUICK if arguments.quick else _WHOLE)
    except StabilityError as error:
        sys.exit(f"error: {error}")


def _benchmark(clone: Path | None, data: Path | None, python: str, size: _Size) -> None:
    if not torch.cuda.is_available():
        raise StabilityError(
            f"PyTorch {torch.__version__} sees no CUDA device here. This benchmark needs one NVIDIA GPU, its driver, "
            "and a PyTorch built with CUDA."
        )
    folder = official.trainer_folder(clone)
    python = str(Path(shutil.which(python) or python).absolute())  # the process is started in another folder
    theirs = official.torch_version(folder, python)
    console = Console(highlight=False, width=150)
    work, gpu = _WORK.absolute(), torch.device("cuda")
    if data is None:
        data = synthetic.make_dataset(made_up(size), work)
    console.print(f"{torch.cuda.get_device_name(gpu)}; official on PyTorch {theirs}, ours on {torch.__version__}")
    # Delete all that was compiled and indexed before: the first start is measured, too.
    shutil.rmtree(work / "runs", ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "runs" / "inductor")
    runs: dict[str, list[Run]] = {"official": [], "ours": []}
    for number in range(size.rounds):
        for training in _trainings(folder, data.absolute(), work / "runs", number, size.steps, python):
            with _sampling() as samples:
                run = watch(training, size.steps)
            run = replace(run, gpu=parse_samples(samples.read_text()))
            console.print(f"round {number + 1}: {training.name}, {run.rate(size.warm_up):.2f} steps a second")
            runs[training.name].append(run)
    console.print(comparison(runs["official"], runs["ours"], size.warm_up))
    prepare_process()  # as in our training; only here, since the official one would inherit it
    c = composed(*_overrides(data.absolute(), work / "runs"))
    rates = step_floor.measure(gpu, torch.bfloat16, c.batch.size, c.model.units, size=8192, copied=1 << 30)
    console.print(
        f"The floor of a step: its operations at {rates.operations / 1e12:.4g} TFLOP/s in bf16, its bytes at "
        f"{rates.bandwidth / 1e9:.4g} GB/s,\nand the chain of its recurrence at {rates.product * 1e6:.3g} µs a product."
    )
    console.print(_parts(c, gpu, rates))


def made_up(size: _Size) -> Synthetic:
    """The settings of synthetic sessions with the sizes of the real ones, as many as the benchmark needs."""
    trials = (
        f"data.synthetic.train_utterances={size.train_utterances}",
        f"data.synthetic.val_utterances={size.val_utterances}",
    )
    settings = composed("data=synthetic_t15", f"data.synthetic.days={size.days}", *trials).data.synthetic
    assert settings is not None
    return settings


def _trainings(
    trainer: Path, data: Path, runs: Path, number: int, steps: int, python: str
) -> tuple[Training, Training]:
    """The official training and ours."""
    theirs, ours = (runs / f"{name}-{number}" for name in ("official", "ours"))
    log = theirs / "out" / official.LOG
    command = official.prepare(trainer, data, theirs, steps, python)
    own = [sys.executable, "-m", "stability.train", *_overrides(data, runs), f"steps={steps}", f"hydra.run.dir={ours}"]
    return (
        Training("official", command, theirs, log, partial(official.progress, log)),
        Training("ours", own, runs, ours, partial(progress, ours)),
    )


def _overrides(data: Path, runs: Path) -> list[str]:
    """The overrides for our training: the official model, without validations and checkpoints before the end."""
    never = ("validate_every=1000000", "checkpoint_every=1000000")
    place = (f"data.path={data}", f"outputs={runs / 'outputs'}")
    return ["model=official", "data=t15", "device=cuda", "tracking=none", *never, *place]


def progress(trial: Path) -> tuple[int, int]:
    """The numbers of training steps and validations in a trial's folder so far."""
    tables = (trial / SIGNALS_FILE, trial / VALIDATION_FILE)
    steps, validations = (max(t.read_bytes().count(b"\n") - 1, 0) if t.exists() else 0 for t in tables)
    return steps, validations


def watch(training: Training, steps: int) -> Run:
    """Run a training to its end and time it. Raises StabilityError if it ends too early."""
    seen: list[tuple[float, int]] = []
    validated = np.nan
    with tempfile.TemporaryFile("w+") as output:
        begun = time.time()
        process = subprocess.Popen(
            training.command, cwd=training.folder, stdout=output, stderr=output, start_new_session=True
        )
        try:
            running = True
            while running:
                running = process.poll() is None
                now, (trained, validations) = time.time() - begun, training.progress()
                if trained > (seen[-1][1] if seen else 0):
                    seen.append((now, trained))
                if validations == 2 and np.isnan(validated):  # after the first step and after the last
                    validated = time.time() - begun  # later than `now`: the last step may be new, too
                time.sleep(_POLL)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode or not seen or seen[-1][1] < steps or np.isnan(validated):
            output.seek(0)
            tail = "".join(output.readlines()[-_TAIL:])
            raise StabilityError(
                f"The {training.name} training ended (exit status {process.returncode}) after "
                f"{seen[-1][1] if seen else 0} of {steps} steps. The end of its output:\n{tail}"
            )
    return Run(begun, seen, validated, read_log(training.log).signals["loss"])


@contextmanager
def _sampling() -> Iterator[Path]:
    """A file to which the driver writes samples of the GPU from before the body to its end."""
    gpu = str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")
    command = (
        "nvidia-smi",
        f"--id=GPU-{gpu}",
        f"--query-gpu={_QUERY}",
        "--format=csv,noheader,nounits",
        "--loop-ms=100",
    )
    with tempfile.NamedTemporaryFile() as file:
        try:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        except FileNotFoundError:
            raise StabilityError(
                "nvidia-smi is not on the PATH. It comes with NVIDIA's driver: install that."
            ) from None
        try:
            while not (begun := Path(file.name).read_text()) and process.poll() is None:
                time.sleep(_POLL)
            if process.poll() is not None:
                raise StabilityError(f"{' '.join(command)} ended unexpectedly: {begun}")
            yield Path(file.name)
        finally:
            process.kill()
            process.wait()


def parse_samples(text: str) -> list[Sample]:
    """The samples that nvidia-smi wrote, without an incomplete last line. What a GPU does not report is NaN."""

    def number(field: str) -> float:
        return float(field) if field.replace(".", "").isdigit() else np.nan

    samples = []
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            when, memory, busy = line.strip().split(", ")
            moment = datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp()
            samples.append(Sample(moment, number(memory) * 2**20, number(busy) / 100))
    return samples


def comparison(theirs: Sequence[Run], ours: Sequence[Run], warm_up: int) -> Table:
    """The table that compares the rounds of both. The loss to reach is one that every run reached."""
    loss = max(float(run.smoothed()[-1]) for run in (*theirs, *ours))
    first, again, every = slice(0, 1), slice(1, None), slice(None)
    rows: list[tuple[str, slice, Callable[[Run], float], str]] = [
        ("steps a second, data loading included", every, lambda run: run.rate(warm_up), ".2f"),
        (f"seconds from the start to a loss of {loss:.1f}", every, lambda run: run.until(loss), ".1f"),
        ("seconds to the first step, first start", first, lambda run: run.since(1), ".1f"),
        ("seconds to the first step, from caches", again, lambda run: run.since(1), ".1f"),
        ("seconds of a validation", every, lambda run: run.validated - run.seen[-1][0], ".1f"),
        ("GB of GPU memory, at most", every, lambda run: run.memory() / 1e9, ".2f"),
        ("share of the time in which the GPU is busy", every, lambda run: run.busy(warm_up), ".0%"),
    ]
    title = f"median (least to most) of {len(ours)} rounds, the first {warm_up} steps of each not counted"
    columns = ("", "official", "ours", "ours / official, median of the rounds")
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="dim")
    for name, rounds, measure, form in rows:
        values = [[measure(run) for run in runs[rounds]] for runs in (theirs, ours)]
        spread = [f"{median(v):{form}} ({min(v):{form}} to {max(v):{form}})" for v in values]
        table.add_row(name, *spread, f"{median(own / other for other, own in zip(*values, strict=True)):.2f}")
    return table


def _parts(c: Config, gpu: torch.device, rates: Rates) -> Table:
    """The time of each part of our step, and the floor of its batches."""
    dataset = open_data(c, gpu)
    parameters = init_parameters(c.model, dataset.n_features, len(dataset.sessions), c.seed)
    stack = new_stack([c], [parameters], gpu)
    train_steps(stack, dataset.train, _TIMED)
    steps = range(stack.step, stack.step + _TIMED)
    with timed_parts(gpu) as spent:
        begun = time.perf_counter()
        train_steps(stack, dataset.train, len(steps))
        whole = (time.perf_counter() - begun) / len(steps)
    used = {n: c.batch.days / len(dataset.sessions) if n in DAY_LAYER else 1 for n in parameters}
    weights = round(sum(p.numel() * used[n] for n, p in parameters.items()))
    floors = []
    for step in steps:
        batch = training_batch(dataset.train, c.batch.size, c.batch.days, seed=c.seed, step=step)
        bins = batch.bins - draw_cut(c.aug.max_cut, c.seed, step)
        floors.append(step_floor.floors(c.model, dataset.n_features, bins, batch.label_counts, weights, rates))
    mean = {part: Floor(*np.mean([floor[part] for floor in floors], 0)) for part in PARTS}
    return parts_table({part: spent[part] / len(steps) for part in PARTS}, whole, mean)


def parts_table(spent: dict[str, float], whole: float, floors: dict[str, Floor]) -> Table:
    """The seconds and floors of a step and its parts. A part's floor is its largest bound, a step's is their sum."""
    title = "ms of our step, waiting for the GPU at the end of each part, and of its floor"
    columns = ("part", "ms", "operations", "bytes", "chain", "floor", "floor / ms")
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="dim")

    def add(part: str, seconds: float, floor: float, bounds: Sequence[float] = ()) -> None:
        cells = [f"{1e3 * value:.2f}" for value in bounds] or [""] * len(Floor._fields)
        table.add_row(part, f"{1e3 * seconds:.2f}", *cells, f"{1e3 * floor:.2f}", f"{floor / seconds:.0%}")

    for part, seconds in spent.items():
        add(part, seconds, max(floors[part]), floors[part])
    table.add_row("rest", f"{1e3 * (whole - sum(spent.values())):.2f}")
    add("step", whole, sum(map(max, floors.values())))
    return table


if __name__ == "__main__":
    main()
