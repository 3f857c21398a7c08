"""Read the finished trials of a study: their factors and their responses.

Reading a trial's tables takes 2 ms for 500 steps. The responses are therefore kept in the trial's `summary.json`, which
is read ten times as fast. It is written again if the verdict is newer, or if another version of the program wrote it.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml  # type: ignore[import-untyped]

from stability.analysis.levels import Level, ordered
from stability.analysis.responses import SIGNALS_USED, late_median, norm_spike, plateau_steps
from stability.config.names import CHANGES_NO_RESULT, flatten_dict
from stability.config.schema import Config, Synthetic
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, ERROR, REPORT, SIGNALS_FILE, VALIDATION_FILE, VERDICT
from stability.core.text import load_json
from stability.diagnosis.finding import Outcome
from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import Verdict

_SUMMARY = "summary.json"
_FORMAT = 3  # of the summary; a file of another format is written again
_NO_FACTORS = CHANGES_NO_RESULT | {"seed", "device"}  # settings that a study does not vary as factors


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        name: The name of its folder.
        factors: {dotted name: value} of its configuration, without the seed and what changes no result.
        seed: Its seed.
        outcome: The outcome of its verdict.
        cause: The cause of its verdict, if one was found.
        healthy: Response. Whether the outcome is stable or slow.
        steps: Response. The number of steps on the plateau: until the frame information stays above 0.1 nats.
        censored: Whether the trial ended, diverged or was stopped before it left the plateau for good. Then `steps` is
            the number of steps that it made.
        per: Response. The error rate of the last validation; 1 without a validation.
        norm_spike: Response. The natural logarithm of the largest gradient norm after the first 10 steps over the
            median of the norms before it; inf if a norm was not finite.
        largest_norm: The largest gradient norm after the first 10 steps.
        phonemes: The median number of distinct phonemes over the last tenth of the steps; NaN if not recorded.
        loss: The median training loss over the last tenth of the steps; NaN if not recorded.
        folder: Where its files are.
    """

    name: str
    factors: dict[str, Level]
    seed: int
    outcome: str
    cause: str | None
    healthy: bool
    steps: int
    censored: bool
    per: float
    norm_spike: float
    largest_norm: float
    phonemes: float
    loss: float
    folder: Path = field(default=Path(), compare=False)


@dataclass(frozen=True)
class Trials:
    """The finished trials of a study, and the folders without one, each with the reason."""

    trials: tuple[Trial, ...]
    left_out: tuple[tuple[Path, str], ...] = ()

    @property
    def factors(self) -> dict[str, tuple[Level, ...]]:
        """{dotted name: levels in order} of every factor with more than one level among the trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.factors)
        levels = {name: ordered({trial.factors.get(name) for trial in self.trials}) for name in names}
        return {name: values for name, values in levels.items() if len(values) > 1}


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
    left_out = []
    for folder in dict.fromkeys(inner.resolve() for outer in folders for inner in _trial_folders(outer)):
        try:
            trial = _read(folder)
        except (StabilityError, _NoTrial) as reason:
            left_out.append((folder, str(reason)))
            continue
        except OSError as error:
            left_out.append((folder, f"cannot be read: {error.strerror or error}"))
            continue
        same = found.setdefault((trial.seed, *sorted((k, repr(v)) for k, v in trial.factors.items())), trial)
        if same is not trial:
            left_out.append((folder, f"the same trial as {same.name}, which is counted once"))
    return Trials(tuple(found.values()), tuple(left_out))


def read_verdict(trial: Trial) -> dict[str, Any]:
    """Read a trial's verdict again; empty if its file is gone, as when the trial is being trained again."""
    with suppress(OSError, ValueError):
        return dataclasses.asdict(Verdict.from_json((trial.folder / VERDICT).read_text()))
    return {}


class _NoTrial(Exception):
    """A folder has no finished trial; the message says why."""


def _trial_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StabilityError(f"There is no folder {folder}: give the folder of a study, outputs/STUDY.")
    if (folder / CONFIG).exists() or (folder / VERDICT).exists():
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
        raise _NoTrial(_why_no_verdict(folder)) from None
    try:
        summary = load_json((folder / _SUMMARY).read_bytes())
        if summary["made of"] == [_FORMAT, written]:
            values = summary["trial"]
            factors = _with_tuples(_with_this_versions_factors(values["factors"]))
            trial = Trial(**values | {"name": folder.name, "factors": factors, "folder": folder})
            if _is_sound(trial):
                return trial
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is no summary, or half of one, or another program wrote it
    trial = _read_tables(folder)
    values = {name: value for name, value in vars(trial).items() if name != "folder"}
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
    return (
        all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(number, int) for number in (trial.seed, trial.steps, trial.healthy, trial.censored))
        and trial.outcome in get_args(Outcome)
        and isinstance(trial.cause, str | None)
    )


def _why_no_verdict(folder: Path) -> str:
    if not (folder / CONFIG).exists():
        return "no trial was started in it"
    with suppress(OSError, UnicodeDecodeError, IndexError):
        return f"it crashed: {(folder / ERROR).read_text().strip().splitlines()[-1]}"
    return "no verdict: it crashed, was stopped or is being trained"


def _read_tables(folder: Path) -> Trial:
    config, outcome, cause = _read_config_and_verdict(folder)
    values = flatten_dict(config)
    factors = _with_this_versions_factors({k: v for k, v in values.items() if k.split(".")[0] not in _NO_FACTORS})
    seed, budget = values.get("seed"), values.get("steps")
    if not isinstance(seed, int) or not isinstance(budget, int):
        raise _NoTrial(f"{CONFIG} has no seed or no steps: another version of the program wrote it")
    signals = read_table(folder / SIGNALS_FILE, only=SIGNALS_USED)
    validation = read_table(folder / VALIDATION_FILE, only=("per",))
    if missing := [name for name in ("frame_information", "grad_norm", "loss") if name not in signals.names]:
        raise _NoTrial(f"no {', '.join(missing)} in {SIGNALS_FILE}")
    if not len(signals.steps):
        raise _NoTrial(f"no step in {SIGNALS_FILE}")
    ended = int(signals.steps[-1]) + 1
    steps, left = plateau_steps(signals)
    censored = not left or ended < budget or outcome in ("exploded", "non_finite", "bad_data")
    rates = validation["per"] if "per" in validation.names else np.zeros(0)
    spike, largest = norm_spike(signals)
    return Trial(
        name=folder.name,
        factors=_with_tuples(factors),
        seed=seed,
        outcome=outcome,
        cause=cause,
        healthy=outcome in ("stable", "slow"),
        steps=ended if censored else steps,
        censored=censored,
        per=float(rates[-1]) if len(rates) and np.isfinite(rates[-1]) else 1.0,
        norm_spike=spike,
        largest_norm=largest,
        phonemes=late_median(signals, "distinct_phonemes"),
        loss=late_median(signals, "loss"),
        folder=folder,
    )


def _read_config_and_verdict(folder: Path) -> tuple[dict[str, Any], str, str | None]:
    """Read the configuration, and the verdict's outcome and cause."""
    try:
        config: dict[str, Any] = {}
        for group in re.split(r"\n(?=\w)", (folder / CONFIG).read_text()):
            config |= _parsed(group)
        verdict = load_json((folder / VERDICT).read_bytes())
        outcome, cause = verdict["outcome"], verdict["cause"]
        if not isinstance(cause, str | None):
            raise TypeError
    except FileNotFoundError:
        raise _NoTrial(f"no {CONFIG}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        raise _NoTrial(f"{CONFIG} or {VERDICT} is half written, or another program wrote it") from None
    if outcome not in get_args(Outcome):
        raise _NoTrial(f"its outcome {outcome} is from another version of the program")
    return config, outcome, cause


@lru_cache(maxsize=1024)
def _parsed(group: str) -> Any:
    """Parse a top-level group of a configuration. The trials of a study share most groups: hence the cache."""
    return yaml.load(group, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


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
        raise _NoTrial(f"another version of the program wrote its {CONFIG} ({', '.join(differ)})")
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
