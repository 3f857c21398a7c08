"""A configuration that a question is asked about, such as FAILED: given as overrides, or as the folder of a trial."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from stability.analysis.trials import NoTrial, read_trial
from stability.config.commandline import full_words, is_of_experiment, override_of
from stability.config.hydra import explain_error, read_config
from stability.config.names import flatten, flatten_dict, is_of_command
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, HYDRA_CONFIG, is_folder, short_path
from stability.sweeps.jobs import PlannedTrial, compose_job
from stability.trials.program import check_program

_OF_STUDY = ("study", "outputs", "fresh", "tracking", "seed")  # the command's own, whatever a side's folder says


def side_overrides(name: str, text: str, cfg: DictConfig, arguments: Sequence[str]) -> list[str]:
    """Return the overrides that make a configuration, without its seed.

    Args:
        name: What it is called: FAILED, or HEALTHY. A folder's trial has to have ended so.
        text: It, as overrides or as the folder of a trial.
        cfg: The configuration that Hydra composed for the whole sweep.
        arguments: The overrides of the command line.

    Raises:
        StabilityError: It is neither; or its trial is unfinished, or ended otherwise.
    """
    if is_folder(text):
        return _folder_overrides(name, Path(text), cfg, arguments)
    if "=" not in text:
        raise StabilityError(
            f"{name}: there is no folder {text}. Give the folder of a trial, or overrides: optimizer.epsilon=0.1"
        )
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        raise StabilityError(f"{name}: {text}: {error}.") from None
    _refuse_sweeps(f"{name}: ", words)
    for word in words:
        if is_of_experiment(word):
            raise StabilityError(f"{name}: {word} is no setting of a training: give it outside the quotes of {name}.")
    return [word for word in full_words(words) if word.partition("=")[0] != "seed"]


def common_overrides(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the overrides of all trials: those of the command line, but for those of this call, such as a dry run.

    Args:
        command: explain, or repair.
        arguments: The overrides of the command line.

    Raises:
        StabilityError: They choose what the command chooses itself.
    """
    if any(word.partition("=")[0].lstrip("+") == "seed" for word in arguments):
        raise StabilityError(f"{command} chooses the seeds itself: remove seed=… from the command.")
    _refuse_sweeps("", arguments)
    return [word for word in arguments if not word.startswith("sweep.")]


def composed(name: str, cfg: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], PlannedTrial]:
    """Compose a configuration, and check it.

    Args:
        name: What it is called in a message.
        cfg: The configuration that Hydra composed for the whole sweep.
        overrides: Its overrides.

    Returns:
        {dotted name: value} as they stand, with interpolations, and the trial.

    Raises:
        StabilityError: It is invalid.
    """
    try:
        config, trial = compose_job(cfg, last_of_each(overrides))
        if trial.config.runs_command:
            check_program(trial.config)
    except StabilityError as error:
        raise StabilityError(f"{name} is no valid configuration: {error}") from None
    with open_dict(config):
        del config["hydra"]
    return flatten_dict(OmegaConf.to_container(config, resolve=False)), trial


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those that a later one replaces. Hydra refuses two values of a config group."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    last = {override.get_key_element(): place for place, override in enumerate(parsed)}
    return [overrides[place] for place in sorted(last.values())]


def nested(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group as nested dictionaries."""
    found = OmegaConf.create()
    for name, value in values.items():
        if name.startswith(f"{group}."):
            OmegaConf.update(found, name, value)
    values_of_group: Any = OmegaConf.to_container(found[group])
    return {**values_of_group}


def _refuse_sweeps(where: str, words: Sequence[str]) -> None:
    """Raise if some of the overrides are of a sweep, or cannot be read."""
    for word in words:
        if word.startswith("experiment=") and word != "experiment=null":
            raise StabilityError(f"{where}{word}: an experiment is a sweep. Give the settings of one trial of it.")
    try:
        parsed = OverridesParser.create().parse_overrides(full_words(words))
    except HydraException as error:
        raise StabilityError(f"{where}{explain_error(error)}") from None
    for override in parsed:
        if override.is_sweep_override():
            raise StabilityError(
                f"{where}{override.input_line} has several values: give one. If it is a list, write it in brackets; if "
                "it is a text with a comma, quote it."
            )


def _folder_overrides(name: str, folder: Path, cfg: DictConfig, arguments: Sequence[str]) -> list[str]:
    """The overrides that make the configuration of a trial's folder, as few as will do."""
    place = short_path(folder)
    if (folder / HYDRA_CONFIG).exists() and not (folder / CONFIG).exists():
        raise StabilityError(
            f"{name}: {place} is of a Hydra app of your own, whose trials are trained by trainer=command: give that, "
            "trainer.command=… and the settings."
        )
    if not (folder / CONFIG).exists():
        raise StabilityError(
            f"{name}: {place} has no {CONFIG}: give the folder of one trial, such as {folder / 'TRIAL'}."
        )
    try:
        healthy = read_trial(folder).healthy
    except NoTrial as reason:
        raise StabilityError(
            f"{name}: {place} is no finished trial: {reason}. Finish it, or give its overrides instead."
        ) from None
    if healthy == (name == "FAILED"):
        state, wanted_one = ("is healthy", "failed") if healthy else ("failed", "is healthy")
        raise StabilityError(f"{name}: the trial in {place} {state}. Give as {name} one that {wanted_one}.")
    wanted = flatten_dict(OmegaConf.to_container(read_config(folder / CONFIG)))
    # A command is not checked before it has all that its folder says of it.
    words = [*arguments, *(override_of(n, wanted[n]) for n in wanted if is_of_command(n))]
    raw, plain = composed(name, cfg, words)
    base = flatten(plain.config)
    own = [n for n in wanted if wanted[n] != base.get(n) and n.split(".")[0] not in _OF_STUDY]
    of_data = [{n for n in names if n.startswith("data.")} for names in (wanted, base)]
    if of_data[0] and of_data[0] != of_data[1]:  # from another kind of source
        own = [n for n in own if not n.startswith("data.")] + ["data"]
        wanted["data"] = nested(wanted, "data")
    follow = [n for n in own if "${" in str(raw.get(n))]
    fixed = [*words[len(arguments) :], *(override_of(n, wanted[n]) for n in own if n not in follow)]
    values = flatten(composed(name, cfg, [*arguments, *fixed])[1].config)
    # Others may follow what was just set: numbers of steps follow the time scale.
    moved = [n for n in wanted if values.get(n) != wanted[n] and n.split(".")[0] not in (*_OF_STUDY, "data")]
    return fixed + [override_of(n, wanted[n]) for n in moved]
