"""The jobs of a sweep: the combinations of its overrides, and the trial that each of them configures."""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from stability.config.hydra import explain_error, given_overrides, resolve_config
from stability.config.names import changes_result, flatten
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.sweeps.hydra_internals import combinations

_SHOWN = 4  # invalid jobs that are listed below one reason


@dataclass(frozen=True)
class PlannedTrial:
    """A trial of a sweep, with the folder that it is trained in."""

    config: Config
    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """{dotted name: value} of the settings that can change its result."""
        return {name: value for name, value in flatten(self.config).items() if changes_result(name)}

    @property
    def steps(self) -> int | None:
        """The number of its training steps; None if only the command that trains it knows that."""
        return self.config.budget

    @property
    def fresh(self) -> bool:
        """Whether it is trained from the start, whatever its folder holds."""
        return self.config.fresh


class NextTrial(NamedTuple):
    """A trial that a sweeper may launch next: its overrides, and what they configure."""

    overrides: list[str]
    trial: PlannedTrial


class InvalidJob(NamedTuple):
    """A job whose configuration is invalid: the overrides that set it apart from the other jobs, and the reason."""

    overrides: str
    reason: str


def grid_jobs(cfg: DictConfig) -> list[list[str]]:
    """Return the overrides of every job of a grid sweep.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Raises:
        StabilityError: No job is left, because a range or a list of values is empty.
    """
    arguments = [f"{name}={value}" for name, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    arguments.extend(given_overrides(cfg))  # after those of the file: the last one counts
    loader = GlobalHydra.instance().config_loader()
    jobs = combinations(OverridesParser.create(config_loader=loader).parse_overrides(arguments))
    if not jobs:
        raise StabilityError("There is nothing to sweep: a range or a list of values is empty, as in seed=range(0).")
    return jobs


# Hydra takes a tenth of a second to compose a job, and a job is composed twice: for the plan, then for the launcher.
# So a configuration is kept until it is asked for again. It is kept pickled, because both sides change their copy, and
# by the loader that composed it, because a process that runs several commands has a loader for each.
_composed: WeakKeyDictionary[ConfigLoader, dict[tuple[str, ...], bytes]] = WeakKeyDictionary()


def compose_job(
    cfg: DictConfig, job: Sequence[str], number: int | None = None, *, keep: bool = False
) -> tuple[DictConfig, PlannedTrial]:
    """Compose a job of a sweep.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.
        job: The overrides of the job.
        number: The job's number in the sweep, which the name of a folder may contain. None if it has none yet.
        keep: Whether the job will be composed once more.

    Returns:
        The configuration as Hydra composed it, and the trial that it describes.

    Raises:
        StabilityError: The configuration is invalid.
    """
    loader = GlobalHydra.instance().config_loader()
    kept, key = _composed.setdefault(loader, {}), tuple(job)
    try:
        if key in kept:
            composed = pickle.loads(kept[key] if keep else kept.pop(key))
        else:
            composed = loader.load_sweep_config(cfg, [*job])
            kept[key] = pickle.dumps(composed)
        if number is not None:
            with open_dict(composed):
                composed.hydra.job.id, composed.hydra.job.num = str(number), number
        folder = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)
        return composed, PlannedTrial(resolve_config(composed), folder)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises ValueError for GROUP=null
        raise StabilityError(explain_error(error)) from error


def describe_job(cfg: DictConfig, job: Sequence[str]) -> str:
    """Return the overrides that set a job apart from the other jobs of its sweep."""
    given = OverridesParser.create().parse_overrides(given_overrides(cfg))
    fixed = {override.get_key_element(): not override.is_sweep_override() for override in given}  # the last one counts
    return " ".join(override for override in job if not fixed.get(override.partition("=")[0]))


def list_invalid(jobs: Iterable[InvalidJob]) -> str:
    """List invalid jobs by their reason, one a line."""
    by_reason: dict[str, list[str]] = {}
    for job in jobs:
        by_reason.setdefault(" ".join(job.reason.split()), []).append(job.overrides or "the only configuration")
    lines = []
    for reason, overrides in by_reason.items():
        lines += [f"  {reason}", *(f"    {text}" for text in overrides[:_SHOWN])]
        if len(overrides) > _SHOWN:
            lines.append(f"    and {len(overrides) - _SHOWN:,} more")
    return "\n".join(lines)
