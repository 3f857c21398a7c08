"""The peers: other packages that detect failing trainings, each at its defaults, behind one interface.

    pip install -e '.[benchmark]'
    python experiments/detection/peers.py      # check them on four small trainings, and measure what each costs

Any number of peers watch the same training and change nothing in it:

    peers = [kind(model, optimizer, total_steps) for kind in installed_peers()]
    for step in range(total_steps):
        ...
        loss.backward()
        for peer in peers:
            peer.before_update(step, loss, logits, inputs, targets)
        optimizer.step()
        for peer in peers:
            peer.after_update(step, loss)
    for peer in peers:
        peer.finish()
        print(peer.name, peer.alarms)

An alarm is whatever a peer itself calls an error, a warning or an intervention. Other information is no alarm. If a
peer has levels of warnings, the docstring of its adapter says which of them count.
"""

import atexit
import contextlib
import importlib.metadata
import io
import json
import logging
import math
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import editdistance
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

Kind = Literal["non_finite", "exploded", "blank_collapse", "mode_collapse", "slow", "bad_data", "other"]


@dataclass(frozen=True)
class Alarm:
    """A peer's first alarm of one kind.

    Attributes:
        step: The step at which the peer raised it; for a report after the training, the last step.
        kind: Our outcome for it; "other" if it is none of our outcomes.
        text: The peer's own words.
    """

    step: int
    kind: Kind
    text: str


class Peer:
    """One detector that watches one training. Adapters fill in the private methods.

    The public methods protect the training from the peer. They suppress what it prints. They restore the random streams
    too, except in the two calls of every step. If the peer raises an exception, that becomes an alarm, and the peer is
    not called again. Repairs are never applied.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.
        total_steps: The number of steps of the training.
        scaler: The scaler of an fp16 training, for the peer that takes one. The others see an overflow as a gradient
            that is not finite.
    """

    name: ClassVar[str]
    requirement: ClassVar[str | None] = None  # the exact release that is benchmarked; None: nothing to install

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.alarms: list[Alarm] = []  # the first of each kind, in the order raised
        self._model, self._optimizer, self._total_steps, self._scaler = model, optimizer, total_steps, scaler
        self._step = 0
        self._raised = False
        with _silence(), _same_random_streams():
            self._attach()

    def before_update(self, step: int, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """Watch a step between `backward()` and `optimizer.step()`, with gradients unscaled and not yet clipped.

        `logits` (B, T, C) has blank as class 0; `inputs` is (B, T', F); `targets` are labels, (B, L) or concatenated.
        """
        self._contained(step, self._before_update, loss, logits, inputs, targets)

    def after_update(self, step: int, loss: Tensor) -> None:
        """Watch a step after `optimizer.step()` and before the gradients are cleared."""
        self._contained(step, self._after_update, loss)

    def validated(self, step: int, per: float, loss: float) -> None:
        """Take the phoneme error rate and the mean loss of a validation after `step`."""
        with _same_random_streams():
            self._contained(step, self._validated, per, loss)

    def finish(self) -> None:
        """Let the peer report at the end, and release the model. Call it once, however the training ends."""
        with _same_random_streams():
            self._contained(self._step, self._report)
        with _silence(), contextlib.suppress(Exception):  # a peer that raised before may raise again
            self._detach()

    def _attach(self) -> None: ...

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None: ...

    def _after_update(self, loss: Tensor) -> None: ...

    def _validated(self, per: float, loss: float) -> None: ...

    def _report(self) -> None: ...

    def _detach(self) -> None: ...

    def _contained(self, step: int, call: Callable[..., None], *args: object) -> None:
        self._step = step
        if self._raised:
            return
        with _silence():
            try:
                call(*args)
            except Exception as error:
                self._raised = True
                self._alarm("other", f"raised {type(error).__name__}: {error}")

    def _alarm(self, kind: Kind, text: str) -> None:
        if all(alarm.kind != kind for alarm in self.alarms):
            self.alarms.append(Alarm(self._step, kind, text))

    def _gradient_norm(self) -> float:
        """Compute the norm over all parameters. The user of a peer would compute it for the peer."""
        return float(get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None]))


# The original diagnosis lists in four lines what to watch. Its "should stay" is taken literally: these rules hold from
# the first step on, for every training batch.


class OriginalNorm30(Peer):
    """Gradient norms should stay below 20 to 30."""

    name = "original: norm > 30"
    _limit = 30.0

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        norm = self._gradient_norm()
        if norm > self._limit:
            self._alarm("exploded", f"gradient norm {norm:.4g}")


class OriginalNorm100(OriginalNorm30):
    """Gradient norms should not spike to 100 or more."""

    name = "original: norm > 100"
    _limit = 100.0


class OriginalUnique(Peer):
    """Unique phonemes should stay above 10, and not collapse to 1 or 2."""

    name = "original: < 10 phonemes"

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        predicted = torch.unique(logits.detach().argmax(-1))
        phonemes = int((predicted != 0).sum())
        if phonemes < 10:
            self._alarm("mode_collapse" if phonemes else "blank_collapse", f"{phonemes} unique phonemes")


class OriginalFinite(Peer):
    """No NaN or Inf in the gradients."""

    name = "original: NaN/Inf"

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            self._alarm("non_finite", f"gradient norm {norm}")


class Lightning(Peer):
    """Lightning's `EarlyStopping`, which checks that the validation loss is finite.

    A real `Trainer`, which trains nothing, calls the callback. By default it also stops after three validations without
    improvement. That is an alarm of the kind "other": the training may have ended well or badly.
    """

    name = "lightning"
    requirement = "lightning==2.6.6"

    def _attach(self) -> None:
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import EarlyStopping
        from lightning.pytorch.trainer.states import TrainerFn

        _quiet("lightning.pytorch", "lightning.fabric")
        self._trainer = Trainer(
            accelerator="cpu",
            max_steps=self._total_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self._module = LightningModule()
        self._trainer.state.fn = TrainerFn.FITTING
        # Validations come after a number of steps. By default Lightning would check at the end of an epoch.
        self._callback = EarlyStopping("val_loss", check_finite=True, check_on_train_epoch_end=False)

    def _validated(self, per: float, loss: float) -> None:
        self._trainer.callback_metrics["val_loss"] = torch.tensor(loss)
        self._trainer.should_stop = False  # the training goes on, and a later NaN must still be found
        self._callback.on_validation_end(self._trainer, self._module)
        if self._trainer.should_stop:
            non_finite = self._callback.stopping_reason.name == "NON_FINITE_METRIC"
            self._alarm("non_finite" if non_finite else "other", str(self._callback.stopping_reason_message))


class Autotrainer(Peer):
    """autotrainer's `TrainingMonitor`. Its messages have no levels: each counts as a warning, and is given once."""

    name = "autotrainer"
    requirement = "autotrainer==0.18.0"
    _words: ClassVar[dict[str, Kind]] = {
        "loss is diverging": "exploded",
        "gradient norm spiked": "exploded",
        "loss hasn't improved": "slow",
        "loss is ": "non_finite",
        "gradients are ": "non_finite",
        "fp16 gradient overflow": "non_finite",
    }

    def _attach(self) -> None:
        from autotrainer import TrainingMonitor

        self._monitor = TrainingMonitor()

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        known = len(self._monitor.diagnostics)
        self._monitor.step(loss, model=self._model, optimizer=self._optimizer, scaler=self._scaler)
        for text in self._monitor.diagnostics[known:]:
            self._alarm(_meaning(text, self._words), text)


class Trainpulse(Peer):
    """trainpulse's `Monitor`, with the loss, gradient norm and learning rate that its full loop logs.

    Both warnings and critical alerts count: a handler is called for both. The duration of a step is not logged: it
    depends on the machine, and here on the other peers.
    """

    name = "trainpulse"
    requirement = "trainpulse==0.4.0"
    _words: ClassVar[dict[str, Kind]] = {
        " is NaN": "non_finite",
        " is Inf": "non_finite",
        "Loss spike": "exploded",
        "Gradient explosion": "exploded",
        "Loss plateau": "slow",
    }

    def _attach(self) -> None:
        from trainpulse import Monitor

        self._monitor = Monitor()

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        rate = self._optimizer.param_groups[0]["lr"]
        for name, value in ("loss", float(loss)), ("grad_norm", self._gradient_norm()), ("learning_rate", rate):
            for alert in self._monitor.log(name, self._step, value):
                self._alarm(_meaning(alert.message, self._words), alert.message)


class Stabilityguard(Peer):
    """stabilityguard's `GuardedOptimizer`, which skips the update of a spike: that decision is the alarm.

    It guards a stand-in for the optimizer, so that neither its updates nor its skips happen.
    """

    name = "stabilityguard"
    requirement = "stabilityguard==0.3.0"

    def _attach(self) -> None:
        from stabilityguard import GuardedOptimizer

        _quiet("stabilityguard")
        _expect_backward_hooks()
        self._folder = tempfile.TemporaryDirectory()
        self._guard = GuardedOptimizer(_IdleOptimizer(self._optimizer), self._model, log_dir=self._folder.name)

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        spikes = self._guard.total_spikes
        self._guard.step()
        if self._guard.total_spikes > spikes:
            file = Path(self._folder.name) / f"spike_step{self._guard.step_count}.json"
            report = json.loads(file.read_text())
            file.unlink()
            layer, ratio = report["snapshot"]["spike_layer"], report["snapshot"]["spike_ratio"]
            kind: Kind = "non_finite" if report["nan_layers"] else "exploded"
            self._alarm(kind, f"spike in {layer}: {ratio:.4g} times its baseline")

    def _detach(self) -> None:
        self._guard.close()
        self._folder.cleanup()


class _IdleOptimizer:
    """An optimizer with the interface that `GuardedOptimizer` needs, but without any effect."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


class Traintools(Peer):
    """traintools' inspectors of batches, gradients, activations and validation losses. All their warnings count.

    Its gradient noise scale is left out: it advises on the batch size, and trains on the batch once more for that. The
    clipping norm of its README's example, above which it would warn, is left out too: by default there is none.
    """

    name = "traintools"
    requirement = "traintools==0.6.2"
    _words: ClassVar[dict[str, Kind]] = {
        "has non-finite gradients": "non_finite",
        "gradient is very large": "exploded",
        "update/weight ratio is high": "exploded",  # the update is too large for the weights
    }

    def _attach(self) -> None:
        from traintools import BatchInspector, GradientHealthMonitor, PlasticityProbe, TrainGuard

        self._new_inspector = BatchInspector
        self._inspector: Any = None
        self._gradients = GradientHealthMonitor()
        self._plasticity = PlasticityProbe(self._model)
        self._guard = TrainGuard()

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        if self._inspector is None:
            self._inspector = self._new_inspector(expected_num_classes=logits.shape[-1])
        for text in self._inspector.inspect(inputs, targets, step=self._step).warnings:
            self._alarm("other" if "dominant class" in text else "bad_data", text)
        rate = self._optimizer.param_groups[0]["lr"]
        for text in self._gradients.inspect(self._model, step=self._step, lr=rate).warnings:
            self._alarm(_meaning(text, self._words), text)

    def _after_update(self, loss: Tensor) -> None:
        if self._step > 0 and self._step % 200 == 0:  # as often as its own tracker
            result = self._plasticity.measure(step=self._step)
            self._plasticity.reset_buffers()
            if result.critical_layers:
                self._alarm("other", f"critical layers: {', '.join(result.critical_layers)}")

    def _validated(self, per: float, loss: float) -> None:
        self._guard.record(step=self._step, val_loss=loss)
        decision = self._guard.evaluate()
        if decision.should_stop:  # the training may have ended well or badly
            self._alarm("other", decision.reason)

    def _detach(self) -> None:
        self._plasticity.remove_hooks()


class Torchmortem(Peer):
    """torchmortem's `Autopsy`. Only critical findings count: its warnings include normal stages of a training."""

    name = "torchmortem"
    requirement = "torchmortem==0.1.1"
    _words: ClassVar[dict[str, Kind]] = {
        "Exploding gradients": "exploded",
        "Training divergence": "exploded",
        "Weight norm explosion": "exploded",
        "Update ratio too high": "exploded",  # the update is too large for the weights
    }

    def _attach(self) -> None:
        from torchmortem import Autopsy

        _quiet("torchmortem")
        _expect_backward_hooks()
        self._autopsy = Autopsy(self._model, optimizer=self._optimizer)
        self._autopsy.attach()
        # Otherwise it writes a report into the working directory at exit, and keeps the model in memory until then.
        atexit.unregister(self._autopsy._atexit_handler)

    def _after_update(self, loss: Tensor) -> None:
        self._autopsy.step(loss=loss.item())

    def _report(self) -> None:
        self._autopsy.detach()
        for finding in self._autopsy.get_report().findings:
            if finding.severity.name == "CRITICAL":
                first, last = finding.step_range
                text = f"{finding.title} (steps {first} to {last}): {finding.summary}"
                self._alarm(_meaning(finding.title, self._words), text)

    def _detach(self) -> None:
        self._autopsy.detach()  # again, in case it raised before


PEERS: tuple[type[Peer], ...] = (
    OriginalNorm30,
    OriginalNorm100,
    OriginalUnique,
    OriginalFinite,
    Lightning,
    Autotrainer,
    Trainpulse,
    Stabilityguard,
    Traintools,
    Torchmortem,
)


def installed_peers() -> list[type[Peer]]:
    """Return the peers whose packages are installed. Print a line on stderr for each of the others."""
    found = []
    for peer in PEERS:
        missing = _missing(peer.requirement) if peer.requirement else None
        if missing:
            print(f"Without {peer.name}: {missing}. pip install {peer.requirement}", file=sys.stderr)
        else:
            found.append(peer)
    return found


def _missing(requirement: str) -> str | None:
    package, wanted = requirement.split("==")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "it is not installed"
    return None if version == wanted else f"release {version} is installed"


def _meaning(text: str, words: dict[str, Kind]) -> Kind:
    """Return the kind of the first phrase in `words` that the text contains; "other" if it contains none."""
    return next((kind for phrase, kind in words.items() if phrase in text), "other")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


@contextlib.contextmanager
def _same_random_streams() -> Iterator[None]:
    """Restore Python's, NumPy's and PyTorch's global generators at the end. This is too slow for every step."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002


def _quiet(*loggers: str) -> None:
    """Silence loggers that `_silence` cannot reach: those of hooks, and those whose handlers keep the real stderr."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _expect_backward_hooks() -> None:
    """Suppress PyTorch's warning, in the training's backward pass, that the first layer's inputs need no gradient."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


# The check: a small GRU trained with CTC on made-up frames, healthy and in three kinds of trouble.

_STEPS, _TROUBLE_AT, _VALIDATE_EVERY = 300, 100, 50
_BATCH, _LABELS, _FRAMES_EACH, _FEATURES, _CLASSES = 16, 6, 6, 64, 41
_TROUBLES = ("healthy", "lr x 1000", "NaN input", "all blank")


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)  # draws from the global stream, which a peer must leave alone
        self.encoder = nn.GRU(_FEATURES, 128, batch_first=True)
        self.head = nn.Linear(128, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.encoder(self.dropout(x))
        logits: Tensor = self.head(states)
        return logits


def _batch(step: int) -> tuple[Tensor, Tensor]:
    """Make features (B, T, F) and labels (B, L). Each label has four frames of its own pattern and two of silence."""
    patterns = torch.randn(_CLASSES, _FEATURES, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(1 + step)
    labels = torch.randint(1, _CLASSES, (_BATCH, _LABELS), generator=stream)
    x = patterns[labels].repeat_interleave(_FRAMES_EACH, 1)
    x[:, torch.arange(x.shape[1]) % _FRAMES_EACH >= 4] = 0
    return x + 0.3 * torch.randn(x.shape, generator=stream), labels


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    frames, counts = torch.full((_BATCH,), logits.shape[1]), torch.full((_BATCH,), _LABELS)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, frames, counts, reduction="none").mean()


class _Training:
    """One toy training and the peers that watch it."""

    def __init__(self, trouble: str, kinds: Sequence[type[Peer]]) -> None:
        torch.manual_seed(0)
        self.trouble, self.model = trouble, _Toy()
        if trouble == "all blank":
            self.model.head.bias.data[0] = 100
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.peers = [kind(self.model, self.optimizer, _STEPS) for kind in kinds]

    def step(self, step: int) -> None:
        x, labels = _batch(step)
        if step == _TROUBLE_AT and self.trouble == "lr x 1000":
            self.optimizer.param_groups[0]["lr"] *= 1000
        if step == _TROUBLE_AT and self.trouble == "NaN input":
            x[0, 0, 0] = torch.nan
        logits = self.model(x)
        loss = _loss(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for peer in self.peers:
            peer.before_update(step, loss.detach(), logits.detach(), x, labels)
        self.optimizer.step()
        for peer in self.peers:
            peer.after_update(step, loss.detach())

    def run(self) -> Tensor:
        """Train to the end and return all weights."""
        for step in range(_STEPS):
            self.step(step)
            if (step + 1) % _VALIDATE_EVERY == 0:
                self._validate(step)
        for peer in self.peers:
            peer.finish()
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def _validate(self, step: int) -> None:
        x, labels = _batch(-1 - step)
        self.model.eval()
        with torch.no_grad():
            logits = self.model(x)
        self.model.train()
        best = logits.argmax(-1).tolist()
        decoded = [[own for before, own in pairwise([0, *row]) if own not in (0, before)] for row in best]
        errors = sum(editdistance.eval(own, target) for own, target in zip(decoded, labels.tolist(), strict=True))
        for peer in self.peers:
            peer.validated(step, errors / labels.numel(), float(_loss(logits, labels)))


def _check(kinds: Sequence[type[Peer]]) -> None:
    """Train with and without the peers, check that they change and print nothing, and list their alarms."""
    print(f"{'training':12}{'peer':26}{'step':>5} alarm")
    before = {*Path.cwd().iterdir()}
    for trouble in _TROUBLES:
        plain = _Training(trouble, ()).run()
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            training = _Training(trouble, kinds)
            watched = training.run()
        assert torch.equal(plain.view(torch.int32), watched.view(torch.int32)), f"{trouble}: a peer changed the weights"
        assert not output.getvalue(), f"{trouble}: a peer wrote {output.getvalue()!r}"
        for module in training.model.modules():
            assert not module._forward_hooks, f"{trouble}: a hook is left"
            assert not module._backward_hooks, f"{trouble}: a hook is left"
        for peer in training.peers:
            for alarm in peer.alarms:
                print(f"{trouble:12}{peer.name:26}{alarm.step:5} {alarm.kind}: {alarm.text}")
            if not peer.alarms:
                print(f"{trouble:12}{peer.name:26}    - none")
    assert {*Path.cwd().iterdir()} == before, "a peer left a file"
    print("The weights are the same to the bit with and without all of them.")


def _measure(kinds: Sequence[type[Peer]], rounds: int = 150) -> None:
    """Print the time that each peer adds to a step: the median difference between watched and plain steps, in turns.

    The processor time is measured, because other programs on the machine change it little.
    """
    trainings = [_Training("healthy", ()), *(_Training("healthy", (kind,)) for kind in kinds)]
    times = np.zeros((rounds, len(trainings)))
    for i in range(-10, rounds):
        for j in np.roll(range(len(trainings)), i):
            start = time.process_time()
            trainings[j].step(i + 10)
            times[i, j] = time.process_time() - start
    plain = np.median(times[:, 0])
    print(f"\nA plain step takes {1000 * plain:.1f} ms. The peers add:")
    for kind, share in zip(kinds, np.median(times[:, 1:] - times[:, :1], 0) / plain, strict=True):
        print(f"{kind.name:26}{share:7.1%}")


def main() -> None:
    """Check the peers that are installed."""
    torch.set_num_threads(1)
    kinds = installed_peers()
    _check(kinds)
    _measure(kinds)


if __name__ == "__main__":
    main()
