"""The peers: other detectors of failing trainings, each the real package at its defaults, behind one interface.

    pip install -e '.[benchmark]'
    python experiments/detection/peers.py      # check them all on four small trainings, and what each costs

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

An alarm is what a peer itself calls an error, a warning or an intervention: what tells its user that the training is in
trouble. Information it gives besides is none. Where it has levels, the adapter says which of them count.
"""

import contextlib
import importlib.metadata
import io
import logging
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

Kind = Literal["non_finite", "exploded", "blank_collapse", "mode_collapse", "slow", "bad_data", "other"]


@dataclass(frozen=True)
class Alarm:
    """What a peer said first about one kind of trouble.

    `step` is the step at which it said so; for a report after the training, the last one. `kind` is our word for what
    the peer's own words in `text` amount to; "other" where they name none of our outcomes.
    """

    step: int
    kind: Kind
    text: str


class Peer:
    """One detector at one training. Adapters fill in the private methods; the public ones keep the training unharmed.

    Nothing that a peer does gets out: prints are swallowed, an exception becomes an alarm and is the end of that peer,
    the random streams are put back. Repairs are never applied.
    """

    name: ClassVar[str]
    requirement: ClassVar[str | None] = None  # the exact release that is benchmarked; None: nothing to install

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.alarms: list[Alarm] = []  # the first of each kind, in the order raised
        self._model, self._optimizer, self._total_steps = model, optimizer, total_steps
        self._step = 0
        self._raised = False
        with _silence(), _same_random_streams():
            self._attach()

    def before_update(self, step: int, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """Look at a step between `backward()` and `optimizer.step()`, and before the gradients are clipped.

        `logits` (B, T, C) has blank as class 0; `inputs` is (B, T', F); `targets` are labels, (B, L) or concatenated.
        """
        self._contained(step, self._before_update, loss, logits, inputs, targets)

    def after_update(self, step: int, loss: Tensor) -> None:
        """Look at a step after `optimizer.step()` and before the gradients are cleared."""
        self._contained(step, self._after_update, loss)

    def validated(self, step: int, per: float, loss: float) -> None:
        """Take the phoneme error rate and the mean loss of a validation after `step`."""
        with _same_random_streams():
            self._contained(step, self._validated, per, loss)

    def finish(self) -> None:
        """Report what is known only at the end of training, and let go of the model. Call it once, at any end."""
        with _same_random_streams():
            self._contained(self._step, self._report)
        with _silence():
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
        """The norm over all parameters, which the user of a peer has to compute for it."""
        return float(get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None]))


# The rules of the original diagnosis, which tells what to watch in four lines. Its "should stay" is taken at its word:
# from the first step on, and on the batch that is trained on.


class OriginalNorm30(Peer):
    """Gradient norms should stay below 20 to 30."""

    name = "original: norm > 30"
    _limit = 30.0

    def _before_update(self, loss: Tensor, logits: Tensor, inputs: Tensor, targets: Tensor) -> None:
        norm = self._gradient_norm()
        if norm > self._limit:
            self._alarm("exploded", f"gradient norm {norm:.4g}")


class OriginalNorm100(OriginalNorm30):
    """They should not spike to 100 or more."""

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

    The callback itself, asked by a real `Trainer` that trains nothing. Its other default, to stop after three
    validations without improvement, is an alarm too, but "other": it says that training is over, well or ill.
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
        # Validations come every so many steps, where Lightning's own place for the check would be the end of an epoch.
        self._callback = EarlyStopping("val_loss", check_finite=True, check_on_train_epoch_end=False)

    def _validated(self, per: float, loss: float) -> None:
        self._trainer.callback_metrics["val_loss"] = torch.tensor(loss)
        self._trainer.should_stop = False  # the training goes on, so a later NaN is still to be found
        self._callback.on_validation_end(self._trainer, self._module)
        if self._trainer.should_stop:
            non_finite = self._callback.stopping_reason.name == "NON_FINITE_METRIC"
            self._alarm("non_finite" if non_finite else "other", str(self._callback.stopping_reason_message))


PEERS: tuple[type[Peer], ...] = (
    OriginalNorm30,
    OriginalNorm100,
    OriginalUnique,
    OriginalFinite,
    Lightning,
)


def installed_peers() -> list[type[Peer]]:
    """The peers that can be used here; a line on stderr for each that cannot."""
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


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


@contextlib.contextmanager
def _same_random_streams() -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's global generators as they were. Too dear for every step."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002


def _quiet(*loggers: str) -> None:
    """Silence what is logged in hooks, outside our calls, or by a handler that kept the real stderr."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
