"""The monitor in plain PyTorch loops."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stability import Monitor
from stability.diagnosis.verdict import Verdict
from stability.errors import StabilityError


class Toy(nn.Module):
    """A CTC decoder of made-up frames."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16, dtype=dtype)
        self.head = nn.Linear(16, 5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(x)))
        return logits


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Frames (B, T, 8) that say their label aloud, three frames each with one frame of quiet between."""
    labels = torch.randint(1, 5, (6, 3), generator=torch.Generator().manual_seed(step))
    x = torch.zeros(6, 12, 8)
    for i in range(3):
        x[:, 4 * i : 4 * i + 3] = F.one_hot(labels[:, i], 8).unsqueeze(1).float() * 3
    return x, labels


def ctc(logits: Tensor, labels: Tensor) -> Tensor:
    frames, counts = torch.full((6,), 12), torch.full((6,), 3)
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, frames, counts, reduction="sum") / 6


def train(model: Toy, optimizer: torch.optim.Optimizer, monitor: Monitor, steps: int, *, logits: bool = True) -> int:
    """Train until the monitor says stop; the number of updates made."""
    for step in range(steps):
        x, labels = batch(step)
        out = model(x.to(model.head.weight.dtype))
        loss = ctc(out.float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if monitor.step(loss, out if logits else None):
            return step
        optimizer.step()
    return steps


def assert_same_signals(found: Monitor, wanted: Monitor) -> None:
    one, other = found.signals(), wanted.signals()
    assert one.steps.tolist() == other.steps.tolist()
    for name in one.names:
        assert one[name] == pytest.approx(other[name], rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_training_that_learns_is_stable(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Toy(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer)
    assert train(model, optimizer, monitor, 60) == 60
    monitor.validated(per=0.1)
    verdict = monitor.verdict()
    assert verdict.outcome == "stable"
    assert 0 < float(verdict.evidence["blank fraction"]) < 0.9
    assert float(verdict.evidence["share of second-moment roots below epsilon"]) < 0.5


def test_epsilon_dominance_is_seen_in_the_optimizer() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, eps=1e3)
    monitor = Monitor(model, optimizer)
    train(model, optimizer, monitor, 60)
    monitor.validated(per=1.0)
    verdict = monitor.verdict()
    assert verdict.evidence["share of second-moment roots below epsilon"] == 1
    assert verdict.evidence["effective learning rate"] == pytest.approx(0.005 / 1e3, rel=1e-2)


@pytest.mark.parametrize("logits", [True, False])
def test_a_gradient_that_is_not_finite_is_told_before_the_update(logits: bool) -> None:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)
    backward = iter(range(20))
    model.head.weight.register_hook(lambda g: g * (torch.inf if next(backward) == 7 else 1))  # type: ignore[no-untyped-call]
    assert train(model, optimizer, monitor, 20, logits=logits) == 7
    assert all(p.isfinite().all() for p in model.parameters())
    verdict = monitor.verdict()
    assert (verdict.outcome, verdict.cause, verdict.onset_step) == ("non_finite", "gradient", 7)
    assert verdict.evidence["gradient not finite in"] == "head"


def test_a_rate_that_is_too_high_is_an_explosion() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer)
    train(model, optimizer, monitor, 40)
    optimizer.param_groups[0]["lr"] = 30.0
    train(model, optimizer, monitor, 40)
    monitor.validated(per=1.2)
    verdict = monitor.verdict()
    assert verdict.outcome == "exploded"
    assert verdict.onset_step is not None
    assert 40 <= verdict.onset_step <= 45


def test_without_optimizer_logits_or_gradients() -> None:
    model = Toy()
    monitor = Monitor(model)
    with pytest.raises(ValueError, match="before the first step"):
        monitor.verdict()
    assert monitor.step(3.0) is None
    assert monitor.verdict().outcome == "undecided"
    failure = monitor.step(float("nan"))
    assert isinstance(failure, Verdict)
    assert (failure.outcome, failure.cause, failure.onset_step) == ("non_finite", "loss", 1)


def test_it_changes_nothing() -> None:
    def weights(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Toy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        if watched:
            train(model, optimizer, Monitor(model, optimizer), 20)
        else:
            for step in range(20):
                x, labels = batch(step)
                optimizer.zero_grad()
                ctc(model(x), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return [p.detach() for p in model.parameters()]

    for a, b in zip(weights(True), weights(False), strict=True):
        assert torch.equal(a, b)


def test_importing_the_package_does_not_import_pytorch() -> None:
    code = "import sys, stability; assert 'torch' not in sys.modules; stability.Monitor; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blank_may_be_another_class() -> None:
    logits = torch.zeros(2, 7, 5)
    logits[..., 4] = 1  # every frame says the last class
    for blank, fraction in ((4, 1.0), (0, 0.0)):
        monitor = Monitor(Toy(), blank=blank)
        monitor.step(1.0, logits)
        assert monitor.verdict().evidence["blank fraction"] == fraction
    with pytest.raises(StabilityError, match="blank=5 is none of the 5 classes"):
        Monitor(Toy(), blank=5).step(1.0, logits)
