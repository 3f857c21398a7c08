"""The question of an explanation: two configurations, all settings in which they differ, and the mixtures of the two.

The two are composed as Hydra composes them. A setting that follows another one, such as the day layers' learning rate,
follows it in every mixture, and is no difference of its own.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from stability.analysis.beliefs import Difference, Mixture
from stability.analysis.explanation import ALPHA
from stability.config.commandline import override_of
from stability.config.names import SETTINGS, changes_result, flatten
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.sweeps.sides import common_overrides, composed, last_of_each, nested, side_overrides

ABSENT = "(absent)"  # the value of a setting that only the other configuration has

_RATE = re.compile(r"(peak_|base_|max_|min_)?(lr|learning_rate)(_.*)?|(lr_)?warm_?up.*")
_METHOD = 2  # of the search and the tests; a change of what is decided gets a new number


@dataclass(frozen=True)
class Question:
    """Why one configuration fails and another does not.

    Attributes:
        failed: FAILED, as it was given.
        healthy: HEALTHY, as it was given.
        arguments: The overrides of the command line.
        common: The overrides of all trials: these and HEALTHY's.
        differences: The settings in which the two differ.
        following: Settings that differ only because they follow others, with both values.
        without_effect: Settings that differ and change no result.
        notes: What is odd about the two.
    """

    failed: str
    healthy: str
    arguments: tuple[str, ...]
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
        return last_of_each([*self.common, *own, *([override_of(*mixture.between)] if mixture.between else [])])

    def statement(self) -> dict[str, Any]:
        """Return what will be decided, and how, as it is written before the first trial.

        Settings that change no result are not in it, so they may be others when the experiment goes on.
        """
        failed, healthy = ({n: v for n, v in side.items() if changes_result(n)} for side in self.sides)
        return {
            "question": f"Which of these {len(self.differences)} differences make FAILED fail, where HEALTHY does not?",
            "failed": {"given": self.failed, "settings": failed},
            "healthy": {"given": self.healthy, "settings": healthy},
            "differences": [{"name": d.name, "failed": d.failed, "healthy": d.healthy} for d in self.differences],
            "decides": "A trial fails if its outcome is neither stable nor slow. Claimed is: HEALTHY with any of the "
            "sufficient sets fails in more of the seeds than FAILED with any of the cures. Claims are tested by "
            "e-values on seeds that were not used to choose them.",
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
    arguments = common_overrides("explain", arguments)
    sides = {"FAILED": failed, "HEALTHY": healthy}
    given = {name: side_overrides(name, text, cfg, arguments) for name, text in sides.items()}
    (raw_failed, of_failed), (raw_healthy, of_healthy) = (
        composed(name, cfg, [*arguments, *words]) for name, words in given.items()
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
        arguments=tuple(arguments),
        common=tuple(last_of_each([*arguments, *given["HEALTHY"]])),
        differences=tuple(differences),
        following=tuple(name for name in names if name not in own),
        without_effect=tuple(name for name in own if name not in matter),
        notes=tuple(_notes(matter)),
        sides=(failed_values, healthy_values),
    )


def _settings(config: Config) -> dict[str, Any]:
    return {n: v for n, v in flatten(config).items() if n not in ("seed", "study", "outputs", "fresh")}


def _fold_data(failed: dict[str, Any], healthy: dict[str, Any]) -> None:
    """Make one setting of the data if the two have them from different kinds of sources."""
    if {n for n in failed if n.startswith("data.")} == {n for n in healthy if n.startswith("data.")}:
        return
    for values in (failed, healthy):
        values["data"] = nested(values, "data")
        for name in [n for n in values if n.startswith("data.")]:
            del values[name]


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
