"""Processes that share out work, on this machine or on the nodes of a Slurm cluster, started through submitit.

The work of one that is killed is given to another, so it has to be such that it can be gone on with.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from stability.errors import Interrupted, StabilityError
from stability.files import short_path

_PAUSE = 0.5  # seconds between two looks at the workers
_TRIES = 3  # processes that a portion of the work is given to, one after another
_YEAR = 365 * 24 * 60  # minutes; submitit ends what runs longer than it was told

_Portion = TypeVar("_Portion")
_Result = TypeVar("_Result")


def run_in_workers(
    work: Callable[[_Portion, int], _Result],
    portions: Sequence[_Portion],
    cluster: str,
    folder: Path,
    parameters: Mapping[str, Any],
) -> list[_Result | None]:
    """Have `work(portion, n)` run for every portion at once, each in a process that shares its device with n in all.

    Returns the results in their order, None of a portion whose process was killed three times. The workers leave their
    logs in `folder`; `parameters` are those of submitit's jobs. On this machine each sees one of the GPUs, in turn.
    Raises StabilityError where submitit or Slurm is missing and for a worker that failed, when the others have ended,
    and Interrupted after Ctrl-C or SIGTERM, when all have.
    """
    from stability.training.together import stop_requests  # late: PyTorch takes seconds

    local = cluster == "local"
    executor = _executor(cluster, folder, parameters)
    gpus = _gpus() if local else []
    sharing = -(-len(portions) // max(1, len(gpus))) if local else 1
    tasks = []
    for i, portion in enumerate(portions):
        gpu = gpus[i % len(gpus)] if gpus else None
        tasks.append(_Task(_Work(work, portion, sharing, gpu, len(portions) if local else 1), local))
    with stop_requests() as stop_requested:
        for task in tasks:
            task.begin(executor)
        while going_on := [task for task in tasks if task.job is not None]:
            time.sleep(_PAUSE)
            for task in going_on:
                if stop_requested():
                    task.stop()
                elif task.job.done():
                    task.look(executor)
        if stop_requested():
            raise Interrupted("Stopped. The same command goes on from there.")
    if failed := [task.failure for task in tasks if task.failure]:
        raise StabilityError("\n".join(failed))
    return [task.result for task in tasks]


@dataclass
class _Work(Generic[_Portion, _Result]):
    """What a worker is sent."""

    work: Callable[[_Portion, int], _Result]
    portion: _Portion
    sharing: int  # workers on its device
    gpu: str | None
    beside: int  # workers on its machine

    def __call__(self) -> _Result:
        import torch

        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        torch.set_num_threads(max(1, torch.get_num_threads() // self.beside))
        # With this Slurm says that time is up: checkpoints are written, and another worker goes on.
        signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
        return self.work(self.portion, self.sharing)


class _Task(Generic[_Portion, _Result]):
    """A portion of the work, and the worker that has it."""

    job: Any = None  # submitit's, while there is a worker
    result: _Result | None = None
    failure: str = ""

    def __init__(self, work: _Work[_Portion, _Result], local: bool) -> None:
        self._work, self._local, self._tries = work, local, 0

    def begin(self, executor: Any) -> None:
        """Give it to a new worker."""
        self._tries += 1
        # The terminal's Ctrl-C is for us alone: submitit would kill the workers before they have written checkpoints.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.job = executor.submit(self._work)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def look(self, executor: Any) -> None:
        """See what became of the worker, which has ended."""
        from submitit.core.utils import UncompletedJobError

        job, self.job = self.job, None
        killed = self._local and not job.paths.result_pickle.exists()  # on a cluster's file system it may come late
        error = None if killed else job.exception()
        if killed or isinstance(error, UncompletedJobError):
            if self._tries < _TRIES:
                print(f"A worker was killed ({short_path(job.paths.stderr)}); another one goes on.", flush=True)
                self.begin(executor)
        elif error is not None:
            self.failure = f"A worker failed: {str(error).strip().splitlines()[-1]} ({short_path(job.paths.stderr)})"
        else:
            self.result = job.result()

    def stop(self) -> None:
        """Ask the worker to end, again until it has: it hears nothing before it trains."""
        if self.job.done():
            self.job = None
        elif self._local:
            os.kill(int(self.job.job_id), signal.SIGTERM)  # submitit's cancel() would send SIGINT
        else:
            self.job.cancel()


def _executor(cluster: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise StabilityError("Workers need submitit: pip install 'stability[cluster]'.") from None
    folder.mkdir(parents=True, exist_ok=True)
    own = tempfile.mkdtemp(dir=folder, prefix=time.strftime("%Y-%m-%d-%H%M%S-"))  # local job numbers come again
    try:
        executor = AutoExecutor(own, cluster=cluster)
        executor.update_parameters(**{"timeout_min": _YEAR, "name": "stability", **parameters})
    except (RuntimeError, ValueError, TypeError, NameError) as error:  # no Slurm here, no such parameter
        raise StabilityError(f"hydra.launcher.cluster={cluster}: {error}") from None
    return executor


def _gpus() -> list[str]:
    """The names of the GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
