"""When Ctrl-C and SIGTERM act, and time limits."""

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from stability.core.errors import Interrupted, Terminated
from stability.core.stopping import at_once, postponed, signals_handled, stop_requested, time_limit

send = signal.raise_signal
Trace = list[object]


@pytest.fixture
def trace() -> Iterator[Trace]:
    """What a test has come to. Afterwards signals are handled as before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    yield []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert stop_requested() is None


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
def test_a_signal_acts_at_once_unless_it_is_postponed(
    trace: Trace, number: signal.Signals, kind: type[Interrupted]
) -> None:
    @signals_handled()
    def work() -> None:
        send(number)
        trace.append("not reached")

    with pytest.raises(kind, match="goes on from there"):
        work()
    assert not trace

    @signals_handled()
    @postponed()
    def postponing() -> None:
        trace.append(stop_requested())
        send(number)
        trace.append(stop_requested())

    with pytest.raises(kind):
        postponing()
    assert trace == [None, kind]


@pytest.mark.parametrize("when", ["before", "inside"])
def test_within_a_postponed_block_a_part_may_be_ended_at_once(trace: Trace, when: str) -> None:
    @postponed()
    def work() -> None:
        if when == "before":
            send(signal.SIGTERM)
        trace.append("postponed")
        with at_once():
            if when == "inside":
                send(signal.SIGTERM)
            trace.append("not reached")

    with pytest.raises(Terminated):
        work()
    assert trace == ["postponed"]


@pytest.mark.parametrize(
    ("number", "kind", "reached"), [(signal.SIGTERM, Terminated, [1, 2]), (signal.SIGINT, KeyboardInterrupt, [1])]
)
def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does(
    trace: Trace, number: signal.Signals, kind: type[BaseException], reached: list[int]
) -> None:
    @postponed()
    def work() -> None:
        send(number)
        trace.append(1)
        send(number)
        trace.append(2)

    with pytest.raises(kind) as ended:
        work()
    assert (ended.type, trace) == (kind, reached)


@pytest.mark.usefixtures("trace")
def test_an_error_is_not_hidden_by_a_signal() -> None:
    @postponed()
    def work() -> None:
        send(signal.SIGINT)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


@pytest.mark.usefixtures("trace")
def test_a_signal_that_was_swallowed_is_raised_at_the_end() -> None:
    @signals_handled()
    def work() -> None:
        with contextlib.suppress(BaseException):  # as Python does in a destructor
            send(signal.SIGINT)

    with pytest.raises(Interrupted):
        work()


class Dying:
    """Something that is destroyed when a signal comes. Python ignores exceptions there."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


@pytest.mark.usefixtures("trace")
@pytest.mark.parametrize("limited", [False, True])
def test_a_signal_that_comes_in_a_destructor_is_raised_a_little_later(
    limited: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    @signals_handled()
    def work() -> None:
        with time_limit(60) if limited else contextlib.nullcontext():
            Dying()
            time.sleep(60)

    with pytest.raises(Terminated):
        work()
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("trace")
def test_a_block_ends_when_its_time_is_up_even_if_a_library_swallows_that() -> None:
    @time_limit(0.01)
    def work() -> None:
        with contextlib.suppress(BaseException):
            time.sleep(60)
        time.sleep(60)

    outer = signal.getitimer(signal.ITIMER_REAL)[0]
    with pytest.raises(TimeoutError, match=r"no complete answer within 0\.01 seconds"):
        work()
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (outer > 0), "the limit of this test goes on"


def test_a_signal_ends_a_wait_and_is_raised_after_it(trace: Trace) -> None:
    @time_limit(60)
    def wait() -> None:
        send(signal.SIGTERM)
        time.sleep(60)
        trace.append("not reached")

    @postponed()
    def work() -> None:
        with pytest.raises(InterruptedError):
            wait()
        trace.append("postponed")

    with pytest.raises(Terminated):
        work()
    assert trace == ["postponed"]
    with pytest.raises(Terminated):
        signals_handled()(wait)()


@pytest.mark.parametrize("seconds", [60, 0.01])
def test_a_signal_may_leave_some_time(trace: Trace, seconds: float) -> None:
    @signals_handled()
    @time_limit(60, after_signal=seconds)
    def work() -> None:
        send(signal.SIGINT)
        trace.append("sent")
        if seconds < 1:
            time.sleep(60)

    with pytest.raises(Interrupted):
        work()
    assert trace == ["sent"]
