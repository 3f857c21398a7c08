"""The settings of somebody else's runs: which of them are factors, and which one is the seed.

Nobody says so, hence it is told from the settings of all runs together. What differs between the runs is a factor,
except for the seed, for what only names a run, and for what always changes with another setting. What was decided, and
what cannot be decided, is said in the notes of the `Trials`.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from stability.analysis.levels import MOST_LEVELS, Level, is_number, level_text
from stability.analysis.trial import Trial, Trials
from stability.config.names import flatten_dict
from stability.core.errors import StabilityError
from stability.core.text import counted, first_of, listed

_SEED = re.compile(r"(random|rng|manual|global|torch|np|numpy|train|training|data|py|python|rand|base|model)?_?seed"
                   r"|random_state|seed_(everything|value)")  # fmt: skip
_ANYWHERE = (
    r"(run|exp|experiment|display|job|trial)_?(name|id)|uuid|hostname|timestamp|start_time|git_(commit|hash|sha)"
)
_PLACE = (
    r"(out|output|outputs|log|logs|logging|logger|save|checkpoint|checkpoints|ckpt|run|work|working|result|results)"
)
_NAMES = re.compile(f"{_ANYWHERE}|{_PLACE}_?(dir|directory|folder|path|root)s?")
_NAMES_ALONE = re.compile("name|id|host|user|date|time|notes|tags|group|commit|pid|dir|outputs?|logs?")
_SAME_KIND = 0.4  # two runs with a smaller share of their settings in common are of different programs
_SHOWN = 4  # names or levels in a note
_LONGEST = 40  # characters of a level
_LARGEST = 1e300  # number that is taken for one


def find_seed(runs: Sequence[Mapping[str, Level]]) -> str | None:
    """Return the dotted name of the setting that is the seed of some runs; None if none is known as one."""
    names = {name: None for run in runs for name in run}
    return _find_seed({name: [run.get(name) for run in runs] for name in names})[0] or None


def levels_of(settings: Mapping[str, Any]) -> dict[str, Level]:
    """Return the settings of a run under dotted names. Texts that are numbers become numbers, lists become tuples."""
    return {name: _level(value) for name, value in flatten_dict(dict(settings)).items()}


def with_factors(runs: Sequence[Trial], *, seed: str | None = None, named: Collection[str] = ()) -> Trials:
    """Tell factors, seeds and names apart.

    Runs of another program than most are left out. So are runs with the same settings and seed as a later one.

    Args:
        runs: The runs in the order in which they were started. The factors of each are all its settings.
        seed: The setting that is the seed; None to recognise it by its name.
        named: Settings that are asked for. Of several programs' runs, those that have them are kept.

    Raises:
        StabilityError: No run has the setting `seed`, or it is no whole number.
    """
    if not runs:
        return Trials(())
    runs, others = _of_one_kind(runs, named)
    settings = {name: None for run in runs for name in run.factors}
    columns = {name: [run.factors.get(name) for run in runs] for name in settings}
    if seed is not None and seed not in columns:
        raise StabilityError(f"--seed {seed}: no run has that setting. There are {first_of([*columns], 20)}.")
    varying = {name: column for name, column in columns.items() if len(set(column)) > 1}
    found, notes = _find_seed(columns) if seed is None else (seed, [])
    column = columns[found] if found else [None] * len(runs)
    if found and not _is_whole(column):
        other = next(level for level in column if not _is_whole([level]))
        raise StabilityError(f"--seed {seed}: a seed is a whole number, and a run has {level_text(other)}.")
    seeds = [None if level is None else int(level) for level in column]
    naming = [name for name, column in varying.items() if name != found and _only_names(name, column)]
    notes += [_naming_note(naming)] if naming else []
    candidates = {name: column for name, column in varying.items() if name != found and name not in naming}
    bound, with_seed = _bound(candidates, seeds)
    notes += [f"{_names(with_seed)} always {_verb(with_seed, 'change')} with the seed."] if with_seed else []
    notes += [_bound_note(name, others) for name, others in bound.items()]
    dropped = {*naming, *with_seed, *(name for names in bound.values() for name in names), found}
    notes += [
        note for name, column in candidates.items() if name not in dropped and (note := _types_note(name, column))
    ]
    trials = [
        replace(run, factors={k: v for k, v in run.factors.items() if k not in dropped}, seed=level)
        for run, level in zip(runs, seeds, strict=True)
    ]
    trials, copies = _latest(trials)
    if _is_nested(trials):
        notes.append(
            f"Each run has {found} of its own, so no two runs share a seed: runs are compared without regard to it."
        )
        trials = [replace(trial, seed=None) for trial in trials]
    return Trials(tuple(trials), (*others, *copies), tuple(notes), bound)


def merged(parts: Iterable[Trials]) -> Trials:
    """Put together what was read from several places. A trial that is in two of them is counted once."""
    parts = [*parts]
    found: dict[Any, Trial] = {}
    left_out = [pair for part in parts for pair in part.left_out]
    for number, trial in enumerate(trial for part in parts for trial in part.trials):
        same = found.setdefault(number if trial.seed is None else _key(trial), trial)
        if same is not trial:
            left_out.append((place_of(trial), "the same trial as another one, which is counted once"))
    return Trials(
        trials=tuple(found.values()),
        left_out=tuple(left_out),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        bound={name: names for part in parts for name, names in part.bound.items()},
    )


def place_of(trial: Trial) -> Path:
    """Return the folder or file of a trial, or its name as a path if it was read from elsewhere."""
    return trial.folder or Path(trial.name)


def _level(value: Any) -> Level:
    """The level that a value is, shortened if it is a long text."""
    level = _whole_level(value)
    if isinstance(level, str | tuple) and len(text := level_text(level)) > _LONGEST:
        return f"{text[: _LONGEST - 10]}… {crc32(text.encode()):08x}"  # what differs may come later
    return level


def _whole_level(value: Any) -> Level:
    """The level that a value is. YAML reads 1e-3 as text, and trackers keep everything as text."""
    if isinstance(value, str):
        return _level_of_text(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _level_of_text(str(value)) if abs(value) > _LARGEST or value != value else value
    if isinstance(value, list | tuple):
        return tuple(map(_whole_level, value))
    return value if value is None or isinstance(value, bool) else json.dumps(value, default=str)


def _level_of_text(text: str) -> Level:
    known = {"true": True, "false": False, "none": None, "null": None, "": None}
    if text.lower() in known:
        return known[text.lower()]
    if text.startswith("["):
        try:
            return _whole_level(json.loads(text))
        except (ValueError, RecursionError):
            return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if abs(number) <= _LARGEST and "_" not in text else text  # NaN would differ from itself
    return text


def _of_one_kind(runs: Sequence[Trial], named: Collection[str]) -> tuple[Sequence[Trial], list[tuple[Path, str]]]:
    """The runs of the program that most runs are of, and the others with the reason."""
    sets = Counter(frozenset(run.factors) for run in runs)
    most = max(sets, key=lambda names: (sum(name in names for name in named), sets[names]))
    alike = {names for names in sets if len(names & most) >= _SAME_KIND * len(names | most)}
    others = [
        (place_of(run), f"of another program: it has {counted(len(most & {*run.factors}), 'setting')} of the other "
         f"runs, and {len({*run.factors} - most)} of its own"
         if run.factors else "nothing says what its settings are")
        for run in runs
        if frozenset(run.factors) not in alike
    ]  # fmt: skip
    return [run for run in runs if frozenset(run.factors) in alike], others


def _find_seed(columns: Mapping[str, Sequence[Level]]) -> tuple[str, list[str]]:
    """The name of the seed, empty if there is none; and what has to be said about it."""
    found = [name for name in columns if _SEED.fullmatch(_last(name)) and _is_whole(columns[name])]
    found.sort(key=lambda name: (len({*columns[name]}) < 2, _last(name) != "seed", name.count("."), len(name)))
    if not found:
        return "", [
            "No setting is known as the seed, so a difference between runs cannot be told from chance. --seed NAME "
            "says which setting it is."
        ]
    rest = [
        name for name in found[1:] if len({*columns[name]}) > 1 and not _same_split(columns[found[0]], columns[name])
    ]
    if not rest:
        return found[0], []
    return found[0], [f"{found[0]} is taken for the seed, and {_names(rest)} for a factor. --seed NAME changes that."]


def _is_whole(column: Sequence[Level]) -> bool:
    """Whether the levels are whole numbers, as far as they are given."""
    given = [level for level in column if level is not None]
    return bool(given) and all(is_number(level) and float(level).is_integer() for level in given)


def _only_names(name: str, column: Sequence[Level]) -> bool:
    """Whether a setting only says which run it is, or where it writes."""
    texts = [level for level in column if isinstance(level, str)]
    if _NAMES.fullmatch(_last(name)) or _NAMES_ALONE.fullmatch(name.lower()):
        return True
    return bool(texts) and len({*column}) > max(MOST_LEVELS, 0.8 * len(column))


def _last(name: str) -> str:
    return re.split(r"[./]", name.lower())[-1].replace("-", "_")


def _bound(
    candidates: Mapping[str, Sequence[Level]], seeds: Sequence[Level]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """{setting: others that always change with it}, and those that always change with the seed."""
    by_split: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, column in candidates.items():
        levels = len({*column})
        # A search draws a level for each run. Two such settings do not change together; they never stay the same.
        if levels <= max(MOST_LEVELS, len(column) / 2):
            by_split[_split(column)].append(name)
    with_seed = by_split.pop(_split(seeds), []) if len({*seeds}) > 1 else []
    return {names[0]: tuple(names[1:]) for names in by_split.values() if len(names) > 1}, with_seed


def _split(column: Sequence[Level]) -> tuple[int, ...]:
    """For each run the number of its level, in the order in which the levels appear: how a setting divides the runs."""
    numbers: dict[Level, int] = {}
    return tuple(numbers.setdefault(level, len(numbers)) for level in column)


def _same_split(column: Sequence[Level], other: Sequence[Level]) -> bool:
    return _split(column) == _split(other)


def _latest(trials: Sequence[Trial]) -> tuple[list[Trial], list[tuple[Path, str]]]:
    """The last of the trials with the same settings and seed. A run that is started anew replaces the one before."""
    last = {number if trial.seed is None else _key(trial): trial for number, trial in enumerate(trials)}
    kept = {*map(id, last.values())}
    copies = [
        (place_of(trial), "a later run has the same settings and seed") for trial in trials if id(trial) not in kept
    ]
    return [trial for trial in trials if id(trial) in kept], copies


def _key(trial: Trial) -> tuple[Any, ...]:
    return trial.seed, *sorted((name, repr(level)) for name, level in trial.factors.items())


def _is_nested(trials: Sequence[Trial]) -> bool:
    """Whether there are several cells, and no seed is in more than one of them."""
    cells: dict[int, set[Any]] = defaultdict(set)
    for trial in trials:
        if trial.seed is not None:
            cells[trial.seed].add(_key(trial)[1:])
    return len(set[Any]().union(*cells.values())) > 1 and all(len(own) == 1 for own in cells.values())


def _types_note(name: str, column: Sequence[Level]) -> str:
    """A sentence if a setting is a number in some runs and a text in others."""
    numbers = sum(map(is_number, column))
    texts = [level for level in column if isinstance(level, str)]
    if not numbers or not texts:
        return ""
    levels = first_of(sorted({*texts}), _SHOWN)
    return f"{name} is a number in {counted(numbers, 'run')} and a text in {counted(len(texts), 'run')} ({levels})."


def _bound_note(name: str, others: Sequence[str]) -> str:
    return (
        f"{_names(others)} always {_verb(others, 'change')} with {name}: their effects cannot be told apart, and are "
        f"shown as that of {name}."
    )


def _names(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= _SHOWN else first_of(names, _SHOWN)


def _verb(names: Sequence[str], verb: str) -> str:
    return f"{verb}s" if len(names) == 1 else verb


def _naming_note(names: Sequence[str]) -> str:
    what = "names runs, and is no factor" if len(names) == 1 else "name runs, and are no factors"
    return f"{_names(names)} only {what}."
