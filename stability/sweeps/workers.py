"""Processes that work side by side, on this machine or on the nodes of a Slurm cluster, started through submitit.

One that is killed is replaced, so its work has to be such that it can be gone on with.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from stability.core.errors import Interrupted, StabilityError
from stability.core.files import short_path

_PAUSES = {"local": 0.5, "slurm": 5.0}  # seconds between two looks at the workers; Slurm has others to answer
_LIMITS = {"local": 365 * 24 * 60, "slurm": 4 * 60}  # minutes after which a worker ends and another one goes on
_TRIES = 3  # processes that are killed before nobody goes on


def run_in_workers(
    work: Callable[[int, int], Any],
    is_done: Callable[[], bool],
    count: int,
    cluster: str,
    folder: Path,
    parameters: Mapping[str, Any],
) -> list[Any]:
    """Have `work(i, n)` run at once for every i below `count`, each in a process that shares its device with n in all.

    Returns what each returned. One whose time is up, or that is killed, is replaced; the third that is killed is not,
    and counts as None. The workers leave their logs in `folder`; `parameters` are those of submitit's jobs. On this
    machine each sees one of the GPUs, in turn, and ends after this process has, as after Ctrl-C. On a cluster they go
    on without it; those that have not begun when `is_done()` are cancelled. Raises StabilityError where submitit or
    Slurm is missing and for a worker that failed, when the others have ended, and Interrupted after Ctrl-C or SIGTERM,
    when all have.
    """
    from stability.trials.scheduler import stop_requests  # late: PyTorch takes seconds

    local = cluster == "local"
    executor = _executor(cluster, folder, parameters)
    gpus = _gpus() if local else []
    sharing = -(-count // max(1, len(gpus))) if local else 1
    workers = []
    for i in range(count):
        gpu = gpus[i % len(gpus)] if gpus else None
        task = _Task(work, i, sharing, gpu, count, os.getpid()) if local else _Task(work, i, sharing)
        workers.append(_Worker(task, executor))
    with stop_requests() as stop_requested:
        for worker in workers:
            worker.begin()
        while going_on := [worker for worker in workers if worker.job is not None]:
            time.sleep(_PAUSES[cluster])
            ended = _ended_here(going_on) if local else _ended_on_slurm(going_on)
            done = (ended or len(going_on) < count) and is_done()
            for worker in going_on:
                if worker in ended:
                    worker.look(replace=not (done or stop_requested()))
                elif stop_requested():
                    _stop_here(worker) if local else _stop_on_slurm(worker)
                elif done and not local:
                    _stop_on_slurm(worker, "--state=PENDING")
        if how := stop_requested():
            raise how("Stopped. The same command goes on from there.")
    if failed := [worker.failure for worker in workers if worker.failure]:
        raise StabilityError("\n".join(failed))
    return [worker.result for worker in workers]


@dataclass
class _Task:
    """What a worker is sent. It returns whether its time sufficed, and what the work returned."""

    work: Callable[[int, int], Any]
    number: int
    sharing: int  # workers on its device
    gpu: str | None = None
    beside: int = 1  # workers on its machine
    parent: int | None = None  # the process without which it is not to go on

    def __call__(self) -> tuple[bool, Any]:
        time_is_up = False

        def ask(number: int, frame: object) -> None:
            """Ask for the end a little later, and again until trials are being trained: then it is heard."""
            nonlocal time_is_up
            time_is_up |= number == signal.SIGUSR2
            again = threading.Timer(_PAUSES["local"], os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGUSR2, ask)  # with which submitit and Slurm say that time is up
        if self.parent is not None:
            threading.Thread(target=_end_after, args=(self.parent,), daemon=True).start()
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // self.beside))
        try:
            return True, self.work(self.number, self.sharing)
        except Interrupted:
            if not time_is_up:
                raise
            return False, None


def _end_after(parent: int) -> None:
    """Ask this process to end, as Ctrl-C does, when its parent has."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # whom nobody may have waited for
            time.sleep(_PAUSES["local"])
    os.kill(os.getpid(), signal.SIGTERM)


class _Worker:
    """A part of the work, and the process that does it."""

    job: Any = None  # submitit's, while there is a process
    failure: str = ""
    result: Any = None

    def __init__(self, task: _Task, executor: Any) -> None:
        self._task, self._executor, self._killed = task, executor, 0

    def begin(self) -> None:
        """Start a process."""
        # The terminal's Ctrl-C is for us alone: submitit would kill the workers before they have written checkpoints.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.job = self._executor.submit(self._task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def look(self, *, replace: bool) -> None:
        """See what became of the process, which has ended, and replace it if it has to be."""
        job, self.job = self.job, None
        log = short_path(job.paths.stderr)
        there = {path.name for path in job.paths.folder.iterdir()}  # a listing is never stale, on any file system
        error = job.exception() if job.paths.result_pickle.name in there else "UncompletedJobError"
        trouble = ""
        if "UncompletedJobError" in str(error):  # submitit's own of one whose time was up before it had begun
            self._killed += 1
            trouble = "was killed"
        elif error is not None:
            (trace, *_) = str(error).rsplit("\n" + 22 * "-", 1)  # what follows says where logs are
            self.failure = f"A worker failed: {trace.strip().splitlines()[-1]} ({log})"
        else:
            ended, self.result = job.result()
            trouble = "" if ended else "is out of time"
        if trouble and replace and self._killed < _TRIES:
            print(f"A worker {trouble} ({log}); another one goes on.", flush=True)
            self.begin()


def _ended_here(workers: Sequence[_Worker]) -> list[_Worker]:
    return [worker for worker in workers if worker.job.done()]


def _stop_here(worker: _Worker) -> None:
    """Ask a worker to end; to be done again until it has, for at first it hears nothing."""
    os.kill(int(worker.job.job_id), signal.SIGTERM)  # submitit's cancel() would send SIGINT


def _ended_on_slurm(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those whose jobs are not in the queue. Submitit would ask Slurm's accounting, which not every cluster has."""
    queue = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True)
    if queue.returncode:  # the controller does not answer: it may do so again
        return []
    return [worker for worker in workers if worker.job.job_id not in queue.stdout.split()]


def _stop_on_slurm(worker: _Worker, *which: str) -> None:
    subprocess.run(["scancel", "--quiet", *which, worker.job.job_id], capture_output=True)


def _executor(cluster: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise StabilityError("Workers need submitit: pip install 'training-stability[cluster]'.") from None
    folder.mkdir(parents=True, exist_ok=True)
    own = tempfile.mkdtemp(dir=folder, prefix=time.strftime("%Y-%m-%d-%H%M%S-"))  # local job numbers come again
    try:
        executor = AutoExecutor(own, cluster=cluster)
        executor.update_parameters(**{"timeout_min": _LIMITS[cluster], "name": "stability", **parameters})
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:  # no Slurm, no such parameter
        raise StabilityError(f"hydra.launcher.cluster={cluster}: {error}") from None
    return executor


def _gpus() -> list[str]:
    """The names of the GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
