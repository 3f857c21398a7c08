"""Prints what a sweep would do: its trials, which of them are done, and how long the rest takes on this machine."""

import shlex
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from stability.config.schema import Config
from stability.core.files import LAST, PREVIOUS, VERDICT
from stability.core.text import counted, duration
from stability.sweeps.jobs import PlannedTrial
from stability.sweeps.launcher import is_stacked
from stability.sweeps.listing import print_cells
from stability.sweeps.pace import steps_made
from stability.sweeps.plan import Plan
from stability.sweeps.search import Search
from stability.sweeps.stacks import stack_key
from stability.trials.program import command_words, resumes_in
from stability.trials.program_runs import seconds_run

_SECONDS = 2.0  # of training by which a kind of trial is timed, after half of it to warm up
_BLOCK = 5  # steps between two readings of the clock


class _Cost(NamedTuple):
    """The time that a trial of one kind takes on this machine, if `at_once` trials are trained together."""

    at_once: int
    step: float  # seconds, for one trial
    validation: float  # seconds, for one trial


def show_plan(plan: Plan, launcher: DictConfig) -> None:
    """Print the trials by cell, and how long those that are not finished take on this machine.

    Args:
        plan: The trials of the sweep.
        launcher: Hydra's settings of the launcher.
    """
    steps = {trial.folder: _next_step(trial) for trial in plan.trials}
    print_cells(plan, {folder: _status(step) for folder, step in steps.items()})
    to_do = [trial for trial in plan.trials if steps[trial.folder] is not None]
    begun = sum(bool(steps[trial.folder]) for trial in to_do)
    counts = f"{len(plan.trials) - len(to_do)} done, {begun} to resume, {len(to_do) - begun} new"
    print(f"{counted(len(plan.trials), 'trial')}: {counts}")
    if to_do and to_do[0].config.runs_command:
        print(f"The first of them starts: {shlex.join(command_words(to_do[0].config, to_do[0].folder))}")
        print(_estimate_commands([trial for trial in plan.trials if trial not in to_do], len(to_do), launcher))
    elif to_do:
        print(_estimate(to_do, steps, launcher))


def show_search(search: Search | None, study: Path) -> None:
    """Print what is known about a sweep whose sweeper chooses the trials while it runs.

    Args:
        search: How far the search is, if that is known.
        study: The folder of the sweep.
    """
    if search:
        print(
            f"The sweeper chooses {counted(search.total, 'trial')} while it runs: {search.done} done, "
            f"{search.total - search.done} to do"
        )
    else:
        print("The sweeper chooses the trials while it runs: their number is not known before.")
    finished = sum((folder / VERDICT).exists() for folder in study.glob("*"))
    print(f"{counted(finished, 'trial')} in {study} {'has' if finished == 1 else 'have'} a verdict.")


def _next_step(trial: PlannedTrial) -> int | None:
    """Return the step at which the trial would continue, or None if it is finished."""
    if trial.config.fresh:
        return 0
    if (trial.folder / VERDICT).exists():
        return None
    if trial.config.runs_command:
        return steps_made(trial.folder) if resumes_in(trial.config, trial.folder) else 0
    for path in (trial.folder / LAST, trial.folder / PREVIOUS):
        if path.exists():
            import torch  # late: it takes seconds

            with suppress(Exception):  # PyTorch raises a different kind for each way a file can be broken
                step: int = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["stability"]["step"]
                return step
    return 0


def _status(step: int | None) -> str:
    if step is None:
        return "done"
    return f"resumes at step {step}" if step else "new"


def _estimate(trials: Sequence[PlannedTrial], steps: Mapping[Path, int | None], launcher: DictConfig) -> str:
    """Measure the time of a step and of a validation. Return how long the trials take with this launcher, in words."""
    kinds: dict[str, list[PlannedTrial]] = defaultdict(list)
    for trial in trials:
        kinds[stack_key(trial.config)].append(trial)
    stacked = is_stacked(launcher)
    seconds, costs = 0.0, []
    for same in kinds.values():
        cost = _measure([trial.config for trial in same], launcher.size if stacked else 1)
        costs.append(cost)
        for trial in same:
            left = trial.config.steps - (steps[trial.folder] or 0)
            seconds += left * cost.step + (left // trial.config.validate_every + 1) * cost.validation
    most = max(cost.at_once for cost in costs)
    how = f"in stacks of up to {most}" if most > 1 else "one trial after another"
    if stacked and launcher.workers > 1:
        how = f"{how} with one worker"
    each = ", ".join(sorted({f"{1000 * cost.step:.0f} ms" for cost in costs}))
    unit = "a step and trial" if most > 1 else "a step"
    return f"about {duration(seconds)} on this machine, {how} ({each} {unit}, measured just now)"


def _estimate_commands(done: Sequence[PlannedTrial], to_do: int, launcher: DictConfig) -> str:
    """Return how long commands take, by those that have ended, in words."""
    seconds = [own for trial in done if (own := seconds_run(trial.folder))]
    if not seconds:
        return "How long a trial takes is not known before the first one has ended."
    workers = launcher.workers if is_stacked(launcher) else 1
    how = f"with {workers} workers" if workers > 1 else "one after another"
    mean = sum(seconds) / len(seconds)
    return f"about {duration(to_do * mean / workers)}, {how}, as long as those that are done ({duration(mean)} each)"


def _measure(configs: Sequence[Config], at_once: int | None) -> _Cost:
    """Train some of the trials for a moment.

    Args:
        configs: The trials, which can share a stack.
        at_once: How many are trained at a time; None for as many as memory holds.
    """
    from stability.core.device import choose_device
    from stability.engine.decoder import init_parameters
    from stability.engine.evaluate import evaluate
    from stability.engine.memory import prepare_process
    from stability.engine.stack import Stack, new_stack
    from stability.engine.step import train_steps
    from stability.trials.capacity import Capacity
    from stability.trials.recorder import recorder_bytes
    from stability.trials.setup import open_data

    prepare_process()
    device = choose_device(configs[0].device)
    dataset = open_data(configs[0], device)

    def stack_of(size: int) -> Stack:
        sessions = len(dataset.sessions)
        chosen = configs[:size]
        parameters = [init_parameters(c.model, dataset.n_features, sessions, c.seed) for c in chosen]
        return new_stack(chosen, parameters, device)

    def seconds_a_step(seconds: float) -> float:
        begun, made = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < seconds or not made:
            train_steps(stack, dataset.train, _BLOCK)
            made += _BLOCK
        return elapsed / made

    stack = stack_of(1)
    capacity = Capacity(device, dataset, recorder_bytes(stack))
    seconds_a_step(0)  # the first steps show what memory a trial needs
    size = min(len(configs), at_once or capacity.trials(sharing=1))
    stack = stack_of(size)
    seconds_a_step(_SECONDS / 2)
    step = seconds_a_step(_SECONDS)
    begun = time.perf_counter()
    evaluate(stack, dataset.val)
    return _Cost(size, step / size, (time.perf_counter() - begun) / size)
