"""The requests that a trial sends to the scheduler.

A trial is a coroutine. It awaits a request, such as `slot.train(10)`; the scheduler fulfils the request in a stack that
the trial may share with others, and resumes the coroutine with the answer.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from stability.core.errors import Interrupted
from stability.data.records import Dataset
from stability.diagnosis.table import Table
from stability.engine.stack import Stack, select

_Answer = TypeVar("_Answer")


class Request(Generic[_Answer]):
    """Something to await; the scheduler decides when the answer comes."""

    def __await__(self) -> Generator["Request[_Answer]", _Answer, _Answer]:
        """Pass the request to the scheduler, and return its answer."""
        answer = yield self
        return answer


class Validation(NamedTuple):
    """Phoneme error rate (1: all wrong) and loss on the validation split."""

    per: float
    loss: float


@dataclass(eq=False)
class Slot:
    """A trial's place in a stack. The scheduler changes it as other trials come and go.

    Attributes:
        stack: The stack that holds the trial.
        place: The trial's position in it.
        stopping: How the trial has to end after its next checkpoint; None as long as it may go on.
    """

    stack: Stack
    place: int = 0
    stopping: type[Interrupted] | None = None

    @property
    def step(self) -> int:
        """The trial's next step."""
        return self.stack.steps[self.place]

    @property
    def failed(self) -> bool:
        """Whether the trial met a loss or gradient that is not finite. It is never stepped again."""
        return bool(self.stack.failed[self.place])

    def alone(self) -> Stack:
        """Return a copy of the trial as a stack of one."""
        return select(self.stack, [self.place])

    def train(self, steps: int) -> Request[Table]:
        """Request 1 to `steps` further steps. The answer is their signals."""
        return Train(steps)

    def validate(self) -> Request[Validation]:
        """Request a validation. The answer is the error rate and the loss on the validation split."""
        return Validate()


@dataclass(frozen=True, eq=False)
class Join(Request[None]):
    """A request for a place in the scheduler's stack. The answer comes when the slot is in it."""

    slot: Slot
    dataset: Dataset


@dataclass(frozen=True)
class WaitForMemory(Request[None]):
    """A request to be resumed when there may be more memory: another trial has ended."""


@dataclass(frozen=True)
class Train(Request[Table]):
    """A request for up to `steps` further steps."""

    steps: int


@dataclass(frozen=True)
class Validate(Request[Validation]):
    """A request for a validation."""
