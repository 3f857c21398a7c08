"""What a sweep would do: its trials, what of them is done, and how long the rest takes on this machine."""

import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stability.config import Config, short_name
from stability.files import LAST, VERDICT
from stability.studies.plan import Plan, Planned, show_level
from stability.studies.progress import duration
from stability.studies.search import Search

_SECONDS = 2.0  # of training by which a kind of trial is timed, and before that half of it to warm up
_BLOCK = 5  # steps after which the clock is read


def show_plan(plan: Plan) -> None:
    """Print the cells with their trials, and the expected time."""
    console = Console(highlight=False, soft_wrap=True)
    steps = {trial.folder: _steps(trial) for trial in plan.trials}  # None of a finished trial
    table = Table(*map(short_name, plan.factors), "seeds", box=None, header_style="dim")
    for cell, trials in plan.cells.items():
        seeds = [f"{trial.config.seed} {_status(steps[trial.folder])}" for trial in trials]
        table.add_row(*(show_level(level) for _, level in cell), ", ".join(seeds))
    Console(highlight=False, soft_wrap=True, width=500).print(table)
    todo = [trial for trial in plan.trials if steps[trial.folder] is not None]
    begun = sum(bool(steps[trial.folder]) for trial in todo)
    console.print(
        f"{len(plan.trials)} trials: {len(plan.trials) - len(todo)} done, {begun} to resume, {len(todo) - begun} new"
    )
    if not todo:
        return
    cost: dict[str, tuple[float, float]] = {}
    for trial in todo:
        if _kind(trial.config) not in cost:
            cost[_kind(trial.config)] = _timed(trial.config)
    seconds = 0.0
    for trial in todo:
        step, validation = cost[_kind(trial.config)]
        left = trial.config.steps - (steps[trial.folder] or 0)
        seconds += left * step + (left // trial.config.validate_every + 1) * validation
    each = ", ".join(sorted({f"{1000 * step:.0f} ms" for step, _ in cost.values()}))
    console.print(
        f"about {duration(seconds)} on this machine, one trial after another ({each} a step, measured just now)"
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


def _kind(settings: Config) -> str:
    """What a step's time depends on."""
    values = asdict(settings)
    return repr([values[name] for name in ("model", "batch", "data", "precision", "device")])


def _timed(settings: Config) -> tuple[float, float]:
    """How many seconds a step and a validation of such a trial take, by making some."""
    import torch

    from stability.training.decoder import init_parameters
    from stability.training.loop import evaluate, new_stack, train_steps
    from stability.training.trial import choose_device, open_data

    torch.set_flush_denormal(True)
    dataset = open_data(settings)
    parameters = init_parameters(settings.model, dataset.n_features, len(dataset.sessions), settings.seed)
    stack = new_stack([settings], [parameters], choose_device(settings.device))

    def steps(seconds: float) -> float:
        begun, made = time.perf_counter(), 0
        while (took := time.perf_counter() - begun) < seconds or not made:
            train_steps(stack, dataset.train, _BLOCK)
            made += _BLOCK
        return took / made

    steps(_SECONDS / 2)
    step = steps(_SECONDS)
    begun = time.perf_counter()
    evaluate(stack, dataset.val)
    return step, time.perf_counter() - begun
