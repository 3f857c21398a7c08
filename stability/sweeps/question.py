"""The question of an explanation: two configurations, all settings in which they differ, and the mixtures of the two.

The two are composed as Hydra composes them. A setting that follows another one, such as the day layers' learning rate,
follows it in every mixture, and is no difference of its own.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from stability.analysis.beliefs import Difference, Mixture
from stability.analysis.explanation import ALPHA
from stability.analysis.trials import NoTrial, read_trial
from stability.config.commandline import full_words, override_of
from stability.config.hydra import read_config
from stability.config.names import SETTINGS, changes_result, flatten, flatten_dict, is_of_command
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, short_path
from stability.sweeps.jobs import PlannedTrial, compose_job
from stability.trials.program import check_program

ABSENT = "(absent)"  # the value of a setting that only the other configuration has

_OF_STUDY = ("study", "outputs", "fresh", "tracking", "seed")  # the command's own, whatever a side's folder says
_RATE = re.compile(r"(peak_|base_|max_|min_)?(lr|learning_rate)(_.*)?|(lr_)?warm_?up.*")
_METHOD = 1  # of the search and the tests; a change of what is decided gets a new number


@dataclass(frozen=True)
class Question:
    """Why one configuration fails and another does not.

    Attributes:
        failed: FAILED, as it was given.
        healthy: HEALTHY, as it was given.
        common: The overrides of all trials.
        differences: The settings in which the two differ.
        following: Settings that differ only because they follow others, with both values.
        without_effect: Settings that differ and change no result.
        notes: What is odd about the two.
    """

    failed: str
    healthy: str
    common: tuple[str, ...]
    differences: tuple[Difference, ...]
    following: tuple[str, ...]
    without_effect: tuple[str, ...]
    notes: tuple[str, ...]
    sides: tuple[dict[str, Any], dict[str, Any]]

    def overrides(self, mixture: Mixture) -> list[str]:
        """Return the overrides of a mixture, without a seed."""
        own = [
            f"~{d.name}" if d.failed == ABSENT else override_of(d.name, d.failed)
            for d in self.differences
            if d.name in mixture.failed
        ]
        return _last_of_each([*self.common, *own, *([override_of(*mixture.between)] if mixture.between else [])])

    def statement(self) -> dict[str, Any]:
        """Return what will be decided, and how, as it is written before the first trial."""
        return {
            "question": f"Which of these {len(self.differences)} differences make FAILED fail, where HEALTHY does not?",
            "failed": {"given": self.failed, "settings": self.sides[0]},
            "healthy": {"given": self.healthy, "settings": self.sides[1]},
            "differences": [{"name": d.name, "failed": d.failed, "healthy": d.healthy} for d in self.differences],
            "common": [*self.common],
            "decides": "A mixture of the two fails if its rate of failure over seeds is above the middle between the "
            "rates of the two. A trial fails if its outcome is neither stable nor slow. Claimed are: FAILED fails, "
            "HEALTHY does not, every sufficient set fails in HEALTHY, and every cure makes FAILED healthy. Claims are "
            "tested by e-values on seeds that were not used to choose them.",
            "alpha": ALPHA,
            "method": _METHOD,
        }


def digest(statement: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a statement."""
    return hashlib.sha256(json.dumps(statement, sort_keys=True).encode()).hexdigest()


def read_question(cfg: DictConfig, arguments: Sequence[str], failed: str | None, healthy: str | None) -> Question:
    """Compose the two configurations and find where they differ.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.
        arguments: The overrides of the command line.
        failed: FAILED: overrides, or the folder of a trial.
        healthy: HEALTHY, likewise.

    Raises:
        StabilityError: One of them is missing, invalid, unfinished or ended otherwise; or they do not differ.
    """
    if not failed or not healthy:
        raise StabilityError(
            "What fails, and what works? Give both, each as overrides or as the folder of a trial: "
            "python -m stability.explain 'optimizer=adam_default' 'optimizer=official'"
        )
    if any(word.partition("=")[0].lstrip("+") == "seed" for word in arguments):
        raise StabilityError("explain chooses the seeds itself: remove seed=… from the command.")
    sides = {"FAILED": failed, "HEALTHY": healthy}
    given = {name: _side_overrides(name, text, cfg, arguments) for name, text in sides.items()}
    (raw_failed, of_failed), (raw_healthy, of_healthy) = (
        _composed(name, cfg, [*arguments, *words]) for name, words in given.items()
    )
    if of_failed.config.runs_command != of_healthy.config.runs_command:
        raise StabilityError(
            "One of the two is trained by a command and the other is not: give trainer=command for both."
        )
    failed_values, healthy_values = _settings(of_failed.config), _settings(of_healthy.config)
    _fold_data(failed_values, healthy_values)
    names = [n for n in {**failed_values, **healthy_values} if _differs(n, failed_values, healthy_values)]
    own = [name for name in names if name == "data" or raw_failed.get(name, ABSENT) != raw_healthy.get(name, ABSENT)]
    if not (matter := [name for name in own if changes_result(name)]):
        other = f" (they differ in {', '.join(names)}, which changes no result)" if names else ""
        raise StabilityError(f"FAILED and HEALTHY are the same training{other}: there is nothing to explain.")
    differences = [
        Difference(name, failed_values.get(name, ABSENT), healthy_values.get(name, ABSENT), _group(name))
        for name in matter
    ]
    return Question(
        failed=failed,
        healthy=healthy,
        common=tuple(_last_of_each([*arguments, *given["HEALTHY"]])),
        differences=tuple(differences),
        following=tuple(name for name in names if name not in own),
        without_effect=tuple(name for name in own if name not in matter),
        notes=tuple(_notes(matter)),
        sides=(failed_values, healthy_values),
    )


def _side_overrides(name: str, text: str, cfg: DictConfig, arguments: Sequence[str]) -> list[str]:
    """The overrides that make one of the two, given as overrides or as a folder."""
    folder = Path(text)
    if folder.is_dir():
        return _folder_overrides(name, folder, cfg, arguments)
    if "=" not in text:
        raise StabilityError(
            f"{name}: there is no folder {text}. Give a trial's folder, or overrides: optimizer.epsilon=0.1"
        )
    if "experiment=" in text:
        raise StabilityError(f"{name}: {text}: an experiment is a sweep. Give the settings of one trial of it.")
    try:
        return [word for word in full_words(shlex.split(text)) if word.partition("=")[0] != "seed"]
    except ValueError as error:  # a quote that is not closed
        raise StabilityError(f"{name}: {text}: {error}.") from None


def _folder_overrides(name: str, folder: Path, cfg: DictConfig, arguments: Sequence[str]) -> list[str]:
    """The overrides that make the configuration of a trial's folder, as few as will do."""
    place = short_path(folder)
    if not (folder / CONFIG).exists():
        raise StabilityError(f"{name}: {place} has no {CONFIG}: give the folder of one trial, such as {place}/TRIAL.")
    try:
        healthy = read_trial(folder).healthy
    except NoTrial as reason:
        raise StabilityError(
            f"{name}: the trial in {place} is not finished: {reason}. Finish it, or give its overrides instead."
        ) from None
    if healthy == (name == "FAILED"):
        state = "is healthy" if healthy else "failed"
        raise StabilityError(
            f"{name}: the trial in {place} {state}. The order is: the one that fails, the one that works."
        )
    wanted = flatten_dict(OmegaConf.to_container(read_config(folder / CONFIG)))
    # A command is not checked before it has all that its folder says of it.
    words = [*arguments, *(override_of(n, wanted[n]) for n in wanted if is_of_command(n))]
    raw, plain = _composed(name, cfg, words)
    base = flatten(plain.config)
    own = [n for n in wanted if wanted[n] != base.get(n) and n.split(".")[0] not in _OF_STUDY]
    if any(n.startswith("data.synthetic") for n in own) and {n for n in wanted if n.startswith("data.")} != {
        n for n in base if n.startswith("data.")
    }:
        own = [n for n in own if not n.startswith("data.")] + ["data"]
        wanted["data"] = _nested(wanted, "data")
    follow = [n for n in own if "${" in str(raw.get(n))]
    fixed = [*words[len(arguments) :], *(override_of(n, wanted[n]) for n in own if n not in follow)]
    _, composed = _composed(name, cfg, [*arguments, *fixed])
    values = flatten(composed.config)
    return fixed + [override_of(n, wanted[n]) for n in follow if values.get(n) != wanted[n]]


def _composed(name: str, cfg: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], PlannedTrial]:
    """Compose one of the two. Return its values as they stand, with interpolations, and the trial."""
    try:
        composed, trial = compose_job(cfg, _last_of_each(overrides))
        if trial.config.runs_command:
            check_program(trial.config)
    except StabilityError as error:
        raise StabilityError(f"{name} is no valid configuration: {error}") from None
    with open_dict(composed):
        del composed["hydra"]
    raw = OmegaConf.to_container(composed, resolve=False)
    return flatten_dict(raw), trial


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Overrides without those that a later one replaces. Hydra refuses two values of a config group."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    last = {override.get_key_element(): place for place, override in enumerate(parsed)}
    return [overrides[place] for place in sorted(last.values())]


def _settings(config: Config) -> dict[str, Any]:
    return {n: v for n, v in flatten(config).items() if n not in ("seed", "study", "outputs", "fresh")}


def _fold_data(failed: dict[str, Any], healthy: dict[str, Any]) -> None:
    """Make one setting of the data if the two have them from different kinds of sources."""
    if {n for n in failed if n.startswith("data.")} == {n for n in healthy if n.startswith("data.")}:
        return
    for values in (failed, healthy):
        values["data"] = _nested(values, "data")
        for name in [n for n in values if n.startswith("data.")]:
            del values[name]


def _nested(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The settings of a group as nested dictionaries."""
    found = OmegaConf.create()
    for name, value in values.items():
        if name.startswith(f"{group}."):
            OmegaConf.update(found, name, value)
    nested: Any = OmegaConf.to_container(found[group])
    return {**nested}


def _differs(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return (name in first) != (name in second) or first.get(name) != second.get(name)


def _group(name: str) -> str:
    """What a difference belongs to: its config group; a command's learning rate and its warm-up are one."""
    if name.startswith(SETTINGS):
        last = name.rpartition(".")[2]
        return "learning rate" if _RATE.fullmatch(last) else name.rpartition(".")[0] if name.count(".") > 1 else name
    return name.partition(".")[0]


def _notes(names: Sequence[str]) -> list[str]:
    """What does not go well together in one question."""
    notes = []
    if any(name == "data" or name.startswith("data.") for name in names):
        notes.append(
            "The two are trained on different data. Their error rates cannot be compared, only their outcomes."
        )
    if any(name.startswith("model.") for name in names):
        notes.append("The two are different models. What follows a model's time scale, such as steps, changes with it.")
    if "trainer.command" in names:
        notes.append("The two start different commands: the command counts as one setting.")
    return notes
