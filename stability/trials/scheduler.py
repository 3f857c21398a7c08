"""Trials that are trained together: each lives its own life, and they share a stack, each at a step of its own.

A life is a generator. It yields what it wishes (a place in a stack, some steps, a validation), is sent the answer, and
returns its verdict. What is written, looked at and decided is its own affair, so that a trial is the same alone and
among neighbours. Where one ends, the next that waits takes its place.
"""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from stability.core.errors import Interrupted, StabilityError, Terminated
from stability.data.records import Dataset
from stability.diagnosis.verdict import Verdict
from stability.engine.evaluate import evaluate
from stability.engine.memory import free_memory, is_out_of_memory, peak_memory, reset_peak_memory
from stability.engine.stack import Stack, join, select
from stability.engine.step import train_steps


@dataclass
class Seat:
    """Where a trial is: a place in a stack, which changes as neighbours come and go."""

    stack: Stack
    place: int = 0
    stopping: type[Interrupted] | None = None  # how it is to end, once it has written its checkpoint

    @property
    def step(self) -> int:
        """Its next step."""
        return self.stack.steps[self.place]

    @property
    def failed(self) -> bool:
        """Whether a loss or gradient of its own was not finite."""
        return bool(self.stack.failed[self.place])

    def alone(self) -> Stack:
        """A copy of the trial, as a stack of one."""
        return select(self.stack, [self.place])


class Join(NamedTuple):
    """A wish for a place beside others on these data. From the answer on, the seat may be in another stack."""

    seat: Seat
    dataset: Dataset


class Room(NamedTuple):
    """A wish for memory to begin in. The answer comes when there may be more: a neighbour has ended."""


class Train(NamedTuple):
    """A wish for so many steps. The answer is a `Table` of the signals of one step, or of more, up to all of them."""

    steps: int


class Validate(NamedTuple):
    """A wish for the phoneme error rate and the loss on the validation split. The answer is the two numbers."""


Wish = Room | Join | Train | Validate
Life = Generator[Wish, Any, Verdict]
_End = TypeVar("_End")
_Result = TypeVar("_Result")

_MOST = {"cpu": 8, "cuda": 64}  # trials in a stack, by device; more of them are no faster
_FILLED = 0.8  # of the free memory


def train_together(
    lives: Sequence[Generator[Wish, Any, _End]], size: int | None = None, sharing: int = 1
) -> list[_End | BaseException]:
    """Live all lives, at most `size` of them at a time, and return for each what it returned or raised.

    Their trials have to fit into one stack. Without a size it is what the first one leaves memory for, of which
    `sharing` processes have an equal part. Where that does not suffice, half of the stack waits for the other half, and
    no later stack is larger; where it does not hold one trial, that one's batches are passed in parts. After Ctrl-C or
    SIGTERM those that are being trained write their checkpoints and end as Interrupted, and so do those that wait.
    """
    members = [_Member(life) for life in lives]
    waiting, seated = deque(members), list[_Member[_End]]()
    measured, size = size is not None, size or 1
    try:
        with stop_requests() as stop_requested:
            while waiting or seated:
                if how := stop_requested():
                    waiting = _stop(waiting, seated, how)
                while waiting and len(seated) < size:
                    member = waiting.popleft()
                    member.begin()
                    if isinstance(member.wish, Room):
                        if seated:
                            waiting.appendleft(member)
                            size = len(seated)
                        else:
                            member.fail(MemoryError())
                    elif member.end is None:
                        seated.append(member)
                before = None if measured or not seated else Memory(seated[0].seat.stack.device, seated[0].dataset)
                try:
                    trained = _fulfil(seated)
                    if before and trained:
                        measured, size = True, before.holds(sharing)
                except _TooLarge:
                    size = len(seated) // 2
                    for member in reversed(seated[size:]):
                        member.stand_up()
                        waiting.appendleft(member)
                    seated = seated[:size]
                seated = [member for member in seated if member.end is None]
    finally:
        for life in lives:
            life.close()
    return [member.end for member in members if member.end is not None]


class _TooLarge(Exception):
    """The stack is too large for the memory. Nothing was changed."""


class _Member(Generic[_End]):
    """A life, what it wishes next, and how it ended."""

    seat: Seat
    dataset: Dataset
    wish: Wish | None = None
    end: _End | BaseException | None = None

    def __init__(self, life: Generator[Wish, Any, _End]) -> None:
        self._life = life

    def begin(self) -> None:
        """Have it ready to be seated, if it lives on and there is room."""
        if self.wish is None or isinstance(self.wish, Room):
            self._go_on(lambda: next(self._life))
        if isinstance(self.wish, Join):
            self.seat, self.dataset = self.wish
            self.answer(None)

    def answer(self, answer: Any) -> None:
        """Fulfil its wish."""
        self._go_on(lambda: self._life.send(answer))

    def fail(self, error: Exception) -> None:
        """Its wish cannot be fulfilled."""
        self._go_on(lambda: self._life.throw(error))

    def stand_up(self) -> None:
        """Leave the stack with all that is its own."""
        if len(self.seat.stack.configs) > 1:
            self.seat.stack, self.seat.place = self.seat.alone(), 0

    def _go_on(self, live: Callable[[], Wish]) -> None:
        try:
            self.wish = live()
            return
        except StopIteration as ended:
            self.end = ended.value
        except (Exception, Interrupted) as error:
            self.end = error
        self.wish = None
        for name in ("seat", "dataset"):  # with the stack, which is not to outlive the trial
            self.__dict__.pop(name, None)


class Memory:
    """What memory is like before the first trial's first steps."""

    def __init__(self, device: torch.device, dataset: Dataset) -> None:
        self._device = device
        self._data = dataset.gpu_bytes
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._used = reset_peak_memory()

    def holds(self, sharing: int) -> int:
        """How many trials there is room for in each of `sharing` processes, after one's first steps."""
        if self._device.type == "cuda":
            a_trial = torch.cuda.max_memory_allocated(self._device) - self._data
            kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0] + kept
        else:
            a_trial, free = max(1, peak_memory() - self._used), free_memory()
        return min(_MOST[self._device.type], 1 + int(_FILLED * free / sharing / a_trial))


def _stop(
    waiting: deque["_Member[_End]"], seated: Sequence["_Member[_End]"], how: type[Interrupted]
) -> deque["_Member[_End]"]:
    """Have all end, and return those that wait and have a checkpoint to write, for they have been trained."""
    begun = [member for member in waiting if isinstance(member.wish, Train | Validate)]
    for member in [*seated, *begun]:
        member.seat.stopping = how
    for member in waiting:
        if member not in begun:
            member.end = how("Stopped. The same command goes on from there.")
    return deque(begun)


def _fulfil(seated: Sequence[_Member[_End]]) -> bool:
    """Fulfil the wishes for validation; if there are none, make some steps of all, and say so."""
    validating = [m for m in seated if isinstance(m.wish, Validate)]
    if validating:
        _validate(validating)
    elif seated:
        _train(seated)
    return not validating and bool(seated)


def _validate(members: Sequence[_Member[_End]]) -> None:
    """Validate some of those who are seated, half of them at a time where memory does not hold all."""
    split = members[0].dataset.val
    try:
        own = _stack_of(members)
        measured = evaluate(own, split) if len(members) > 1 else in_parts(own, lambda: evaluate(own, split))
    except Exception as error:
        if not (too_large := len(members) > 1 and is_out_of_memory(error)):
            for member in members:
                member.fail(error)
    else:
        for member, per, loss in zip(members, *(numbers.tolist() for numbers in measured), strict=True):
            member.answer((per, loss))
        return
    if too_large:
        middle = len(members) // 2
        _validate(members[:middle])
        _validate(members[middle:])


def _train(seated: Sequence[_Member[_End]]) -> None:
    count = min(m.wish.steps for m in seated if isinstance(m.wish, Train))
    split = seated[0].dataset.train
    try:
        tables = train_steps(_one_stack(seated), split, count)
    except Exception as error:
        too_large = len(seated) > 1 and is_out_of_memory(error)
    else:
        for member, table in zip(seated, tables, strict=True):
            member.answer(table)
        return
    # Only here, where the error is gone, is the memory free that the failed step had.
    if too_large:
        raise _TooLarge
    for member in seated:  # one may be at fault: a batch that cannot be read
        if len(seated) > 1:
            member.stand_up()
        try:
            (table,) = in_parts(member.seat.stack, partial(train_steps, member.seat.stack, split, count))
        except Exception as error:
            member.fail(error)
        else:
            member.answer(table)


def in_parts(stack: Stack, work: Callable[[], _Result]) -> _Result:
    """Do it with a stack of one, in as many micro-batches as the memory asks for.

    Raises StabilityError where it does not hold one utterance.
    """
    size, before = stack.configs[0].batch.size, stack.micro_batches
    while True:
        try:
            result = work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if stack.micro_batches == size:
                raise StabilityError(
                    f"The memory of {stack.device} does not hold one utterance of a batch: "
                    "give a smaller batch.size or model, or free some."
                ) from None
            stack.micro_batches = min(2 * stack.micro_batches, size)
        else:
            if stack.micro_batches > before:
                print(
                    f"The memory of {stack.device} does not hold a batch of {size}: it is passed in "
                    f"{stack.micro_batches} parts. The mathematics are the same."
                )
            return result


def _stack_of(members: Sequence[_Member[_End]]) -> Stack:
    """The stack of these trials alone, in their order: the one in which they are seated, or a copy."""
    stack, places = members[0].seat.stack, [member.seat.place for member in members]
    if any(member.seat.stack is not stack for member in members):
        return join([member.seat.alone() for member in members])
    return stack if places == [*range(len(stack.configs))] else select(stack, places)


def _one_stack(seated: Sequence[_Member[_End]]) -> Stack:
    """The stack in which all are seated in their order, made if they are not."""
    stack = _stack_of(seated)
    for place, member in enumerate(seated):
        member.seat.stack, member.seat.place = stack, place
    return stack


@contextmanager
def stop_requests() -> Iterator[Callable[[], type[Interrupted] | None]]:
    """How to end, if Ctrl-C or SIGTERM came. The first is noted, so that a step is never left half done.

    A second Ctrl-C acts at once. A second SIGTERM does nothing: schedulers send several, and kill when time is up.
    """
    requested: type[Interrupted] | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if number == signal.SIGINT:
            requested = requested or Interrupted
            signal.signal(number, previous[number])
        else:
            requested = Terminated

    previous = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
