"""A trained decoder from its checkpoint: its weights, its configuration, and the sessions that its day layers are of.

The checkpoint is one of a trial of ours, whose folder has the configuration and the sessions, or a public one. The
official trainer leaves both in `args.yaml`, next to its checkpoint. Sizes are those of the weights in any case.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from stability.config.commandline import compose_config, full_words, override_of
from stability.config.hydra import read_config
from stability.config.names import flatten_dict
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.files import BEST, CHECKPOINTS, CONFIG, DATA
from stability.core.text import counted, listed, load_json
from stability.engine.decoder import Parameters, init_parameters
from stability.trials import checkpoint

_IN_FOLDERS = (BEST, Path("checkpoint", "best_checkpoint"), Path("best_checkpoint"))  # ours, and the official trainer's
_ARGUMENTS = "args.yaml"
_OFFICIAL = {  # our names of the official trainer's settings
    "model.patch_stride": "model.patch_stride",
    "aug.smooth_std": "dataset.data_transforms.smooth_kernel_std",
}
_GROUPS = ("model", "data", "aug", "batch", "precision")  # of a trial's settings, those that matter after its training


@dataclass(frozen=True)
class Trained:
    """A trained decoder.

    Attributes:
        path: The checkpoint's file.
        folder: The folder of its trial; None if no trial of ours wrote it.
        config: Its configuration, and where the data are.
        parameters: Its weights, without the trial axis, with the day layers of all its sessions.
        sessions: The names of its sessions, in the order of its day layers; None if nothing next to it says them.
    """

    path: Path
    folder: Path | None
    config: Config
    parameters: Parameters
    sessions: tuple[str, ...] | None

    @property
    def days(self) -> int:
        """The number of its day layers."""
        return len(self.parameters["day_weights"])

    @property
    def n_features(self) -> int:
        """The number of features in a bin that it reads."""
        return self.parameters["day_weights"].shape[-1]


def open_trained(place: Path, overrides: Sequence[str]) -> Trained:
    """Open a trained decoder.

    Args:
        place: Its checkpoint; or its folder: that of a trial, or that of the official trainer's output.
        overrides: Further settings, as for `stability.train`. A public checkpoint is evaluated on data in the T15
            layout unless they say otherwise, and a trial on its own data.

    Raises:
        StabilityError: There is no checkpoint, it is none of a decoder, or the settings do not fit it.
    """
    path = _file_in(place)
    weights = checkpoint.read_weights(path)
    features, days, sizes = _sizes(weights, path)
    folder = path.parents[1] if path.parent.name == str(CHECKPOINTS) and (path.parents[1] / CONFIG).exists() else None
    given = full_words(overrides)
    if wrong := [word for word in given if "=" not in word or word.startswith(("-", "experiment="))]:
        raise StabilityError(f"Cannot read {wrong[-1]}. After the checkpoint write NAME=VALUE, as in data.path=FOLDER.")
    own, sessions = _of_public(path) if folder is None else _of_trial(folder)
    groups = {word.partition("=")[0] for word in given}
    words = [override_of(name, value) for name, value in (own | sizes).items() if name.partition(".")[0] not in groups]
    if folder is None and "data" not in groups:
        words.append("data=t15")
    config = compose_config([*words, *given])
    if folder is not None and not any(word.startswith("outputs=") for word in given):
        # The folder may be somebody else's: nothing is written to a place that only its configuration names.
        home = folder.resolve()
        inside = Path(config.outputs).resolve() in home.parents[:2]
        config = replace(config, outputs=config.outputs if inside else str(home))
    parameters = checkpoint.fit_weights(weights, path, init_parameters(config.model, features, days, config.seed))
    if broken := [name for name, p in parameters.items() if not p.isfinite().all()]:
        raise StabilityError(
            f"{path} has weights that are not finite, in {listed(broken)}: give an earlier checkpoint."
        )
    if sessions is not None and len(sessions) != days:
        file = _ARGUMENTS if folder is None else DATA
        raise StabilityError(
            f"{path} has {counted(days, 'day layer')}, but the {file} of its training names "
            f"{counted(len(sessions), 'session')}. Bring the right {file} back."
        )
    return Trained(path, folder, config, parameters, sessions)


def _file_in(place: Path) -> Path:
    if not place.is_dir():
        return place
    found = [place / name for name in _IN_FOLDERS if (place / name).exists()]
    if not found:
        raise StabilityError(
            f"There is no checkpoint in {place}: none of {listed(map(str, _IN_FOLDERS))}. Give the checkpoint's file, "
            "or the folder of a trial that has been validated."
        )
    return found[0]


def _sizes(weights: Parameters, path: Path) -> tuple[int, int, dict[str, Any]]:
    """The features, the days, and the settings of the model that the shapes of the weights say."""
    try:
        features = weights["day_biases.0"].shape[-1]
        sizes = {
            "model.units": weights["h0"].shape[-1],
            "model.layers": sum(name.startswith("gru.weight_hh_l") for name in weights),
            "model.patch_size": weights["gru.weight_ih_l0"].shape[1] // features,
            "batch.days": 1,  # which a batch of any size can have
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise StabilityError(
            f"{path} is a checkpoint of another kind of model: it has no usable {error.args[0]!r}. Give one of the GRU "
            "decoder with day layers."
        ) from None
    days = sum(re.fullmatch(r"day_biases\.\d+", name) is not None for name in weights)
    return features, days, sizes


def _of_trial(folder: Path) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """The settings of a trial, and its sessions if its folder names them."""
    cfg = read_config(folder / CONFIG)
    settings = flatten_dict({name: OmegaConf.to_container(cfg[name]) for name in _GROUPS if name in cfg})
    settings |= {"outputs": cfg.get("outputs", "outputs")}
    try:
        named = load_json((folder / DATA).read_bytes()).get("sessions")
    except (OSError, ValueError, AttributeError):
        named = None
    return settings, _names(named or settings.get("data.sessions"))


def _of_public(path: Path) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """What the official trainer says about its checkpoint, as our settings, and its sessions."""
    arguments = path.with_name(_ARGUMENTS)
    if not arguments.exists():
        return {}, None
    cfg = read_config(arguments)
    settings = {ours: OmegaConf.select(cfg, theirs) for ours, theirs in _OFFICIAL.items()}
    sessions: Any = OmegaConf.select(cfg, "dataset.sessions")
    if not isinstance(sessions, ListConfig | None):
        raise StabilityError(
            f"{arguments}: dataset.sessions is {sessions}, and has to be a list. Bring the right file back."
        )
    return {name: value for name, value in settings.items() if value is not None}, _names(sessions)


def _names(found: Any) -> tuple[str, ...] | None:
    return tuple(map(str, found)) if found else None
