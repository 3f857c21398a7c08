"""Worker processes on this machine or on the nodes of a Slurm cluster, started through submitit.

A worker that is killed is replaced by a new one, so a second call of the work must continue what the first one left.
"""

import math
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
from typing import Any, Protocol

import psutil

from stability.core.errors import Interrupted, StabilityError
from stability.core.extras import require
from stability.core.files import short_path
from stability.core.stopping import postponed, signals_handled, stop_requested

_ATTEMPTS = 3  # a worker that was killed so often is not replaced
_CHECK_PARENT = 0.5  # seconds
_NO_RESULT = "UncompletedJobError"  # how submitit names the error of a job that left no result


def run_in_workers(
    work: Callable[[int, int], Any],
    is_done: Callable[[], bool],
    *,
    count: int,
    cluster: str,
    folder: Path,
    parameters: Mapping[str, Any],
) -> list[Any]:
    """Call `work(i, sharing)` once for every `i` below `count`, each call in a process of its own, all at once.

    A worker whose time is up, or that is killed, is replaced by a new one that calls `work(i, sharing)` again. On this
    machine each worker sees one of the GPUs, in turn, and stops when this process ends. On a cluster workers continue
    without this process.

    Args:
        work: The function to call. It must be picklable. `sharing` is the number of workers on the same device.
        is_done: Returns whether no work is left. Then no worker is replaced, and on a cluster those that have not
            started are cancelled.
        count: The number of workers.
        cluster: `local` or `slurm`.
        folder: Where the workers leave their logs.
        parameters: Parameters of submitit's jobs, by name.

    Returns:
        What each call returned. None for a worker that was killed three times.

    Raises:
        StabilityError: The package submitit or Slurm is missing, or a worker failed and all others have ended.
        Interrupted: Ctrl-C or SIGTERM came, and all workers have ended.
    """
    require("cluster", "submitit")
    backend: _Backend = _ThisMachine(count) if cluster == "local" else _Slurm()
    executor = _executor(cluster, folder, {"timeout_min": backend.limit, "name": "stability", **parameters})
    workers = [_Worker(backend.task(work, number), executor) for number in range(count)]
    with postponed():
        for worker in workers:
            worker.start()
        while running := [worker for worker in workers if worker.job is not None]:
            time.sleep(backend.pause)
            ended = backend.ended(running)
            done = bool(ended or len(running) < count) and is_done()  # it reads files: called only after one has ended
            for worker in running:
                if worker in ended:
                    worker.handle_end(replace=not (done or stop_requested()))
                elif stop_requested():
                    backend.stop(worker)
                elif done:
                    backend.cancel_waiting(worker)
    if failures := [worker.failure for worker in workers if worker.failure]:
        raise StabilityError("\n".join(failures))
    return [worker.result for worker in workers]


@dataclass
class _Task:
    """The function that a worker process calls.

    It returns whether the work is finished (False: the time was up), and the result of the work.
    """

    work: Callable[[int, int], Any]
    number: int
    sharing: int  # workers on the same device
    gpu: str | None = None
    on_machine: int = 1  # workers on the same machine
    parent: int | None = None  # the process that the worker ends with

    def __call__(self) -> tuple[bool, Any]:
        time_is_up = False

        def end_early(number: int, frame: object) -> None:
            nonlocal time_is_up
            time_is_up = True
            signal.raise_signal(signal.SIGTERM)

        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu  # read when PyTorch is imported
        try:
            with signals_handled():
                # What submitit has Slurm send when the job's time is nearly up.
                signal.signal(signal.SIGUSR2, end_early)
                if self.parent is not None:
                    threading.Thread(target=_end_with, args=(self.parent,), daemon=True).start()
                import torch

                torch.set_num_threads(max(1, torch.get_num_threads() // self.on_machine))
                # For programs that trials start. PyTorch in this process has read it already.
                os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
                return True, self.work(self.number, self.sharing)
        except Interrupted:
            if not time_is_up:
                raise
            return False, None


def _end_with(parent: int) -> None:
    """Wait until the parent process has ended, then ask this process to end."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        # A process that has ended stays a zombie until its own parent asks for its exit status.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_CHECK_PARENT)
    os.kill(os.getpid(), signal.SIGTERM)


class _Worker:
    """A part of the work, and the process that does it."""

    job: Any = None  # submitit's job, while the process runs
    failure: str = ""
    result: Any = None

    def __init__(self, task: _Task, executor: Any) -> None:
        self._task, self._executor, self._killed = task, executor, 0

    def start(self) -> None:
        """Start a process."""
        # A child inherits the mask. So Ctrl-C in the terminal reaches this process alone, and the workers are stopped
        # by SIGTERM. With SIGINT, submitit would kill them before they have written their checkpoints.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.job = self._executor.submit(self._task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def handle_end(self, *, replace: bool) -> None:
        """Take the result or the failure of the process, which has ended, and start a new one if it was cut short."""
        job, self.job = self.job, None
        error, log = _error_of(job), short_path(job.paths.stderr)
        trouble = ""
        if error is None:
            finished, self.result = job.result()
            trouble = "" if finished else "ran out of time"
        elif _NO_RESULT in error:
            self._killed += 1
            trouble = "was killed"
        else:
            (trace, *_) = error.rsplit("\n" + 22 * "-", 1)  # below the line submitit says where its logs are
            self.failure = f"A worker failed: {trace.strip().splitlines()[-1]} ({log})"
        if trouble and replace and self._killed < _ATTEMPTS:
            print(f"A worker {trouble} ({log}). A new one continues its work.", flush=True)
            self.start()


class _Backend(Protocol):
    """Where workers run."""

    pause: float  # seconds between two checks of the workers
    limit: int  # minutes until a worker's time is up

    def task(self, work: Callable[[int, int], Any], number: int) -> _Task: ...

    def ended(self, workers: Sequence[_Worker]) -> list[_Worker]: ...

    def stop(self, worker: _Worker) -> None: ...

    def cancel_waiting(self, worker: _Worker) -> None: ...


class _ThisMachine:
    pause = 0.5
    limit = 365 * 24 * 60

    def __init__(self, count: int) -> None:
        self._count, self._gpus = count, _visible_gpus()

    def task(self, work: Callable[[int, int], Any], number: int) -> _Task:
        gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        sharing = math.ceil(self._count / max(1, len(self._gpus)))
        return _Task(work, number, sharing, gpu=gpu, on_machine=self._count, parent=os.getpid())

    def ended(self, workers: Sequence[_Worker]) -> list[_Worker]:
        return [worker for worker in workers if worker.job.done()]

    def stop(self, worker: _Worker) -> None:
        """Send SIGTERM, where submitit's `cancel` would send SIGINT. Called again until the worker has ended."""
        os.kill(int(worker.job.job_id), signal.SIGTERM)

    def cancel_waiting(self, worker: _Worker) -> None:
        """Do nothing: here no worker waits for a machine."""


class _Slurm:
    pause = 5.0  # longer than here: Slurm's controller answers everyone on the cluster
    limit = 4 * 60

    def task(self, work: Callable[[int, int], Any], number: int) -> _Task:
        return _Task(work, number, sharing=1)

    def ended(self, workers: Sequence[_Worker]) -> list[_Worker]:
        """The workers whose jobs are not in the queue any more.

        Submitit would ask sacct, but not every cluster keeps the accounting that sacct reads.
        """
        queue = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True)
        if queue.returncode:  # the controller does not answer; it may do so next time
            return []
        return [worker for worker in workers if worker.job.job_id not in queue.stdout.split()]

    def stop(self, worker: _Worker) -> None:
        self._cancel(worker)

    def cancel_waiting(self, worker: _Worker) -> None:
        self._cancel(worker, "--state=PENDING")

    def _cancel(self, worker: _Worker, *options: str) -> None:
        subprocess.run(["scancel", "--quiet", *options, worker.job.job_id], capture_output=True)


def _error_of(job: Any) -> str | None:
    """Return the error of a submitit job that has ended, or None."""
    # List the folder: a network file system may keep reporting that a single file is missing after it was written.
    names = {path.name for path in job.paths.folder.iterdir()}
    if job.paths.result_pickle.name not in names:
        return _NO_RESULT
    # The error can contain _NO_RESULT too: submitit writes it for a job whose time was up before it started.
    error = job.exception()
    return None if error is None else str(error)


def _executor(cluster: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    from submitit import AutoExecutor

    folder.mkdir(parents=True, exist_ok=True)
    # A folder for this run alone: on one machine job numbers are process numbers, which come again.
    own = tempfile.mkdtemp(dir=folder, prefix=time.strftime("%Y-%m-%d-%H%M%S-"))
    try:
        executor = AutoExecutor(own, cluster=cluster)
        executor.update_parameters(**parameters)
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:  # no Slurm, no such parameter
        raise StabilityError(f"hydra.launcher.cluster={cluster}: {error}") from None
    return executor


def _visible_gpus() -> list[str]:
    """The names of the GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
