"""Trains trials together in one stack, each at a step of its own.

A trial is a coroutine that awaits requests (`requests.py`). It alone decides what it writes, measures and does next, so
its results are the same whether it is alone in the stack or not. The scheduler fulfils the requests of all trials in
the stack at once. Its state is two groups of trials:

    waiting   not started yet, or without a slot because memory ran out
    running   in the stack, each with an open request: Train or Validate

A round moves trials from waiting to running while there are free slots, up to the first that began in another precision
or with another engine than those that run: it is next when they have ended. The round then fulfils either all open
validations or some steps of all. Validations come first, since a trial that validates cannot be stepped. A trial that
ends leaves its slot, and the next one takes it. When the stack is too large for the memory, half of its trials wait
again, with all their state, and the stack stays that small.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

from stability.core.errors import Interrupted
from stability.core.stopping import STOPPED, postponed, stop_requested
from stability.data.records import Dataset
from stability.engine.evaluate import evaluate
from stability.engine.memory import is_out_of_memory
from stability.engine.stack import Stack, join, select
from stability.engine.step import train_steps
from stability.trials.capacity import Capacity, in_micro_batches
from stability.trials.recorder import recorder_bytes
from stability.trials.requests import Join, Request, Slot, Train, Validate, Validation, WaitForMemory

_Result = TypeVar("_Result")


def train_together(
    trials: Sequence[Coroutine[Any, Any, _Result]], *, size: int | None = None, sharing: int = 1
) -> list[_Result | BaseException]:
    """Run all trials to their end, several at a time in one stack.

    Args:
        trials: Coroutines of trials that can share a stack: the same model, batch, precision, data and device.
        size: The largest number of trials in the stack. None for as many as fit into memory, measured on the first one.
        sharing: The number of processes that share the memory equally.

    Returns:
        What each trial returned or raised, in the order of `trials`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came. All trials have ended; those that had trained have written a checkpoint.
    """
    members = [_Member(trial) for trial in trials]
    scheduler = _Scheduler(members, size, sharing)
    try:
        with postponed():
            while not scheduler.is_done:
                scheduler.fill_slots()
                if interruption := stop_requested():
                    scheduler.stop(interruption)
                scheduler.advance()
            for member in members:
                if isinstance(member.result, Interrupted):
                    raise member.result
    finally:
        for member in members:
            member.close()
    return [member.result for member in members if member.result is not None]


class _StackTooLarge(Exception):
    """The memory does not hold the stack. Nothing was changed."""


class _Member(Generic[_Result]):
    """A trial's coroutine, its open request, and its result when it has ended."""

    slot: Slot
    dataset: Dataset
    first_step: int  # where it began in this process
    request: Request[Any] | None = None
    result: _Result | BaseException | None = None

    def __init__(self, trial: Coroutine[Any, Any, _Result]) -> None:
        self._trial = trial
        self._context = copy_context()  # context variables that a trial sets, such as its log, are its own

    @property
    def is_running(self) -> bool:
        """Whether it has, or had, a slot, and a state that a checkpoint can keep."""
        return isinstance(self.request, Train | Validate)

    def start(self) -> None:
        """Run it up to its first Train or Validate. It may end before that, or stop at a WaitForMemory."""
        if not self.is_running:
            self.resume(None)
        if isinstance(self.request, Join):
            self.slot, self.dataset = self.request.slot, self.request.dataset
            self.first_step = self.slot.step
            self.resume(None)

    def resume(self, answer: Any) -> None:
        """Answer its open request, and run it up to the next one."""
        self._run(lambda: self._trial.send(answer))

    def fail(self, error: Exception | Interrupted) -> None:
        """Raise the error in the coroutine, where it awaits the answer to its open request."""
        self._run(lambda: self._trial.throw(error))

    def leave_stack(self) -> None:
        """Move it, with all its state, to a stack of its own."""
        if len(self.slot.stack.configs) > 1:
            self.slot.stack, self.slot.place = self.slot.alone(), 0

    def close(self) -> None:
        """Close the coroutine if it has not ended."""
        self._context.run(self._trial.close)

    def _run(self, step: Callable[[], Request[Any]]) -> None:
        try:
            self.request = self._context.run(step)
            return
        except StopIteration as ended:
            self.result = ended.value
        except (Exception, Interrupted) as error:
            self.result = error
        self.request = None
        for name in ("slot", "dataset"):  # they hold the stack, whose memory the next trial may need
            self.__dict__.pop(name, None)


class _Scheduler(Generic[_Result]):
    """The waiting and the running trials; see the module's docstring."""

    def __init__(self, members: Sequence[_Member[_Result]], size: int | None, sharing: int) -> None:
        self._waiting, self._running = deque(members), list[_Member[_Result]]()
        self._size, self._size_is_known, self._sharing = size or 1, size is not None, sharing

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    def stop(self, interruption: type[Interrupted]) -> None:
        """Stop all trials: those that have trained after their next checkpoint, the others at once."""
        for member in [*self._running, *self._waiting]:
            if not member.is_running:
                member.result = interruption(STOPPED)
            elif member.slot.step == member.first_step:
                member.fail(interruption(STOPPED))
            else:
                member.slot.stopping = interruption
        self._waiting = deque(member for member in self._waiting if member.result is None)
        self._running = [member for member in self._running if member.result is None]

    def fill_slots(self) -> None:
        """Start waiting trials while there are free slots and memory, and none after a signal.

        A trial that began elsewhere may have another precision or engine than the running trials, and waits for their
        end: it keeps its own, whatever its company.
        """
        while self._waiting and len(self._running) < self._size:
            if stop_requested() and not self._waiting[0].is_running:
                return
            member = self._waiting.popleft()
            member.start()
            if isinstance(member.request, WaitForMemory):
                if self._running:
                    self._waiting.appendleft(member)
                    self._size = len(self._running)
                else:  # no other trial holds memory that it could free
                    member.fail(MemoryError())
            elif member.result is None:
                if self._running and member.slot.stack.arithmetic != self._running[0].slot.stack.arithmetic:
                    self._waiting.appendleft(member)
                    return
                self._running.append(member)

    def advance(self) -> None:
        """Fulfil the open validations; if there are none, train some steps of all running trials."""
        if not self._running:
            return
        first = self._running[0]
        stack = first.slot.stack
        capacity = None if self._size_is_known else Capacity(stack.device, first.dataset, recorder_bytes(stack))
        del stack  # the slot alone holds it
        try:
            if validating := [member for member in self._running if isinstance(member.request, Validate)]:
                _validate(validating)
            else:
                _train(self._running)
                if capacity is not None:
                    self._size, self._size_is_known = capacity.trials(self._sharing), True
        except _StackTooLarge:
            self._halve()
        self._running = [member for member in self._running if member.result is None]

    def _halve(self) -> None:
        """Move the later half of the stack to the waiting trials."""
        self._size = len(self._running) // 2
        for member in reversed(self._running[self._size :]):
            member.leave_stack()
            self._waiting.appendleft(member)
        self._running = self._running[: self._size]


def _validate(members: Sequence[_Member[_Result]]) -> None:
    """Validate some of the running trials. If memory runs out, validate half of them at a time."""
    split, alone = members[0].dataset.val, len(members[0].slot.stack.configs) == 1
    try:
        stack = _stack_of(members)
        rates, losses = (
            evaluate(stack, split) if len(members) > 1 else in_micro_batches(stack, lambda: evaluate(stack, split))
        )
    except Exception as error:
        too_large = is_out_of_memory(error) and not alone  # handled below: here the error keeps memory in use
        if not too_large:
            for member in members:
                member.fail(error)
    else:
        for member, rate, loss in zip(members, rates.tolist(), losses.tolist(), strict=True):
            member.resume(Validation(rate, loss))
        return
    if too_large and len(members) == 1:  # there was no memory to copy it out of the stack
        raise _StackTooLarge
    if too_large:
        middle = len(members) // 2
        _validate(members[:middle])
        _validate(members[middle:])


def _train(members: Sequence[_Member[_Result]]) -> None:
    """Train all running trials, by the smallest number of steps that one of them requests."""
    count = min(member.request.steps for member in members if isinstance(member.request, Train))
    split = members[0].dataset.train
    try:
        tables = train_steps(_move_into_one_stack(members), split, count)
    except Exception as error:
        too_large = len(members) > 1 and is_out_of_memory(error)
    else:
        for member, table in zip(members, tables, strict=True):
            member.resume(table)
        return
    # Not in the except clause: there the error keeps memory in use.
    if too_large:
        raise _StackTooLarge
    # One trial may be at fault, for example if its batch cannot be read. Step each alone to find out which.
    for member in members:
        member.leave_stack()
        stack = member.slot.stack
        try:
            (table,) = in_micro_batches(stack, partial(train_steps, stack, split, count))
        except Exception as error:
            member.fail(error)
        else:
            member.resume(table)


def _stack_of(members: Sequence[_Member[_Result]]) -> Stack:
    """Return a stack of exactly these trials in this order: the stack that holds them, or a copy."""
    stack, places = members[0].slot.stack, [member.slot.place for member in members]
    if any(member.slot.stack is not stack for member in members):
        return join([member.slot.alone() for member in members])
    return stack if places == [*range(len(stack.configs))] else select(stack, places)


def _move_into_one_stack(members: Sequence[_Member[_Result]]) -> Stack:
    """Move these trials into a stack of their own, unless they have one, and return it."""
    stack = _stack_of(members)
    for place, member in enumerate(members):
        member.slot.stack, member.slot.place = stack, place
    return stack
