"""A Hydra launcher that trains the trials of a sweep together, in stacks: `hydra/launcher=stacked`.

Trials share a stack if they have the same model, batch, precision, data and device; other stacks follow. Each has its
folder, its `.hydra` files and its log as with any launcher, and ends as it would alone.
"""

import copy
import json
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from stability.config import Config, resolve
from stability.errors import StabilityError
from stability.studies.job import live_in_sweep

if TYPE_CHECKING:
    from stability.data.t15 import Dataset
    from stability.training.together import Wish

_LOG = logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")  # as Hydra writes it


@dataclass
class _Job:
    config: DictConfig
    task: DictConfig  # without Hydra's own part
    folder: Path
    result: JobReturn


class StackedLauncher(Launcher):
    """Trains the sweep's trials in stacks of `size`, or of what memory holds."""

    def __init__(self, size: int | None) -> None:
        if size is not None and size < 1:
            raise StabilityError(f"hydra.launcher.size={size}: it has to be 1 or more, or null.")
        self._size = size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra composed."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train a batch of the sweeper's jobs."""
        setup_globals()
        stacks: dict[str, dict[Path, list[_Job]]] = {}
        results = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            try:
                job = self._job(number, overrides)
            except (HydraException, OmegaConfBaseException, StabilityError) as error:  # the others are trained
                results.append(JobReturn(overrides, status=JobStatus.FAILED, _return_value=error))
            else:
                results.append(job.result)
                stacks.setdefault(_kind(job.task), {}).setdefault(job.folder, []).append(job)
        for stack in stacks.values():
            self._train(stack)
        return results

    def _job(self, number: int, overrides: Sequence[str]) -> _Job:
        composed = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
            composed.hydra.runtime.output_dir = str(folder.absolute())
        task, hydra = copy.deepcopy(composed), OmegaConf.masked_copy(composed, ["hydra"])
        with open_dict(task):
            del task["hydra"]
        own = [*composed.hydra.overrides.task]
        return _Job(composed, task, folder, JobReturn(own, task, hydra, str(Path.cwd()), composed.hydra.job.name))

    def _train(self, stack: dict[Path, list[_Job]]) -> None:
        """Train the trials of one stack; jobs with one folder are one trial."""
        from stability.training.together import train_together  # late: PyTorch takes seconds

        data = _open_once()
        for end in train_together([self._life(jobs, data) for jobs in stack.values()], self._size):
            if isinstance(end, BaseException):
                raise end

    def _life(self, jobs: list[_Job], data: "Callable[[Config], Dataset]") -> "Generator[Wish, Any, float]":
        job = jobs[0]
        _write_hydra_files(job)
        log = logging.FileHandler(job.folder / f"{job.result.task_name}.log", delay=True)
        log.setFormatter(_LOG)
        self._context.callbacks.on_job_start(config=job.config, task_function=self._task)
        try:
            value = yield from _logged(live_in_sweep(job.task, job.folder, data), log)
            for same in jobs:
                same.result.return_value, same.result.status = value, JobStatus.COMPLETED
            return value
        except BaseException as error:
            job.result.return_value, job.result.status = error, JobStatus.FAILED
            raise
        finally:
            log.close()
            self._context.callbacks.on_job_end(config=job.config, job_return=job.result)


def _kind(cfg: DictConfig) -> str:
    """What trials of one stack have in common."""
    try:
        c = resolve(cfg)
    except (StabilityError, OmegaConfBaseException):
        return "it cannot be trained; its life will say so"
    return json.dumps([c.device, *(asdict(part) for part in (c.model, c.batch, c.precision, c.data))])


def _open_once() -> "Callable[[Config], Dataset]":
    """As `open_data`, but trials that ask for the same get the same."""
    from stability.training.trial import open_data

    opened: dict[str, Dataset] = {}

    def data(settings: Config) -> "Dataset":
        key = json.dumps([asdict(settings.data), asdict(settings.model), settings.batch.days, settings.aug.max_cut])
        if key not in opened:
            opened[key] = open_data(settings)
        return opened[key]

    return data


def _write_hydra_files(job: _Job) -> None:
    """What Hydra writes of any job."""
    if job.config.hydra.output_subdir is None:
        return
    folder = job.folder / job.config.hydra.output_subdir
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config", job.task),
        ("hydra", job.result.hydra_cfg),
        ("overrides", job.config.hydra.overrides.task),
    ):
        OmegaConf.save(content, folder / f"{name}.yaml")


def _logged(life: "Generator[Wish, Any, float]", log: logging.Handler) -> "Generator[Wish, Any, float]":
    """The same life, with a log of its own, whoever lives beside it."""
    root, go_on = logging.getLogger(), partial(next, life)
    while True:
        root.addHandler(log)
        try:
            wish = go_on()
        except StopIteration as ended:
            return float(ended.value)
        finally:
            root.removeHandler(log)
        try:
            answer = yield wish
        except GeneratorExit:
            life.close()
            raise
        except Exception as error:
            go_on = partial(life.throw, error)
        else:
            go_on = partial(life.send, answer)
