"""A Monitor goes on over a restart, and sees what did not come back."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stability import Monitor
from tests.support.toy_ctc import Toy, assert_same_signals, batch, ctc

LR = 0.02


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


class Run:
    """A training that can be saved and restarted in a new process."""

    def __init__(self, lr: float = LR, kind: Any = torch.optim.AdamW, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = Toy()
        self.optimizer: torch.optim.Optimizer = kind(self.model.parameters(), lr=lr)
        self.monitor = Monitor(self.model, self.optimizer, **settings)

    def train(self, first: int, last: int, spoilt: tuple[int, ...] = ()) -> None:
        for step in range(first, last):
            x, labels = batch(step)
            self.optimizer.zero_grad()
            logits = self.model(x * torch.nan if step in spoilt else x)
            loss = ctc(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.monitor.step(loss, logits, inputs=x, labels=labels, label_counts=[3] * 6, batch=[step] * 6) is None:
                self.optimizer.step()

    def state(self) -> dict[str, Any]:
        text = json.dumps(self.monitor.state_dict(), allow_nan=False)
        buffer = io.BytesIO()
        torch.save(self.monitor.state_dict(), buffer)
        buffer.seek(0)
        state = json.loads(text, parse_constant=no_constant)
        assert torch.load(buffer, weights_only=True) == state
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "monitor": state}

    def load(self, state: dict[str, Any], *, optimizer: bool = True) -> None:
        self.monitor.load_state_dict(state["monitor"])
        self.model.load_state_dict(state["model"])
        if optimizer:
            self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("spoilt", [(), (12,), (24,), (12, 23, 24), (24, 25, 26)])
def test_a_training_that_was_restarted_has_the_same_signals_and_verdict(spoilt: tuple[int, ...]) -> None:
    whole, first, second = Run(), Run(), Run()
    for run, end in ((whole, 25), (first, 25)):
        run.train(0, end, spoilt)
        run.monitor.validated(0.8, 2.0)
    second.load(first.state())
    for run in (whole, second):
        run.train(25, 60, spoilt)
        run.monitor.validated(0.1)
    assert_same_signals(second.monitor, whole.monitor)
    assert second.monitor.signals().measured.tolist() == whole.monitor.signals().measured.tolist()
    assert repr(second.monitor.findings) == repr(whole.monitor.findings)  # NaN is not equal to NaN
    assert second.monitor.verdict() == whole.monitor.verdict()
    assert second.monitor.verdict().outcome == "stable"
    assert ("batches skipped" in second.monitor.verdict().evidence) == bool(spoilt)


def test_the_state_of_a_monitor_that_counted_no_names_is_taken() -> None:
    run = Run()
    run.train(0, 12)
    state = run.state()
    del state["monitor"]["names"]
    again = Run()
    again.load(state)
    again.train(12, 21)
    assert again.monitor.signals()["different_utterances"][20] == len(range(12, 21))


def test_a_training_that_failed_keeps_its_verdict() -> None:
    first, second = Run(), Run()
    first.train(0, 20, spoilt=(18, 19))
    second.load(first.state())
    assert repr(second.monitor.verdict()) == repr(first.monitor.verdict())
    assert second.monitor.verdict().onset_step == 18
    exploded, again = (Run(1e-3, torch.optim.SGD, stop_on=["exploded"]) for _ in range(2))
    exploded.train(0, 40)
    exploded.optimizer.param_groups[0]["lr"] = 30.0
    exploded.train(40, 80)
    again.load(exploded.state())
    assert again.monitor.verdict() == exploded.monitor.verdict()
    assert again.monitor.step(1.0) == exploded.monitor.verdict()


def test_an_optimizer_that_did_not_come_back_is_told() -> None:
    first, second = Run(), Run(lr=0.1)
    first.train(0, 25)
    second.load(first.state(), optimizer=False)
    second.train(25, 50)
    second.monitor.validated(0.1)
    verdict = second.monitor.verdict()
    told = str(verdict.evidence["after the restart at step 25"])
    assert told == "the optimizer's state was empty; the learning rate was 0.1, and 0.02 before"
    assert (verdict.outcome, verdict.advice) == ("stable", "")
    third = Run(lr=0.1)
    third.load(second.state())
    third.train(50, 52)
    third.monitor.validated(1.0)
    assert third.monitor.verdict().evidence["after the restart at step 25"] == told
    assert "After the restart at step 25, the optimizer's state was empty" in third.monitor.verdict().advice
    assert "after the restart at step 50" not in third.monitor.verdict().evidence


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([1e-4, 2e-4], 3e-4, False),  # a warm-up goes on
        ([1e-4, 2e-4], 4e-4, False),
        ([1e-3, 1e-3], 1e-3, False),
        ([1e-3, 9.9e-4], 9.8e-4, False),
        ([0.0], 1e-4, False),
        ([1e-3, 1e-3], 1e-5, True),  # a new warm-up
        ([1e-3, 1e-3], 0.0, True),
        ([3.6e-3, 3.6e-3], 0.1, True),  # the base rate of a schedule that is not there
    ],
)
def test_a_learning_rate_that_jumps_at_a_restart_is_told(before: list[float], after: float, told: bool) -> None:
    def run(rates: list[float], state: dict[str, Any] | None = None) -> Monitor:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        monitor = Monitor(model, optimizer)
        if state is not None:
            monitor.load_state_dict(state)
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            monitor.step(1.0)
        return monitor

    evidence = run([after], run(before).state_dict()).verdict().evidence
    assert any(name.startswith("after the restart") for name in evidence) == told


def test_the_state_of_a_long_training_is_bounded() -> None:
    model = nn.Linear(1, 1)
    monitor = Monitor(model)
    for step in range(9_000):
        monitor.step(1.0 + 1 / (step + 1))
    again = Monitor(model)
    again.load_state_dict(monitor.state_dict())
    assert np.array_equal(again.signals().steps, monitor.signals().steps)
    assert len(again.signals().steps) <= 4096
    again.step(1.0)
    assert again.signals().steps[-1] == 9_000


def test_a_monitor_that_has_watched_steps_takes_no_state() -> None:
    run = Run()
    run.train(0, 3)
    with pytest.raises(ValueError, match="before the first step"):
        run.monitor.load_state_dict(run.monitor.state_dict())
