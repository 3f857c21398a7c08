"""Trials as a study sees them: their factors, and the responses that factors have an effect on."""

import dataclasses
import json
import math
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

from stability.config.names import CHANGES_NO_RESULT, flatten_dict
from stability.config.schema import Config, Synthetic
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, ERROR, REPORT, VERDICT
from stability.diagnosis.finding import Outcome
from stability.diagnosis.table import SIGNALS_FILE, VALIDATION_FILE, Table, read_table

Level = Any  # a configuration's value: a number, a string, True, False, None, or a tuple of them

_SUMMARY = "summary.json"  # a trial's responses, beside its tables: these take 2 ms for 500 steps, and it a tenth
_FORMAT = 3  # of the summary; another number makes it anew
# Nats of frame information below which a decoder says the same of every frame: the plateau that all begin on. In the
# diagnosis' trials it is passed as the blank share falls below 0.95, which on other data that need not ever reach.
_SAME = 0.1
_SIGNALS = ("applied_norm", "frame_information", "distinct_phonemes", "grad_norm", "loss", "loss_scale")
_FIRST = 10  # steps whose gradient norms are the start's, and no spike
# What is neither the subject of a study nor able to change a result.
_NO_FACTORS = CHANGES_NO_RESULT | {"seed", "device"}


@dataclass(frozen=True)
class Trial:
    """A trial that has its verdict.

    `factors` is {dotted name: value} of its configuration, without the seed and what changes no result. The responses:
    `healthy`, the outcome is stable or slow. `steps`, the number of steps until frames are told apart for good, which
    is 0.1 nats of frame information; if `censored`, the plateau was not left in so many: the trial ended on it,
    diverged or was stopped. `per`, the last validation's error rate, 1 where there is none. `norm_spike`, the natural
    logarithm of the largest gradient norm after the first 10 steps over the median before it; inf if one was not
    finite. Beside them, `largest_norm` is that norm, and `phonemes` and `loss` are medians of distinct phonemes and
    training loss over the last tenth, NaN
    where not recorded. `folder` holds its files.
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
    """Trials, and the folders that hold none, each with the reason."""

    trials: tuple[Trial, ...]
    left_out: tuple[tuple[Path, str], ...] = ()

    @property
    def factors(self) -> dict[str, tuple[Level, ...]]:
        """{dotted name: its levels in order} of what takes more than one value among the trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.factors)
        levels = {name: ordered({trial.factors.get(name) for trial in self.trials}) for name in names}
        return {name: values for name, values in levels.items() if len(values) > 1}


def read_trials(folders: Iterable[Path]) -> Trials:
    """Read the trials in `folders`, each the folder of a study or of one trial.

    A folder without a whole trial of this version is left out with its reason, as is the second of two trials that are
    the same. A folder that is not there, or has no folder in it, raises `StabilityError`.
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
            left_out.append((folder, f"the same trial as {same.name}, which counts once"))
    return Trials(tuple(found.values()), tuple(left_out))


def read_verdict(trial: Trial) -> dict[str, Any]:
    """A trial's verdict as its file has it; empty if that is gone by now, as when the trial is trained anew."""
    with suppress(OSError, ValueError):
        verdict: dict[str, Any] = json.loads((trial.folder / VERDICT).read_bytes())
        return verdict
    return {}


def ordered(levels: Iterable[Level]) -> tuple[Level, ...]:
    """The different levels, numbers by size before the others by name."""

    def key(level: Level) -> tuple[bool, float, str]:
        number = is_number(level)
        return not number, level if number else 0.0, repr(level)

    return tuple(sorted(set(levels), key=key))


def is_number(level: Level) -> bool:
    """Whether the level is a number, which True is not."""
    return isinstance(level, int | float) and not isinstance(level, bool)


def level_text(level: Level) -> str:
    """A level as it is typed on the command line: 1e-8, true, null, [a,b]."""
    if isinstance(level, float):
        text = f"{level:.6g}"
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else text
    if isinstance(level, tuple):
        return f"[{','.join(map(level_text, level))}]"
    return level if isinstance(level, str) else json.dumps(level)


class _NoTrial(Exception):
    """Why a folder has no trial that counts."""


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
    """The trial in `folder`, from its summary if that is of this verdict, else from its tables."""
    try:
        written = (folder / VERDICT).stat().st_mtime_ns
    except OSError:
        raise _NoTrial(_why_no_verdict(folder)) from None
    try:
        summary = json.loads((folder / _SUMMARY).read_bytes())
        if summary["made of"] == [_FORMAT, written]:
            values = summary["trial"]
            factors = _with_tuples(_current(values["factors"]))
            return Trial(**values | {"name": folder.name, "factors": factors, "folder": folder})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, half a one, or another program's
    trial = _computed(folder)
    values = {name: value for name, value in vars(trial).items() if name != "folder"}
    summary = {"made of": [_FORMAT, written], "trial": values}
    with suppress(OSError):  # in a folder that cannot be written to, reading takes longer
        (folder / _SUMMARY).write_text(json.dumps(summary))  # half a one is no harm: it is made anew
    return trial


def _why_no_verdict(folder: Path) -> str:
    if not (folder / CONFIG).exists():
        return "no trial was begun in it"
    with suppress(OSError, UnicodeDecodeError, IndexError):
        return f"it crashed: {(folder / ERROR).read_text().strip().splitlines()[-1]}"
    return "no verdict: it crashed, was stopped or is being trained"


def _computed(folder: Path) -> Trial:
    try:
        config: dict[str, Any] = {}
        for group in re.split(r"\n(?=\w)", (folder / CONFIG).read_text()):
            config |= _parsed(group)
        verdict = json.loads((folder / VERDICT).read_bytes())
        outcome, cause = verdict["outcome"], verdict["cause"]
    except FileNotFoundError:
        raise _NoTrial(f"no {CONFIG}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        raise _NoTrial(f"{CONFIG} or {VERDICT} is only half written, or another program's") from None
    if outcome not in get_args(Outcome):
        raise _NoTrial(f"another version of the program ruled on it ({outcome})")
    values = flatten_dict(config)
    factors = _current({k: v for k, v in values.items() if k.split(".")[0] not in _NO_FACTORS})
    seed, budget = values.get("seed"), values.get("steps")
    if not isinstance(seed, int) or not isinstance(budget, int):
        raise _NoTrial(f"{CONFIG} has no seed or no steps: another version of the program wrote it")
    signals = read_table(folder / SIGNALS_FILE, only=_SIGNALS)
    validation = read_table(folder / VALIDATION_FILE, only=("per",))
    if missing := [name for name in ("frame_information", "grad_norm", "loss") if name not in signals.names]:
        raise _NoTrial(f"no {', '.join(missing)} in {SIGNALS_FILE}")
    if not len(signals.steps):
        raise _NoTrial(f"no step in {SIGNALS_FILE}")
    ended = int(signals.steps[-1]) + 1
    steps, left = _plateau(signals)
    censored = not left or ended < budget or outcome in ("exploded", "non_finite", "bad_data")
    rates = validation["per"] if "per" in validation.names else np.zeros(0)
    norm_spike, largest = _norm_spike(signals)
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
        norm_spike=norm_spike,
        largest_norm=largest,
        phonemes=_late_median(signals, "distinct_phonemes"),
        loss=_late_median(signals, "loss"),
        folder=folder,
    )


@lru_cache(maxsize=1024)
def _parsed(group: str) -> Any:
    """A top-level group of a configuration, most of which a study's trials share."""
    return yaml.load(group, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _plateau(signals: Table) -> tuple[int, bool]:
    """The number of steps to that from which on the frame information stays above the plateau's; whether it does."""
    measured = np.isfinite(signals["frame_information"])
    steps, information = signals.steps[measured], signals["frame_information"][measured]
    (on,) = np.nonzero(information < _SAME)
    if not len(on):
        return 1, len(steps) > 0
    around = slice(on[-1], on[-1] + 2)
    if len(steps[around]) < 2:
        return 0, False
    return math.ceil(np.interp(_SAME, information[around], steps[around])) + 1, True  # it is measured now and then


def _norm_spike(signals: Table) -> tuple[float, float]:
    """The logarithm of the largest late gradient norm over the median of those before it, and that norm."""
    counts = signals.measured[:, signals.names.index("grad_norm")].copy()
    if {"applied_norm", "loss_scale"} <= {*signals.names}:
        counts &= (signals["applied_norm"] != 0) | (signals["loss_scale"] == 1)  # fp16 skips an overflow by design
    norms = signals["grad_norm"][counts].astype(np.float64)
    if not np.isfinite(norms).all():
        return np.inf, np.inf
    first = min(_FIRST, len(norms) // 2)
    if not first:
        return 0.0, float(norms.max(initial=0.0))
    at = first + int(norms[first:].argmax())
    tiny = np.finfo(np.float32).tiny  # a gradient can be exactly 0
    return float(np.log(max(norms[at], tiny) / max(np.median(norms[:at]), tiny))), float(norms[at])


def _late_median(signals: Table, name: str) -> float:
    """The median of the last tenth; inf if it was measured and is no number, NaN if it was not recorded."""
    if name not in signals.names:
        return float("nan")
    late = signals[name][-max(1, len(signals.steps) // 10) :]
    late = late[~np.isnan(late)]
    return float(np.median(late)) if len(late) else float("inf")


def _with_tuples(factors: dict[str, Any]) -> dict[str, Level]:
    """Levels have to be hashable."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in factors.items()}


def _current(factors: dict[str, Any]) -> dict[str, Any]:
    """The factors, if they are those that this version's configuration has."""
    if any(name.startswith("data.synthetic.") for name in factors):  # a later setting was at its default before
        later = {f"data.synthetic.{f.name}": f.default for f in fields(Synthetic) if f.default is not MISSING}
        factors = later | factors
    known = _schema()
    names = {name for name in factors if not name.startswith("data.synthetic")}  # not there where data are real
    if names != known:
        differ = [f"no {name}" for name in sorted(known - names)]
        differ += [f"{name} unknown" for name in sorted(names - known)]
        raise _NoTrial(f"another version of the program wrote its {CONFIG} ({', '.join(differ)})")
    return factors


@cache
def _schema() -> frozenset[str]:
    """The dotted names of a configuration's factors, but those of the made-up data set."""

    def walk(prefix: str, kind: Any) -> list[str]:
        if not dataclasses.is_dataclass(kind):
            return [prefix]
        hints = typing.get_type_hints(kind)
        return [name for f in fields(kind) for name in walk(f"{prefix}.{f.name}" if prefix else f.name, hints[f.name])]

    names = (name for name in walk("", Config) if name.split(".")[0] not in _NO_FACTORS)
    return frozenset(name for name in names if not name.startswith("data.synthetic"))
