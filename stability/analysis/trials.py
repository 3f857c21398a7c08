"""Read the finished trials of a study from their folders: their factors and their responses.

A folder with `config.yaml` is a trial of `python -m stability.train`: of our own decoder, or of a command. A folder
with `.hydra/config.yaml` alone is a job of somebody's own Hydra app.

Reading a trial's tables takes 2 ms for 500 steps. The responses are therefore kept in the trial's `summary.json`, which
is read ten times as fast. It is written again if the verdict is newer, or if another version of the program wrote it.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

from stability.analysis.levels import Level
from stability.analysis.settings import levels_of, merged, with_factors
from stability.analysis.trial import Trial, Trials
from stability.analysis.yaml_files import job_settings, read_config
from stability.config.names import CHANGES_NO_RESULT, changes_result, flatten_dict
from stability.config.schema import Config, Synthetic
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, ERROR, HYDRA_CONFIG, RECORDING, REPORT, SIGNALS_FILE, VALIDATION_FILE, VERDICT
from stability.core.text import load_json
from stability.diagnosis.finding import Outcome
from stability.diagnosis.readers.tables import read_tables
from stability.diagnosis.responses import HEALTHY, SIGNALS_USED, measured
from stability.diagnosis.table import read_table

_GROUPS = ("diagnosis", "tracking", "study")  # that together only our configurations have
_SUMMARY = "summary.json"
_FORMAT = 4  # of the summary; a file of another format is written again
_KIND = "trainer.kind"  # the setting that says whether our own decoder or a command was trained
_OF_COMMAND = ("trainer", "settings")  # the groups that only trials of a command have
_NO_FACTORS = {*CHANGES_NO_RESULT, *_OF_COMMAND, "seed", "device"}  # settings of our decoder that are no factors


def read_trials(folders: Iterable[Path]) -> Trials:
    """Read the finished trials in some folders.

    A folder without a finished trial of this version of the program is left out, with the reason. If two trials have
    the same configuration and seed, the second is left out.

    Args:
        folders: Each the folder of a study or of one trial.

    Raises:
        StabilityError: A folder does not exist, or has no folder in it.
    """
    found: dict[tuple[Any, ...], Trial] = {}
    jobs, left_out = [], []
    for folder in dict.fromkeys(inner.resolve() for outer in folders for inner in _trial_folders(outer)):
        try:
            trial = read_trial(folder)
        except NoTrial as reason:
            left_out.append((folder, str(reason)))
            continue
        if not trial.ours:
            jobs.append(trial)
            continue
        same = found.setdefault((trial.seed, *sorted((k, repr(v)) for k, v in trial.factors.items())), trial)
        if same is not trial:
            left_out.append((folder, "the same trial as another one, which is counted once"))
    ours = Trials(tuple(found.values()), tuple(left_out))
    return merged([ours, with_factors(jobs)]) if jobs else ours


class NoTrial(Exception):
    """A folder has no finished trial; the message says why."""


def read_trial(folder: Path) -> Trial:
    """Read the finished trial in a folder. Of a Hydra app's job, the factors are all its settings, the seed included.

    Raises:
        NoTrial: There is none.
    """
    try:
        return _read(folder)
    except StabilityError as reason:
        raise NoTrial(str(reason)) from None
    except OSError as error:
        raise NoTrial(f"cannot be read: {error.strerror or error}") from None


def is_folder_of_ours(folder: Path) -> bool:
    """Return whether a folder is that of a trial of `python -m stability.train`, or of a study of such trials."""
    if not folder.is_dir():
        return False
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return any(map(_has_our_config, (folder, *inner)))


def _has_our_config(folder: Path) -> bool:
    try:
        text = (folder / CONFIG).read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return all(f"\n{group}:" in f"\n{text}" for group in _GROUPS)


def _trial_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StabilityError(f"There is no folder {folder}: give the folder of a study, outputs/STUDY.")
    if any((folder / name).exists() for name in (CONFIG, VERDICT, HYDRA_CONFIG)):
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", REPORT)))
    if not inner:
        raise StabilityError(f"There is no trial in {folder}: give the folder of a study, outputs/STUDY.")
    return inner


def _read(folder: Path) -> Trial:
    """Read the trial from its summary if that belongs to its verdict, and from its tables if not."""
    try:
        written = (folder / VERDICT).stat().st_mtime_ns
    except OSError:
        raise NoTrial(_why_no_verdict(folder)) from None
    try:
        summary = load_json((folder / _SUMMARY).read_bytes())
        if summary["made of"] == [_FORMAT, written]:
            values = summary["trial"]
            factors = _with_tuples(values["factors"])
            if _is_of_decoder(factors) and values["ours"]:
                factors = _with_this_versions_factors(factors)
            trial = Trial(**values | {"name": folder.name, "factors": factors, "folder": folder})
            if _is_sound(trial):
                return trial
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is no summary, or half of one, or another program wrote it
    trial = _read_tables(folder)
    values = {name: value for name, value in vars(trial).items() if name not in ("folder", "page", "read")}
    summary = {"made of": [_FORMAT, written], "trial": values}
    with suppress(OSError):  # a folder may be read-only: reading it is slower, but works
        if (folder / _SUMMARY).is_symlink():  # in somebody else's folder, it could lead to any file
            (folder / _SUMMARY).unlink()
        # Not atomic: half a summary is not valid JSON, and is replaced.
        (folder / _SUMMARY).write_text(json.dumps(summary))
    return trial


def _is_sound(trial: Trial) -> bool:
    """Return whether the values of a summary are of the right kinds."""
    numbers = (trial.per, trial.norm_spike, trial.largest_norm, trial.phonemes, trial.loss)
    optional = (trial.steps, trial.seed)
    decoder = trial.ours and _is_of_decoder(trial.factors)
    return (
        all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(number, int | None) for number in optional)
        and all(isinstance(value, int) for value in (trial.healthy, trial.censored, *(optional if decoder else ())))
        and trial.outcome in get_args(Outcome)
        and all(isinstance(text, str | None) for text in (trial.cause, trial.metric))
    )


def _why_no_verdict(folder: Path) -> str:
    if not (folder / CONFIG).exists() and not (folder / HYDRA_CONFIG).exists():
        return "no trial was started in it"
    with suppress(OSError, UnicodeDecodeError, IndexError):
        return f"it crashed: {(folder / ERROR).read_text().strip().splitlines()[-1]}"
    return "no verdict: it crashed, was stopped or is being trained"


def _read_tables(folder: Path) -> Trial:
    ours = (folder / CONFIG).exists() or not (folder / HYDRA_CONFIG).exists()
    if not (folder / (CONFIG if ours else HYDRA_CONFIG)).exists():
        raise NoTrial(f"no {CONFIG}")
    config = read_config(folder / CONFIG) if ours else job_settings(folder)
    outcome, cause = _read_verdict(folder)
    signals = read_table(folder / SIGNALS_FILE, only=SIGNALS_USED)
    validation = read_table(folder / VALIDATION_FILE, only=("per",))
    settings = flatten_dict(config)
    if not len(signals.steps) and ((ours and _is_of_decoder(settings)) or not len(validation.steps)):
        raise NoTrial(f"no step in {SIGNALS_FILE}")
    budget = settings.get("steps") if ours else None
    responses = measured(
        signals, validation, outcome=outcome, cause=cause, budget=budget if isinstance(budget, int) else None
    )
    metric = read_tables(folder).metric if (folder / RECORDING).exists() else "PER"
    if ours:
        return trial_of_ours(folder.name, settings, {*signals.names}, responses, metric=metric, folder=folder)
    return Trial(
        name=folder.name,
        factors=levels_of(settings),
        seed=None,
        metric=metric,
        ours=False,
        folder=folder,
        **responses,
    )


def trial_of_ours(
    name: str, settings: Mapping[str, Any], recorded: Collection[str], responses: Mapping[str, Any], **where: Any
) -> Trial:
    """Make a trial that `python -m stability.train` has trained.

    Args:
        name: Its name.
        settings: {dotted name: value} of its configuration.
        recorded: The signals that were recorded of it.
        responses: What was `measured` of it.
        where: The other fields of `Trial`.

    Raises:
        NoTrial: The configuration is of another version, or a signal is missing.
    """
    if not _is_of_decoder(settings):
        levels = levels_of(settings)
        factors = {n: level for n, level in levels.items() if n.split(".")[0] in _OF_COMMAND and changes_result(n)}
        seed = levels["seed"] if isinstance(levels.get("seed"), int) else None
        return Trial(name=name, factors=factors, seed=seed, **responses, **where)
    factors = _with_this_versions_factors({k: v for k, v in settings.items() if k.split(".")[0] not in _NO_FACTORS})
    seed = settings.get("seed")
    if not isinstance(seed, int) or not isinstance(settings.get("steps"), int):
        raise NoTrial(f"{CONFIG} has no seed or no steps: another version of the program wrote it")
    if missing := [name for name in ("frame_information", "grad_norm", "loss") if name not in recorded]:
        raise NoTrial(f"no {', '.join(missing)} in {SIGNALS_FILE}")
    # Our own decoder outputs nothing before it has learned.
    per = 1.0 if math.isnan(responses["per"]) else responses["per"]
    own = {**responses, "healthy": responses["outcome"] in HEALTHY, "per": per}
    return Trial(name=name, factors=_with_tuples(factors), seed=seed, **own, **where)


def _is_of_decoder(values: Mapping[str, Level]) -> bool:
    """Whether these settings of ours are of our own decoder. Folders of earlier versions do not say it."""
    return bool(values.get(_KIND, "decoder") == "decoder")


def _read_verdict(folder: Path) -> tuple[str, str | None]:
    """Read the verdict's outcome and cause."""
    try:
        verdict = load_json((folder / VERDICT).read_bytes())
        outcome, cause = verdict["outcome"], verdict["cause"]
        if not isinstance(cause, str | None):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise NoTrial(f"{VERDICT} is half written, or another program wrote it") from None
    if outcome not in get_args(Outcome):
        raise NoTrial(f"its outcome {outcome} is from another version of the program")
    return outcome, cause


def _with_tuples(factors: dict[str, Any]) -> dict[str, Level]:
    """Turn lists into tuples: levels have to be hashable."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in factors.items()}


def _with_this_versions_factors(factors: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of later settings of the synthetic data; raise if other factors are missing or unknown."""
    if any(name.startswith("data.synthetic.") for name in factors):
        later = {f"data.synthetic.{f.name}": f.default for f in fields(Synthetic) if f.default is not MISSING}
        factors = later | factors
    known = _factors_of_config()
    names = {name for name in factors if not name.startswith("data.synthetic")}  # absent where the data are real
    if names != known:
        differ = [f"no {name}" for name in sorted(known - names)]
        differ += [f"{name} unknown" for name in sorted(names - known)]
        raise NoTrial(f"another version of the program wrote its {CONFIG} ({', '.join(differ)})")
    return factors


@cache
def _factors_of_config() -> frozenset[str]:
    """The dotted names of a configuration's factors, without those of the synthetic data."""

    def walk(prefix: str, kind: Any) -> list[str]:
        if not dataclasses.is_dataclass(kind):
            return [prefix]
        hints = typing.get_type_hints(kind)
        return [name for f in fields(kind) for name in walk(f"{prefix}.{f.name}" if prefix else f.name, hints[f.name])]

    names = (name for name in walk("", Config) if name.split(".")[0] not in _NO_FACTORS)
    return frozenset(name for name in names if not name.startswith("data.synthetic"))
