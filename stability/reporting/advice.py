"""Advises what to change or to run next after a study, each with its command."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from stability.analysis.levels import Level, level_text, ordered
from stability.analysis.matching import cells_of, main_factors
from stability.analysis.rulings import Ruling, at_scale
from stability.analysis.settings import place_of
from stability.analysis.trial import Trial, Trials
from stability.config.names import short_name
from stability.core.files import CONFIG, ERROR, HYDRA_OVERRIDES, VERDICT, exists
from stability.core.passwords import hide_passwords
from stability.core.text import counted, first_of, listed
from stability.diagnosis.outcomes import MARKS
from stability.reporting.recorded import SEARCHES, TRAIN, sweep_command, sweeper
from stability.reporting.wording import cell_text, counts_text, level_of, override

_FEW_SEEDS, _MOST_SEEDS = 3, 30  # the fewest and the most to advise
_TOO_SHORT = ("in_warmup", "too_few_readings")  # causes of `undecided` that only a longer training mends
_MOST_CELLS = 200  # that are searched for the healthy cell nearest to a failed one
_SPARSE = 3  # a study with less than a third of the combinations of its levels is no grid


@dataclass(frozen=True)
class Advice:
    """A piece of advice, with its command if there is one."""

    text: str
    command: str = ""


def advise(trials: Trials, rulings: Sequence[Ruling]) -> list[Advice]:
    """Advise what to do next: finish the sweep, train longer, repair failed cells, add seeds, run missing trials.

    A search has no missing trials: it is not meant to run all combinations.
    """
    found = [*_finish_sweeps(trials), *_train_longer(trials), *_repair_cells(trials), *_add_seeds(trials, rulings)]
    if trials.trials and sweeper(place_of(trials.trials[0]).parent) in SEARCHES:
        return found
    return [*found, *_run_claimed_trials(trials, rulings), *_complete_grid(trials)]


def unfinished(trials: Trials) -> tuple[list[Path], list[Path]]:
    """Return the folders of trials that have started but have no verdict, and those of them that crashed."""
    begun = [path for path, _ in trials.left_out if exists(path / CONFIG) and not exists(path / VERDICT)]
    return begun, [path for path in begun if (path / ERROR).exists()]


def _finish_sweeps(trials: Trials) -> list[Advice]:
    begun, crashed = unfinished(trials)
    found = []
    for study in dict.fromkeys(path.parent for path in begun):
        own = [path for path in begun if path.parent == study]
        lost = sum(path in crashed for path in own)
        text = f"{counted(len(own), 'trial')} in {study.name} {'has' if len(own) == 1 else 'have'} no verdict yet"
        text += f", {lost} of them because of a crash (reasons below)" if lost else ""
        command = sweep_command(study)
        text += ". To finish the sweep:" if command else ". Start the sweep again to finish it."
        found.append(Advice(text, command))
    return found


def _train_longer(trials: Trials) -> list[Advice]:
    """Advise a longer budget, if trials were too short to show anything."""
    short = [trial for trial in trials.trials if trial.cause in _TOO_SHORT]
    if not short:
        return []
    text = (
        f"{len(short)} of {counted(len(trials.trials), 'trial')} ended within the warm-up or after very few steps, and "
    )
    text += "say nothing about the settings. Give more steps"
    words = shlex.split(sweep_command(place_of(short[0]).parent))
    longer = _without({"steps"}, words)
    if longer == words or not short[0].ours:
        than = f" than {short[0].factors['steps']}" if "steps" in short[0].factors else ""
        return [Advice(f"{text}{than}.")]
    return [Advice(f"{text}, or leave them at their default:", shlex.join(longer))]


def _failed(trial: Trial, outcome: str) -> bool:
    return trial.outcome == outcome and not trial.healthy and trial.cause not in _TOO_SHORT


def _repair_cells(trials: Trials) -> list[Advice]:
    """For each kind of failure, find the failed cell that is nearest to a healthy one, and say what to change there."""
    factors = main_factors(trials)
    cells = cells_of(trials)
    shares = {cell: sum(t.healthy for t in own) / len(own) for cell, own in cells.items()}
    healthy = [cell for cell in cells if shares[cell] > 0.5][:_MOST_CELLS]
    ranks = [{level: place for place, level in enumerate(levels)} for levels in factors.values()]

    def distance(a: Sequence[Level], b: Sequence[Level]) -> tuple[int, int, float]:
        apart = [abs(rank[x] - rank[y]) for rank, x, y in zip(ranks, a, b, strict=True)]
        return sum(map(bool, apart)), sum(apart), -shares[tuple(b)]

    found: dict[tuple[Level, ...], Advice] = {}
    for outcome in MARKS:
        failed = [c for c in cells if shares[c] < 0.5 and any(_failed(t, outcome) for t in cells[c])]
        pairs = [(a, b) for a in failed[:_MOST_CELLS] for b in healthy]
        if not pairs:
            continue
        bad, good = min(pairs, key=lambda pair: distance(*pair))
        changes = [
            f"{short_name(name)} from {level_text(a)} to {level_text(b)}"
            for name, a, b in zip(factors, bad, good, strict=True)
            if a != b
        ]
        where = cell_text(dict(zip(factors, bad, strict=True)))
        own = cells[good]
        text = f"At {where} ({counts_text(cells[bad])}), change {listed(changes)}: "
        were = "was" if len(own) == 1 else "were"
        text += f"there, {sum(t.healthy for t in own)} of {counted(len(own), 'trial')} {were} healthy."
        if own[0].ours:
            seed = max(trial.seed or 0 for trial in trials.trials) + 1
            found.setdefault(bad, Advice(f"{text} With a new seed:", _cell_command(own[0], list(factors), seed)))
        else:
            found.setdefault(bad, Advice(text))
    return [*found.values()]


def _add_seeds(trials: Trials, rulings: Sequence[Ruling]) -> list[Advice]:
    """Advise the number of seeds, up to 30, that decides the most claims."""
    open_ = sorted(r.seeds_needed for r in rulings if r.ruling == "inconclusive" and r.seeds_needed)
    if not open_:
        return []
    seeds = max((needed for needed in open_ if needed <= _MOST_SEEDS), default=open_[0])
    decided = [r.claim.id for r in rulings if r.ruling == "inconclusive" and r.seeds_needed and r.seeds_needed <= seeds]
    run = len({trial.seed for trial in trials.trials})
    text = f"{seeds} seeds instead of {run} would decide about {len(decided)} of the inconclusive claims "
    text += f"({listed(decided if len(decided) < 6 else [*decided[:4], 'others'])})."
    if not _is_ours(trials):
        return [Advice(text)]
    return [Advice(f"{text} Finished trials are not run again:", _grid_command(trials, f"seed=range({seeds})"))]


def _run_claimed_trials(trials: Trials, rulings: Sequence[Ruling]) -> list[Advice]:
    """Take the first of the claims about trials that were not run, and advise the sweep that runs them."""
    known = {name for trial in trials.trials for name in trial.factors}
    lost = [(r.claim, [r.claim.where, *r.claim.cells]) for r in rulings if not r.seeds and at_scale(r.claim, trials)]
    asked = [(claim, cells) for claim, cells in lost if all(name in known for cell in cells for name in cell)]
    if not asked:
        return []
    text = f"{counted(len(asked), 'claim')} {'is' if len(asked) == 1 else 'are'} about trials that were not run."
    if not _is_ours(trials):
        return [Advice(f"{text} They are {first_of([claim.id for claim, _ in asked], 4)}.")]
    claim, (where, *compared) = asked[0]
    cells = [{**where, **cell} for cell in compared or [{}]]
    text += f" To run those of {claim.id}, {counted(_FEW_SEEDS * len(cells), 'trial')} in {counted(len(cells), 'cell')}"
    like = next((trial for trial in trials.trials if trial.healthy), trials.trials[0])
    if others := {name: like.factors.get(name) for name in main_factors(trials) if name not in cells[0]}:
        text += f", with {cell_text(others)}"
    levels = {name: dict.fromkeys(cell.get(name) for cell in cells) for name in cells[0]}
    crossed = math.prod(map(len, levels.values())) == len(cells)
    sweeps = [levels] if crossed else [{name: [level] for name, level in cell.items()} for cell in cells]
    return [Advice(f"{text}:", "\n".join(_cells_command(like, [*others], levels) for levels in sweeps))]


def _complete_grid(trials: Trials) -> list[Advice]:
    """Advise to run the combinations of a grid that were not run."""
    factors = main_factors(trials) | {"seed": ordered(trial.seed for trial in trials.trials)}
    size = math.prod(map(len, factors.values()))
    there = {tuple(level_of(trial, name) for name in factors) for trial in trials.trials}
    missing = size - len(there)
    if not missing or size > _SPARSE * len(trials.trials):
        return []
    first = next(cell for cell in product(*factors.values()) if cell not in there)
    example = cell_text(dict(zip(factors, first, strict=True)))
    seeds = ",".join(map(str, factors["seed"]))
    text = (
        f"1 of {size} combinations has no verdict: {example}."
        if missing == 1
        else f"{missing} of {size} combinations have no verdict, such as {example}."
    )
    if not _is_ours(trials):
        return [Advice(text)]
    return [Advice(f"{text} To run {'it' if missing == 1 else 'them'}:", _grid_command(trials, f"seed={seeds}"))]


def _is_ours(trials: Trials) -> bool:
    """Whether the first trial, whose study the commands name, is one that `python -m stability.train` can run."""
    return bool(trials.trials) and trials.trials[0].ours


def _without(names: set[str], words: Iterable[str]) -> list[str]:
    """Return a command's words without the overrides of some settings, wherever they are given."""
    return [word for word in words if word.partition("=")[0].removeprefix("hydra.sweeper.params.") not in names]


def _grid_command(trials: Trials, seeds: str) -> str:
    """Return the recorded command of the sweep with other seeds. If none is recorded, return one for all levels."""
    study = place_of(trials.trials[0]).parent
    if kept := sweep_command(study):
        return shlex.join([*_without({"seed"}, shlex.split(kept)), seeds])
    crossed = [f"{name}={','.join(map(level_text, levels))}" for name, levels in main_factors(trials).items()]
    return shlex.join([*TRAIN, "--multirun", f"study={study.name}", *crossed, seeds])


def _cells_command(trial: Trial, factors: Sequence[str], levels: Mapping[str, Iterable[Level]]) -> str:
    """Return the command that trains all combinations of some levels, with the other settings of a trial."""
    words = _without({*levels}, _overrides(trial, factors))
    crossed = [f"{name}={','.join(map(level_text, own))}" for name, own in levels.items()]
    study = (
        []
        if any(word.startswith(("study=", "experiment=")) for word in words)
        else [f"study={place_of(trial).parent.name}"]
    )
    return shlex.join([*TRAIN, "--multirun", *study, *words, *crossed, f"seed=range({_FEW_SEEDS})"])


def _overrides(trial: Trial, factors: Sequence[str]) -> list[str]:
    """Return the overrides that a trial was started with, without its seed; those of some factors if none are kept."""
    try:
        kept = yaml.safe_load((place_of(trial) / HYDRA_OVERRIDES).read_text())
        return _without({"seed"}, map(hide_passwords, kept))
    except (OSError, yaml.YAMLError, TypeError, AttributeError):
        return [override(name, trial.factors.get(name)) for name in factors]


def _cell_command(trial: Trial, factors: Sequence[str], seed: int) -> str:
    """Return the command that trains a trial's cell with another seed."""
    words = _overrides(trial, factors)
    one = ["hydra.mode=RUN"] if any(word.startswith("experiment=") for word in words) else []
    return shlex.join([*TRAIN, *words, f"seed={seed}", *one])
