"""The files that a Monitor leaves in the folder of its trial: the same as those of a trial of `stability.train`.

`signals.csv` and `validation.csv` are written again from time to time while the training runs, each as a whole: in a
long training the Monitor keeps a sample of the steps, and a training may be resumed from an earlier one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import torch.distributed as dist

from stability.core.files import FIGURE, VERDICT
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.readers.tables import write_tables
from stability.diagnosis.results import write_results
from stability.diagnosis.verdict import Verdict
from stability.watch.job import hydra_folder, is_first_process, job_in

_PAUSE = 2.0  # seconds between two writings of the tables, at least
_SHARE = 0.005  # of the time may go into writing them

_newest: WeakValueDictionary[Path, "TrialFolder"] = WeakValueDictionary()


class TrialFolder:
    """The folder of a trial that a Monitor watches. If several watch one after another, the last one's files stay.

    Args:
        folder: The folder. It is made if it is not there.
        leave_results: Calls `finish` at the end of the job, if the folder is that of a job with our callback.

    Attributes:
        folder: As given.
        problem: Why the folder cannot be written; empty if it can.
    """

    def __init__(self, folder: Path, leave_results: Callable[[], None]) -> None:
        self.folder, self.problem = folder, ""
        self._next = 0.0  # time.monotonic() of the next writing
        _newest[folder.resolve()] = self
        self._job = job_in(folder)
        if self._job is not None:
            self._job.leave_results = leave_results
        with self._noting_problems():
            folder.mkdir(parents=True, exist_ok=True)
            for name in (VERDICT, FIGURE):  # of an earlier training
                (folder / name).unlink(missing_ok=True)

    @property
    def waits_for_job(self) -> bool:
        """Whether the results are written when the job has ended, and not at every verdict."""
        return self._job is not None

    def update(self, recording: Callable[[], Recording]) -> None:
        """Write the tables, unless that was done a moment ago."""
        begun = time.monotonic()
        if begun >= self._next and self._is_newest():
            with self._noting_problems():
                write_tables(self.folder, recording())
            ended = time.monotonic()
            self._next = ended + max(_PAUSE, (ended - begun) / _SHARE)

    def finish(self, recording: Recording, verdict: Verdict) -> None:
        """Write the tables, the figure and the verdict."""
        if not self._is_newest():
            return
        with self._noting_problems():
            write_results(self.folder, recording, verdict)

    def _is_newest(self) -> bool:
        return _newest.get(self.folder.resolve()) is self

    @contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Keep the reason if the folder cannot be written: the training does not need it."""
        try:
            yield
        except OSError as error:
            self.problem = error.strerror or str(error)


def find_folder(given: Path | None) -> Path | None:
    """Return the folder in which a Monitor leaves its files: the one given, or that of the Hydra job; else None.

    Of several processes that train together, only the first leaves files.
    """
    initialized = dist.is_available() and dist.is_initialized()
    is_first = dist.get_rank() == 0 if initialized else is_first_process()
    return (given or hydra_folder()) if is_first else None
