"""The jobs of an app: what each one is, and the folder that it has because of that.

A job that is started again has to find its folder. Hydra's own names of folders are dates and numbers, so a job has a
name of its own here: its overrides, to be read, and a hash of all its settings. The hash alone decides.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stability.analysis.levels import Level
from stability.analysis.settings import levels_of
from stability.config.hydra import given_overrides
from stability.core.errors import StabilityError
from stability.reporting.recorded import default_folder_override

_DATED = "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"  # Hydra's default
_NUMBER = re.compile(r"\$\{hydra[.:]job\.(num|id)\}")
_LONGEST = 80  # characters of the overrides in a folder's name


@dataclass(frozen=True)
class AppJob:
    """A job of an app.

    Attributes:
        overrides: What the launcher has to be given.
        folder: The job's folder.
        settings: {dotted name: value} of all its settings.
        steps: None: the app does not say how many steps it makes.
        fresh: False: a job that is finished is not run again.
    """

    overrides: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Level]
    steps: int | None = None
    fresh: bool = False


class Jobs:
    """The jobs of a sweep.

    Args:
        config: What Hydra composed for the sweep, after `fix_folder`.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._found: dict[tuple[str, ...], AppJob] = {}
        self._in_folder: dict[Path, AppJob] = {}
        self._names: dict[Path, dict[str, str]] = {}  # {folder of a study: {hash: name of a job's folder}}

    def find(self, overrides: Sequence[str]) -> AppJob:
        """Compose a job, and find its folder.

        Raises:
            StabilityError: What the job is depends on its number, which is another one when it is started again; or
                its folder is that of another job, or in another folder than the sweep's.
        """
        key = tuple(overrides)
        if key not in self._found:
            job = self._compose(key)
            if self._in_folder.setdefault(job.folder, job).settings != job.settings:
                raise StabilityError(
                    f"hydra.sweep.subdir gives the folder {job.folder} to several jobs: leave it out, or name all that "
                    "varies in it."
                )
            self._found[key] = job
        return self._found[key]

    def _compose(self, overrides: tuple[str, ...]) -> AppJob:
        composed = GlobalHydra.instance().config_loader().load_sweep_config(self._config, [*overrides])
        settings: Any = OmegaConf.to_container(composed, resolve=False)
        hydras = settings.pop("hydra")
        levels = levels_of(settings)  # interpolations as they are written, as Hydra keeps them in the job's folder
        with _as_current(composed):
            study = Path(str(composed.hydra.sweep.dir))
            if study != Path(str(self._config.hydra.sweep.dir)):
                raise StabilityError(
                    f"hydra.sweep.dir gives jobs folders of their own, such as {study}: a study has one. Name what "
                    "varies in hydra.sweep.subdir instead, or leave it out."
                )
            if not _NUMBER.search(str(hydras["sweep"]["subdir"])):
                subdir = str(composed.hydra.sweep.subdir)
                if "/" not in subdir:  # MLflow's study is that of the folder above a job
                    return AppJob(overrides, study / subdir, levels)
            if numbered := [n for n, v in levels.items() if isinstance(v, str) and _NUMBER.search(v)]:
                raise StabilityError(
                    f"{numbered[0]} depends on hydra.job.num or hydra.job.id, which a job gets anew when it is started "
                    f"again: sweep over it instead, as in {numbered[0]}=0,1,2."
                )
            name = self._name(study, _digest(settings), given_overrides(composed))
            return AppJob((*overrides, f"hydra.sweep.subdir='{name}'"), study / name, levels)

    def _name(self, study: Path, digest: str, overrides: Sequence[str]) -> str:
        """The name of a job's folder: the one that is there, or else a new one."""
        if study not in self._names:
            there = [path.name for path in study.iterdir()] if study.is_dir() else []
            self._names[study] = {name.rpartition("-")[2]: name for name in there}
        text = re.sub(r"[^\w.+=,-]+", "_", ",".join(overrides))[:_LONGEST]
        return self._names[study].setdefault(digest, f"{text or 'default'}-{digest}")


def fix_folder(config: DictConfig) -> None:
    """Replace Hydra's default folder of a sweep, which has the time in its name, by `multirun/APP`."""
    if OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"] != _DATED:  # type: ignore[call-overload,index]
        return
    override = default_folder_override(config.hydra.job.name)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = override.split("'")[1]
        config.hydra.overrides.hydra.append(override)  # the jobs are composed with it


def is_dated(config: DictConfig) -> bool:
    """Return whether the folder of a sweep has the time in its name, so that it is a new one each time."""
    return "${now:" in str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore[call-overload,index]


def _digest(settings: Mapping[str, Any]) -> str:
    """A hash of settings. Interpolations count as they are written: what they resolve to may be a time."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


@contextmanager
def _as_current(composed: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` refer to this job."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
