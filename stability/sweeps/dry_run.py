"""What a sweep would do: its trials, what of them is done, and how long the rest takes on this machine."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from stability.analysis.trials import level_text
from stability.config.names import short_name
from stability.config.schema import Config
from stability.core.files import LAST, VERDICT
from stability.core.text import duration
from stability.sweeps.launcher import is_stacked, kind
from stability.sweeps.plan import Plan, Planned
from stability.sweeps.search import Search

_SECONDS = 2.0  # of training by which a kind of trial is timed, and before that half of it to warm up
_BLOCK = 5  # steps after which the clock is read


def show_plan(plan: Plan, launcher: DictConfig) -> None:
    """Print the cells with their trials, and the expected time with a launcher of these settings."""
    console = Console(highlight=False, soft_wrap=True)
    steps = {trial.folder: _steps(trial) for trial in plan.trials}  # None of a finished trial
    table = Table(*map(short_name, plan.factors), "seeds", box=None, header_style="dim")
    for cell, trials in plan.cells.items():
        seeds = [f"{trial.config.seed} {_status(steps[trial.folder])}" for trial in trials]
        table.add_row(*(level_text(level) for _, level in cell), ", ".join(seeds))
    Console(highlight=False, soft_wrap=True, width=500).print(table)
    todo = [trial for trial in plan.trials if steps[trial.folder] is not None]
    begun = sum(bool(steps[trial.folder]) for trial in todo)
    console.print(
        f"{len(plan.trials)} trials: {len(plan.trials) - len(todo)} done, {begun} to resume, {len(todo) - begun} new"
    )
    if not todo:
        return
    kinds: dict[str, list[Planned]] = defaultdict(list)
    for trial in todo:
        kinds[kind(trial.config)].append(trial)
    stacked = is_stacked(launcher)
    seconds, sizes, each = 0.0, [], set()
    for trials in kinds.values():
        size, step, validation = _timed([trial.config for trial in trials], launcher.size if stacked else 1)
        for trial in trials:
            left = trial.config.steps - (steps[trial.folder] or 0)
            seconds += left * step + (left // trial.config.validate_every + 1) * validation
        sizes.append(size)
        each.add(f"{1000 * step:.0f} ms")
    how = f"in stacks of up to {max(sizes)}" if max(sizes) > 1 else "one trial after another"
    if stacked and launcher.workers > 1:
        how = f"{how} by one worker"
    console.print(
        f"about {duration(seconds)} on this machine, {how} "
        f"({', '.join(sorted(each))} a step{' and trial' if max(sizes) > 1 else ''}, measured just now)"
    )


def show_search(search: Search | None, study: Path) -> None:
    """Print what can be said of a sweep whose sweeper chooses its trials as it goes."""
    done = sum((folder / VERDICT).exists() for folder in study.glob("*"))
    if search:
        print(f"{search.total} trials, chosen as it goes: {search.done} done, {search.total - search.done} to do")
    else:
        print("The sweeper chooses its trials as it goes.")
    print(f"{done} trials in {study} have their verdict.")


def _steps(trial: Planned) -> int | None:
    """The step before which the trial would go on; None if it is finished."""
    if trial.config.fresh:
        return 0
    if (trial.folder / VERDICT).exists():
        return None
    if not (trial.folder / LAST).exists():
        return 0
    import torch  # late: it takes seconds

    step: int = torch.load(trial.folder / LAST, map_location="cpu", weights_only=True, mmap=True)["stability"]["step"]
    return step


def _status(step: int | None) -> str:
    return "done" if step is None else f"resumes at step {step}" if step else "new"


def _timed(configs: Sequence[Config], at_once: int | None) -> tuple[int, float, float]:
    """How many of these trials are trained `at_once` (None: as memory allows), and what each takes then.

    That is the seconds of a step and of a validation, found by making some.
    """
    from stability.engine.decoder import init_parameters
    from stability.engine.loop import Stack, evaluate, new_stack, train_steps
    from stability.engine.memory import prepare_host
    from stability.trials.run import choose_device, open_data
    from stability.trials.scheduler import Memory

    prepare_host()
    dataset, device = open_data(configs[0]), choose_device(configs[0].device)

    def stack_of(size: int) -> Stack:
        sessions = len(dataset.sessions)
        chosen = configs[:size]
        parameters = [init_parameters(c.model, dataset.n_features, sessions, c.seed) for c in chosen]
        return new_stack(chosen, parameters, device)

    def steps(seconds: float) -> float:
        begun, made = time.perf_counter(), 0
        while (took := time.perf_counter() - begun) < seconds or not made:
            train_steps(stack, dataset.train, _BLOCK)
            made += _BLOCK
        return took / made

    memory, stack = Memory(device, dataset), stack_of(1)
    steps(0)
    size = min(len(configs), at_once or memory.holds(1))
    stack = stack_of(size)
    steps(_SECONDS / 2)
    step = steps(_SECONDS)
    begun = time.perf_counter()
    evaluate(stack, dataset.val)
    return size, step / size, (time.perf_counter() - begun) / size
