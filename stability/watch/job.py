"""The Hydra job that is running in this process: its folder, and what writes the results of the Monitor in it.

It imports neither Hydra nor PyTorch.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    """A job with the callback of `stability.hydra`, which gives the verdict when the job has ended.

    Attributes:
        folder: The job's folder.
        leave_results: Writes the tables, the verdict and the figure of the Monitor that began last; None if none has.
    """

    folder: Path
    leave_results: Callable[[], None] | None = None


_running: Job | None = None


def begin_job(folder: Path) -> Job:
    """Note that a job begins whose verdict is given at its end."""
    global _running
    _running = Job(folder)
    return _running


def end_job() -> None:
    """Forget the job, and with it the Monitor and its model."""
    global _running
    _running = None


def job_in(folder: Path) -> Job | None:
    """Return the running job that gives its verdict at its end, if this is its folder."""
    return _running if _running is not None and _running.folder.resolve() == folder.resolve() else None


def is_first_process() -> bool:
    """Return whether this is the first, or only, of the processes that train together, by what their launcher says."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next(filter(None, ranks), 0)) == 0


def hydra_folder() -> Path | None:
    """Return the folder of the Hydra job that runs this code; None outside a job."""
    module = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return None
    runtime = module.HydraConfig.get().runtime
    # A key whose value is missing, as while a sweep is planned, is not "in" a configuration.
    return Path(runtime.output_dir) if "output_dir" in runtime else None
