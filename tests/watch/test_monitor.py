"""The monitor in plain PyTorch loops."""

import itertools
import json
import math
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stability import Monitor, diagnose, read_log
from stability.core.errors import StabilityError
from stability.diagnosis.finding import finite_readings
from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import Verdict
from tests.support.toy_ctc import Toy, batch, ctc


def train(model: Toy, optimizer: torch.optim.Optimizer, monitor: Monitor, steps: int, *, logits: bool = True) -> int:
    """Train until the monitor stops it. Return the number of updates."""
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


def test_error_rates_in_percent_are_recognised_from_all_of_them() -> None:
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer)
    for rate in (95.0, 40.0, 0.8):
        train(model, optimizer, monitor, 20)
        monitor.validated(per=rate)
    assert monitor.validation()["per"].tolist() == pytest.approx([0.95, 0.4, 0.008])
    evidence = monitor.verdict().evidence
    assert evidence["error rates were given in"] == "percent"
    assert evidence["validation PER"] == pytest.approx(0.008)


def test_the_error_rate_keeps_its_name() -> None:
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer, metric="WER")
    train(model, optimizer, monitor, 20)
    monitor.validated(0.3)
    assert monitor.verdict().evidence["validation WER"] == pytest.approx(0.3)


def test_a_validation_may_have_a_loss_alone() -> None:
    monitor = Monitor(Toy())
    for step in range(40):
        monitor.step(3.0 - step / 20)
        monitor.validated(loss=3.5 - step / 20)
    validation = monitor.validation()
    assert validation["loss"].tolist() == pytest.approx([3.5 - step / 20 for step in range(40)])
    assert not validation.measured[:, validation.names.index("per")].any()
    assert not any("PER" in name for name in monitor.verdict().evidence)


@pytest.mark.parametrize("rate", [None, "n/a"])
def test_a_validation_without_a_number_is_an_error(rate: Any) -> None:
    monitor = Monitor(Toy())
    with pytest.raises(StabilityError, match=rf"given {rate!r} and nan. Give numbers, and math.nan"):
        monitor.validated(rate)
    assert not len(monitor.validation().steps)


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
def test_a_gradient_that_is_not_finite_stops_the_training_before_the_update(logits: bool) -> None:
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


def explode(monitor: Monitor, model: Toy, optimizer: torch.optim.Optimizer) -> int:
    """Train 40 steps well and 40 with far too high a rate. Return the number of updates."""
    made = train(model, optimizer, monitor, 40)
    optimizer.param_groups[0]["lr"] = 30.0
    return made + train(model, optimizer, monitor, 40)


def toy() -> tuple[Toy, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Toy()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.1)


def test_findings_are_listed_while_it_trains() -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer)
    assert monitor.findings == []
    assert explode(monitor, model, optimizer) == 80
    finding = next(f for f in monitor.findings if f.kind == "exploded")
    assert 40 <= finding.onset_step <= finding.detected_step < 80
    before = monitor.findings
    train(model, optimizer, monitor, 40)
    assert monitor.findings[: len(before)] == before, "the first of each kind stays as it was"


def test_a_finding_in_stop_on_stops_the_training() -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer, stop_on=["exploded"])
    made = explode(monitor, model, optimizer)
    assert made < 80
    verdict = monitor.step(1.0)
    assert verdict is not None
    assert verdict == monitor.step(1.0) == monitor.verdict()
    assert (verdict.outcome, verdict.detected_step) == ("exploded", monitor.findings[-1].detected_step)
    with pytest.raises(
        StabilityError, match=r"explodes is not a kind of finding\. Choose from non_finite, bad_data, .*exploded"
    ):
        Monitor(Toy(), stop_on=["exploded", "explodes"])  # type: ignore[list-item]


def test_endless_overflow_in_half_precision_stops_the_training() -> None:
    """A smaller scale mends one overflow, but not overflows at every step."""
    model = Toy()
    monitor = Monitor(model, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    returned = [monitor.step(1.0) for _ in range(6)]
    assert returned[0] is None
    assert returned[-1] is not None
    assert (returned[-1].outcome, returned[-1].cause) == ("non_finite", "precision")


def test_a_finding_leaves_a_flight_recording(tmp_path: Path) -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer, folder=tmp_path / "flight")
    backward = iter(range(300))
    model.head.weight.register_hook(lambda g: g * (torch.inf if next(backward) == 230 else 1))  # type: ignore[no-untyped-call]
    for step in range(300):
        x, labels = batch(step)
        optimizer.zero_grad()
        loss = ctc(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        before = {name: p.clone() for name, p in model.state_dict().items()}
        names: list[str | int] = [step, f"utterance {step}"]
        if monitor.step(loss, batch=names):
            break
        assert not (tmp_path / "flight").exists() or monitor.findings
        optimizer.step()
    record = json.loads((tmp_path / "flight/flight.json").read_text())
    assert [(f["kind"], f["onset_step"]) for f in record["findings"]][-1] == ("non_finite", 230)
    assert record["batches"] == {str(step): [step, f"utterance {step}"] for step in range(31, 231)}
    rows = read_table(tmp_path / "flight/flight.csv")
    assert rows.steps.tolist() == [*range(231)]
    assert rows["loss"].tolist() == monitor.signals()["loss"].tolist()
    state = torch.load(tmp_path / "flight/flight.pt", weights_only=True)
    assert all(torch.equal(p, before[name]) for name, p in state["model_state_dict"].items())
    fresh = toy()[1]
    fresh.load_state_dict(state["optimizer_state_dict"])
    assert len(fresh.state_dict()["state"]) == 4


def test_a_flight_recording_can_be_diagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(folder=tmp_path / "flight")
    watched.train(range(40), {30: too_many_labels}, go_on=False)
    watched.monitor.validated(0.8, 1.0)
    monkeypatch.chdir(tmp_path)
    command = str(watched.monitor.verdict().evidence["flight recording"])
    assert command == f"python -m stability.diagnose {tmp_path / 'flight'}"
    assert diagnose.main(command.split()[3:]) == 0
    shown = capsys.readouterr().out
    assert "bad_data: infeasible_target, since step 30" in shown
    assert "recorded this at step 30" in shown
    assert "utterances: 30-2\n" in shown
    assert "gradients not finite: body.weight, body.bias, head.weight, head.bias\n" in shown
    assert diagnose.main(["--replay", str(tmp_path / "flight")]) == 1
    assert f"{command}\n" in capsys.readouterr().err
    text = (tmp_path / "flight/flight.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["verdict"]["cause"] == "infeasible_target"


def test_a_damaged_flight_recording_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flight.csv").write_text("step,loss\n0,1\n")
    (tmp_path / "flight.json").write_text("{}")
    assert diagnose.main([str(tmp_path)]) == 1
    assert "flight.json is not a Monitor's flight recording" in capsys.readouterr().err


def test_a_flight_recording_keeps_validations(tmp_path: Path) -> None:
    monitor = Monitor(Toy(), folder=tmp_path)
    for step in range(20):
        if step == 10:
            monitor.validated(0.8)
        monitor.step(math.nan if step == 15 else 3.0 - step / 10)
    validation = read_log(tmp_path).validation
    assert validation.steps.tolist() == [9]
    assert validation["per"].tolist() == pytest.approx([0.8])
    assert validation.measured.tolist() == [[True, False]]


def test_a_recording_that_cannot_be_written_is_evidence(tmp_path: Path) -> None:
    (tmp_path / "flight").touch()
    monitor = Monitor(Toy(), folder=tmp_path / "flight")
    verdict = monitor.step(math.nan)
    assert verdict is not None
    assert verdict.outcome == "non_finite"
    assert verdict.evidence["flight recording"] == f"{tmp_path / 'flight'} cannot be written (File exists)"
    assert monitor.verdict() == verdict


def test_it_works_without_optimizer_logits_or_gradients() -> None:
    model = Toy()
    monitor = Monitor(model)
    with pytest.raises(ValueError, match="before the first step"):
        monitor.verdict()
    assert monitor.step(3.0) is None
    assert monitor.verdict().outcome == "undecided"
    failure = monitor.step(float("nan"))
    assert isinstance(failure, Verdict)
    assert (failure.outcome, failure.cause, failure.onset_step) == ("non_finite", "loss", 1)


def test_an_optimizer_whose_second_moments_are_not_adams_is_watched() -> None:
    """Adafactor has no betas, and two epsilons. It keeps some second moments under the name that Adam has for them."""
    transformers: Any = import_module("transformers")  # its names are made late, which mypy sees or not

    model = Toy()
    optimizer = transformers.Adafactor(model.parameters())
    monitor = Monitor(model, optimizer)
    assert train(model, optimizer, monitor, 12) == 12
    assert "epsilon_dominance" not in monitor.signals().names


def test_an_optimizer_that_counts_its_steps_elsewhere_is_watched() -> None:
    def hide_counts(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            counts.append(state.pop("step"))

    def show_counts(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            state["step"] = counts.pop(0)

    model = Toy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    counts: list[Tensor] = []
    optimizer.register_step_pre_hook(show_counts)
    optimizer.register_step_post_hook(hide_counts)
    monitor = Monitor(model, optimizer)
    assert train(model, optimizer, monitor, 12) == 12
    assert "epsilon_dominance" not in monitor.signals().names


def test_it_changes_nothing_in_the_training() -> None:
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


def test_blank_may_be_another_class() -> None:
    logits = torch.zeros(2, 7, 5)
    logits[..., 4] = 1  # the last class is the best in every frame
    for blank, fraction in ((4, 1.0), (0, 0.0)):
        monitor = Monitor(Toy(), blank=blank)
        monitor.step(1.0, logits)
        assert monitor.verdict().evidence["blank fraction"] == fraction
    with pytest.raises(StabilityError, match="blank=5 is not one of the 5 classes"):
        Monitor(Toy(), blank=5).step(1.0, logits)


def whole(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers of some tensors in one vector, in float64."""
    return torch.cat([t.detach().to_dense().double().flatten() for t in tensors])


def gradients(model: nn.Module) -> Tensor:
    return whole(p.grad for p in model.parameters() if p.grad is not None)


def test_norms_are_those_of_the_step_that_was_made() -> None:
    """Gradients are clipped between `step` and the update. The update is measured every 10th step."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6), (torch.bfloat16, 1e-2)):
        torch.manual_seed(0)
        model = Toy(dtype)
        model.body.bias.requires_grad_(False)  # a frozen parameter counts in the norm of the weights alone
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        monitor = Monitor(model, optimizer)
        found = []
        for step in range(21):
            x, labels = batch(step)
            optimizer.zero_grad()
            loss = ctc(model(x.to(dtype)).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            norm, weights, before = gradients(model).norm(), whole(model.parameters()).norm(), whole(trained)
            assert monitor.step(loss) is None
            nn.utils.clip_grad_norm_(model.parameters(), 0.5 * norm.item())
            clipped = gradients(model).norm()
            optimizer.step()
            ratio = (whole(trained) - before).norm() / before.norm()
            found.append([norm, clipped, weights, ratio])
        signals = monitor.signals()
        names = ("grad_norm", "applied_norm", "weight_norm", "update_ratio")
        for name, wanted in zip(names, zip(*found, strict=True), strict=True):
            at = slice(None) if name == "grad_norm" else slice(None, None, 10)
            assert signals.measured[:, signals.names.index(name)].nonzero()[0].tolist() == [*range(21)[at]]
            assert signals[name][at] == pytest.approx([float(v) for v in wanted[at]], rel=tolerance), (dtype, name)
        assert signals["applied_norm"][::10] == pytest.approx(0.5 * signals["grad_norm"][::10], rel=tolerance)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_applied_norm_with_a_gradient_scaler(fused: bool, unscaled: bool) -> None:
    """Clipped after the unscaling, as it should be, and before it. Then the scale divides the clipped norm too."""
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monitor = Monitor(model, optimizer, scaler)
    x, labels = batch(0)
    loss = ctc(model(x), labels)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if unscaled:
        scaler.unscale_(optimizer)
    assert monitor.step(loss) is None
    nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    scaler.step(optimizer)
    scaler.update()
    assert monitor.signals()["applied_norm"][0] == pytest.approx(0.25 if unscaled else 0.25 / 1024, rel=1e-4)


def test_an_update_that_the_scaler_skips_is_not_measured() -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monitor = Monitor(model, optimizer, scaler)
    for step in range(11):
        optimizer.zero_grad()
        scaler.scale(model(batch(step)[0]).mean()).backward()
        if step == 10:
            model.head.weight.grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.unscale_(optimizer)
        monitor.step(0.5)
        scaler.step(optimizer)
        scaler.update()
    signals = monitor.signals()
    for name in ("applied_norm", "update_ratio"):
        assert signals.measured[:, signals.names.index(name)].nonzero()[0].tolist() == [0]


def test_updates_that_do_not_follow_a_measured_step_are_not_measured() -> None:
    """Gradients are summed over two batches, so no update follows the steps 0, 10 and 20."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Toy().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer)
    for step in range(22):
        loss = model(batch(step)[0].to(device)).square().mean()
        loss.backward()
        assert monitor.step(loss) is None
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    signals = monitor.signals()
    assert "applied_norm" not in signals.names
    assert signals.measured[:, signals.names.index("weight_norm")].nonzero()[0].tolist() == [0, 10, 20]


class Words(nn.Module):
    """A table, of which a batch uses a few rows, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4, sparse=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.head(self.table(x)).square().mean()
        return loss


def test_a_sparse_gradient_is_measured() -> None:
    torch.manual_seed(0)
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, optimizer)
    x = torch.tensor([[3, 7, 3], [49, 3, 0]])  # rows that repeat are summed
    loss = model(x)
    loss.backward()
    before = whole(model.parameters())
    assert monitor.step(loss, inputs=x) is None
    optimizer.step()
    wanted = {
        "grad_norm": gradients(model).norm(),
        "applied_norm": gradients(model).norm(),
        "weight_norm": before.norm(),
        "update_ratio": (whole(model.parameters()) - before).norm() / before.norm(),
        "input_max": 49,
    }
    signals = monitor.signals()
    for name, value in wanted.items():
        assert signals[name][0] == pytest.approx(float(value), rel=1e-5), name


def test_a_sparse_gradient_that_is_not_finite_stops_the_training() -> None:
    model = Words()
    monitor = Monitor(model)
    loss = model(torch.tensor([3, 3, 7]))
    (loss * torch.inf).backward()
    failure = monitor.step(loss)
    assert failure is not None
    assert failure.evidence["gradients not finite"] == "table.weight, head.weight, head.bias"


def test_the_update_of_two_optimizers_is_measured() -> None:
    """The norms are those of the whole model. The update is the change by both optimizers."""
    torch.manual_seed(0)
    model = Toy()
    second = torch.optim.SGD(model.body.parameters(), lr=0.5)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    monitor = Monitor(model, optimizer)
    x, labels = batch(0)
    loss = ctc(model(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    before = whole(model.parameters())
    monitor.step(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    second.step()
    optimizer.step()
    signals = monitor.signals()
    ratio = (whole(model.parameters()) - before).norm() / before.norm()
    assert signals["applied_norm"][0] == pytest.approx(0.5, rel=1e-5)
    assert signals["update_ratio"][0] == pytest.approx(float(ratio), rel=1e-5)


def measure_step(*args: Any, **kwargs: Any) -> dict[str, float]:
    """Return the signals of a first step with a loss and these arguments."""
    monitor = Monitor(Toy())
    monitor.step(1.0, *args, **kwargs)
    signals = monitor.signals()
    return dict(zip(signals.names, signals.values[0].tolist(), strict=True))


def test_the_largest_input_is_measured() -> None:
    x = torch.tensor([[1.0, -7.5], [3.0, 0.0]])
    for inputs, largest in zip(
        (x, x.double(), x.bfloat16(), x.to(torch.int64), x > 0), (7.5, 7.5, 7.5, 7, 1), strict=True
    ):
        assert measure_step(inputs=inputs)["input_max"] == largest
    for place, value in itertools.product(range(4), (math.nan, math.inf, -math.inf)):
        spoilt = x.clone()
        spoilt.view(-1)[place] = value
        assert not np.isfinite(measure_step(inputs=spoilt)["input_max"])


def test_inputs_are_measured_every_tenth_step_and_when_something_is_not_finite() -> None:
    monitor = Monitor(Toy())
    for step in range(15):
        monitor.step(math.nan if step == 13 else 1.0, inputs=torch.ones(3))
    assert np.flatnonzero(np.isfinite(monitor.signals()["input_max"])).tolist() == [0, 10, 13]


def test_targets_that_ctc_cannot_align_are_counted() -> None:
    """Their loss is infinite for all logits. Without lengths, each utterance has all frames."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 4, (200, 6), generator=generator)  # few classes, so that many labels repeat
    counts, lengths = (torch.randint(low, 9 - low, (200,), generator=generator) for low in (2, 1))
    logits = torch.randn(200, 8, 5, generator=generator)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    wanted, found = [], []
    for kind in (torch.int64, torch.int32):
        step = measure_step(logits, lengths.to(kind), labels=labels.to(kind), label_counts=counts.to(kind))
        found.append(step["infeasible_targets"])
        wanted.append(int(F.ctc_loss(log_probs, labels, lengths, counts, reduction="none").isinf().sum()))
    short = torch.full((200,), 4)
    found.append(measure_step(logits[:, :4], labels=labels, label_counts=counts)["infeasible_targets"])
    wanted.append(int(F.ctc_loss(log_probs[:4], labels, short, counts, reduction="none").isinf().sum()))
    assert found == wanted
    assert all(0 < count < 200 for count in wanted)
    with pytest.raises(StabilityError, match="labels without label_counts"):
        measure_step(logits, labels=labels)


Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs, frames, labels and their counts


def ctc_batch(step: int) -> Batch:
    x, labels = batch(step)
    return x, torch.full((6,), 12), labels, torch.full((6,), 3)


class Watched:
    """A loop with CTC that may go on without a bad batch."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = Toy()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.monitor = Monitor(self.model, self.optimizer, **settings)
        self.refused: dict[int, Verdict] = {}

    def train(self, steps: Iterable[int], changed: dict[int, Any], *, go_on: bool = True, **ctc_options: Any) -> None:
        for step in steps:
            x, frames, labels, counts = changed.get(step, lambda given: given)(ctc_batch(step))
            self.optimizer.zero_grad()
            logits = self.model(x)
            log_probs = logits.log_softmax(-1).transpose(0, 1)
            loss = F.ctc_loss(log_probs, labels, frames.clamp(max=12), counts, **ctc_options)
            loss.backward()  # type: ignore[no-untyped-call]
            names = [f"{step}-{n}" for n in range(6)]
            given = {"labels": labels, "label_counts": counts, "batch": names}
            verdict = self.monitor.step(loss, logits, frames, inputs=x, **given)
            if verdict is None:
                self.optimizer.step()
                continue
            self.refused[step] = verdict
            if not go_on:
                break


def too_many_labels(given: Batch) -> Batch:
    x, frames, labels, counts = given
    return x, torch.where(torch.arange(6) == 2, 2, frames), labels, counts


def not_a_number(given: Batch) -> Batch:
    x, *rest = given
    return (x * torch.nan, *rest)  # type: ignore[return-value]


def with_blank(given: Batch) -> Batch:
    x, frames, labels, counts = given
    labels = labels.clone()
    labels[4, 1] = 0
    return x, frames, labels, counts


def test_a_training_may_go_on_without_bad_batches() -> None:
    watched = Watched()
    watched.train(range(80), {9: too_many_labels, 20: not_a_number, 21: too_many_labels, 45: with_blank})
    causes = {step: (verdict.cause, verdict.onset_step) for step, verdict in watched.refused.items()}
    assert causes == {
        9: ("infeasible_target", 9),
        20: ("non_finite_input", 20),
        21: ("infeasible_target", 21),
        45: ("blank_in_labels", 45),
    }
    assert watched.refused[9].evidence["utterances"] == "9-2"
    assert watched.refused[20].evidence["utterances of the batch"] == "20-0, 20-1, 20-2, 20-3, 20-4, 20-5"
    assert watched.refused[45].evidence["utterances"] == "45-4"
    watched.monitor.validated(0.1)
    verdict = watched.monitor.verdict()
    assert verdict.outcome == "stable"
    assert str(verdict.evidence["batches skipped"]).startswith("4 (step 9: 9-2; step 20: 20-0, 20-1")
    assert verdict.evidence["utterances that CTC cannot align"] == "2 of 480 (9-2, 21-2)"
    signals = watched.monitor.signals()
    assert np.flatnonzero(signals["skipped"] == 1).tolist() == [9, 20, 21, 45]
    assert signals.measured[:, signals.names.index("skipped")].sum() == 4


def test_a_training_that_stops_at_a_bad_batch_has_its_verdict() -> None:
    watched = Watched()
    watched.train(range(80), {30: too_many_labels}, go_on=False)
    verdict = watched.monitor.verdict()
    assert (verdict.outcome, verdict.cause, verdict.onset_step) == ("bad_data", "infeasible_target", 30)
    assert watched.refused == {30: verdict}


def test_a_training_whose_last_batches_are_all_bad_has_the_verdict_on_the_first_of_them() -> None:
    watched = Watched()
    watched.train(range(60), dict.fromkeys(range(40, 60), not_a_number))
    assert [*watched.refused] == [*range(40, 60)]
    assert watched.monitor.verdict() == watched.refused[40]
    assert "skipped" not in watched.monitor.signals().names


def test_a_bad_batch_that_was_trained_on_is_not_skipped() -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer)
    for step in range(30):
        x, labels = batch(step)
        optimizer.zero_grad()
        loss = ctc(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        given_labels = torch.where(labels == 1, 0, labels) if step == 12 else labels
        monitor.step(loss, model(x), labels=given_labels, label_counts=[3] * 6)
        optimizer.step()
    assert monitor.signals()["skipped"][12] == 0
    assert (monitor.verdict().outcome, monitor.verdict().cause) == ("bad_data", "blank_in_labels")


def test_targets_are_checked_at_every_step() -> None:
    watched = Watched()
    watched.train(range(15), {7: too_many_labels}, zero_infinity=True)
    signals = watched.monitor.signals()
    assert signals["infeasible_targets"].tolist() == [float(step == 7) for step in range(15)]
    assert signals["utterances"].tolist() == [6] * 15
    assert watched.refused == {}, "one of so many, and a loss that leaves it out"
    assert watched.monitor.verdict().evidence["utterances that CTC cannot align"] == "1 of 90 (7-2)"


def test_wrong_targets_are_found_at_the_first_step() -> None:
    def none_aligned(given: Batch) -> Batch:
        x, frames, labels, counts = given
        return x, frames // 6, labels, counts

    def too_long(given: Batch) -> Batch:
        x, frames, labels, counts = given
        return x, frames * 4, labels, counts

    for change, cause in (
        (none_aligned, "infeasible_target"),
        (too_long, "lengths_too_long"),
        (with_blank, "blank_in_labels"),
    ):
        watched = Watched()
        watched.train(range(5), dict.fromkeys(range(5), change), go_on=False, zero_infinity=True)
        assert {step: verdict.cause for step, verdict in watched.refused.items()} == {0: cause}
        assert [finding.detected_step for finding in watched.monitor.findings] == [0]


def test_a_decoder_has_no_frames_behind_its_last_one() -> None:
    model = Toy()
    logits = model(batch(0)[0])
    exact, longer = Monitor(model), Monitor(model)
    exact.step(2.0, logits, [logits.shape[1]] * 6)
    longer.step(2.0, logits, [4 * logits.shape[1]] * 6)
    for name in ("blank_fraction", "distinct_phonemes", "frame_information"):
        assert exact.signals()[name] == longer.signals()[name], name


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_it_may_be_called_under_autocast(dtype: torch.dtype) -> None:
    monitor = Monitor(Toy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monitor.step(1.0, torch.randn(2, 9, 5).to(dtype))
    assert monitor.signals()["frame_information"] > 0


def test_swapped_axes_are_found_at_the_first_step() -> None:
    model = Toy()
    x, _ = batch(0)
    verdict = Monitor(model).step(2.0, model(x).transpose(0, 1), [12] * 6)
    assert verdict is not None
    assert verdict.cause == "axes_swapped"


def test_a_learned_loss_that_another_term_pulls_below_0_is_trained_on() -> None:
    watched = Watched()
    x, frames, _, _ = ctc_batch(0)
    logits = watched.model(x)
    for loss in np.linspace(3, 0.1, 20):
        assert watched.monitor.step(float(loss), logits, frames) is None
    watched.monitor.validated(6.0, 0.4)  # in percent
    for loss in np.linspace(0, -0.3, 20):
        assert watched.monitor.step(float(loss), logits, frames) is None
    assert watched.monitor.verdict().outcome not in ("bad_data", "non_finite")


def test_logits_that_are_not_normalised_are_found_at_the_first_step() -> None:
    watched = Watched()
    x, frames, labels, counts = ctc_batch(0)
    logits = watched.model(x)
    loss = F.ctc_loss(logits.transpose(0, 1), labels, frames, counts)
    assert loss < 0
    verdict = watched.monitor.step(loss, logits, frames)
    assert verdict is not None
    assert (verdict.cause, verdict.onset_step) == ("negative_loss", 0)


def test_a_loss_of_each_utterance_is_refused() -> None:
    with pytest.raises(StabilityError, match=r"loss has the shape \(3,\)"):
        Monitor(Toy()).step(torch.ones(3))
    assert Monitor(Toy()).step(torch.ones(1, 1)) is None


def test_a_training_that_must_not_stop_is_not_stopped() -> None:
    watched = Watched(stop_on=[])
    watched.train(range(40), {9: with_blank, 20: with_blank})
    assert watched.refused == {}
    assert [finding.cause for finding in watched.monitor.findings] == ["blank_in_labels"]
    assert watched.monitor.verdict().cause == "blank_in_labels"


def test_parameters_in_no_optimizer_are_measured() -> None:
    """By their size. What another optimizer changes is optimized."""
    sizes = {name: p.numel() for name, p in Toy().named_parameters()}
    whole_size, head = sum(sizes.values()), sizes["head.weight"] + sizes["head.bias"]
    for second, lr, wanted in ((False, 0.1, [1 - head / whole_size]), (True, 0.1, [0.0]), (False, 0.0, [])):
        torch.manual_seed(0)
        model = Toy()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=lr)
        others = [torch.optim.SGD(model.body.parameters(), lr=0.1)] if second else []
        monitor = Monitor(model, optimizer)
        for step in range(5):
            x, labels = batch(step)
            loss = ctc(model(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss)
            for each in (optimizer, *others):
                each.step()
        signals = monitor.signals()
        found = signals["unoptimized"].tolist() if "unoptimized" in signals.names else []
        assert [value for value in found if np.isfinite(value)] == pytest.approx(wanted)


def test_frozen_parameters_are_measured_and_are_no_part_of_the_size_of_an_update() -> None:
    model, optimizer = toy()
    model.body.requires_grad_(False)
    head = [*model.head.parameters()]
    monitor = Monitor(model, optimizer)
    x, labels = batch(0)
    ctc(model(x), labels).backward()  # type: ignore[no-untyped-call]
    before = torch.cat([p.detach().flatten().clone() for p in head])
    monitor.step(1.0)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in head])
    signals = monitor.signals()
    sizes = sum(p.numel() for p in model.parameters())
    assert signals["frozen"][0] == pytest.approx(1 - len(before) / sizes)
    assert signals["update_ratio"][0] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


def test_different_utterances_are_counted_by_their_names() -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer)
    for step in range(311):
        monitor.step(1.0, batch=[f"sentence {n}" for n in range(2 * step, 2 * step + 4)])
    _, counts = finite_readings(monitor.signals(), "different_utterances")
    assert counts.tolist() == [2 * step + 4 for step in range(0, 311, 10)]
    monitor.step(1.0, batch=range(5000))
    for _ in range(9):
        monitor.step(1.0)
    assert finite_readings(monitor.signals(), "different_utterances").values[-1] == 1000


def test_without_names_nobody_knows_how_many_utterances_there_are() -> None:
    model, optimizer = toy()
    monitor = Monitor(model, optimizer)
    monitor.step(1.0)
    assert "different_utterances" not in monitor.signals().names


def test_parameters_without_a_gradient_are_measured() -> None:
    model, optimizer = toy()
    head = model.head.weight.numel() + model.head.bias.numel()
    monitor = Monitor(model, optimizer)
    ctc(model.head(torch.zeros(6, 12, 16)), batch(0)[1]).backward()  # type: ignore[no-untyped-call]
    monitor.step(1.0)
    signals = monitor.signals()
    assert signals["unoptimized"][0] == 0
    assert signals["no_gradient"][0] == pytest.approx(1 - head / sum(p.numel() for p in model.parameters()))
