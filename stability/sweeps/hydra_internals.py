"""The private names of Hydra that sweeps need. If a new version of Hydra breaks sweeps, mend it here.

Hydra offers no public base for a sweeper that goes through a grid, and no public way to read a job's error.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the swept values, each as the overrides of one job."""
    (jobs,) = BasicSweeper.split_arguments([*overrides], None)
    return jobs


def job_error(result: JobReturn) -> BaseException | None:
    """Return the error that ended a job, or None. `result.return_value` would print and raise it."""
    if result.status is not JobStatus.FAILED:
        return None
    error: BaseException = result._return_value
    return error


@contextmanager
def call_when_drawn(sweeper: Any, function: Callable[[Sequence[Any]], None]) -> Iterator[None]:
    """Call a function with the trials that Optuna's sweeper has drawn, before they are launched."""
    configure = sweeper._configure_trials

    def configure_and_call(trials: Sequence[Any], *arguments: Any) -> Any:
        function(trials)
        return configure(trials, *arguments)

    sweeper._configure_trials = configure_and_call
    try:
        yield
    finally:
        del sweeper._configure_trials
