"""Watch a training loop of one's own, and rule on it as on a trial."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from stability.data.phonemes import BLANK
from stability.diagnosis.signals import Table
from stability.diagnosis.verdict import Verdict, failed, judge
from stability.errors import StabilityError
from stability.training.measure import DEAR_EVERY, frame_information, output_signals, sample_stride

_BLOCK = 10  # steps after which signals are fetched from a GPU; on a CPU each step is looked at before the update


class Monitor:
    """Watches a plain PyTorch loop: call `step` between `backward()` and `optimizer.step()`.

        monitor = Monitor(model, optimizer)
        ...
            loss.backward()
            if monitor.step(loss, logits):
                break
            optimizer.step()
        ...
        print(monitor.verdict())

    The optimizer is optional, and so are the logits; what is not given is not judged. Nothing is changed: not a
    gradient, not a random number. `blank` is the logits' class of CTC's blank.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, blank: int = BLANK) -> None:
        self._model, self._optimizer, self._blank = model, optimizer, blank
        self._pending: list[dict[str, Tensor]] = []
        self._rows: list[dict[str, float]] = []
        self._validations: list[tuple[int, float, float]] = []
        self._failure: Verdict | None = None

    def step(self, loss: Tensor | float, logits: Tensor | None = None, lengths: Tensor | None = None) -> Verdict | None:
        """Take one training step's signals; the verdict if the training cannot go on, else None.

        logits: (B, T, C) of a CTC decoder; lengths: (B,) frames of each, all T if not given.
        On a CPU a failure is told before the update that it would spoil, on a GPU up to ten steps after it.
        Logits without the class of blank raise `StabilityError`.
        """
        with torch.no_grad():
            self._pending.append(self._measure(torch.as_tensor(loss).detach(), logits, lengths))
        if not next(iter(self._model.parameters())).is_cuda or len(self._pending) == _BLOCK:
            self._fetch()
        return self._failure

    def validated(self, per: float, loss: float = math.nan) -> None:
        """Take a validation's phoneme (or word, or character) error rate, 1 for all wrong, and its loss."""
        self._validations.append((len(self._rows) + len(self._pending) - 1, per, loss))

    def verdict(self) -> Verdict:
        """What became of the training so far. Raises ValueError before the first step."""
        self._fetch()
        if not self._rows:
            raise ValueError("There is no verdict before the first step: call step(loss) after backward().")
        steps = np.array([step for step, _, _ in self._validations], np.int64)
        values = np.array([rest for _, *rest in self._validations], np.float32).reshape(-1, 2)
        return judge(_table(self._rows), Table(("per", "loss"), steps, values, ~np.isnan(values)))

    def _measure(self, loss: Tensor, logits: Tensor | None, lengths: Tensor | None) -> dict[str, Tensor]:
        step = len(self._rows) + len(self._pending)
        signals = {"loss": loss.float(), **self._gradient_norms()}
        if logits is not None:
            if not 0 <= self._blank < logits.shape[-1]:
                raise StabilityError(
                    f"blank={self._blank} is none of the {logits.shape[-1]} classes of logits {tuple(logits.shape)}: "
                    "give the class (from 0) that CTC's loss takes for blank, and logits as (batch, frames, classes)."
                )
            by_time = logits.detach().float().transpose(0, 1).unsqueeze(0)
            frames = torch.full((logits.shape[0],), logits.shape[1]) if lengths is None else lengths
            frames = frames.to(logits.device).view(1, -1)
            signals |= {name: value[0] for name, value in output_signals(by_time, frames, self._blank).items()}
            if step % DEAR_EVERY == 0:
                signals["frame_information"] = frame_information(by_time, frames, self._blank)[0]
        if self._optimizer is not None:
            signals["lr"] = torch.tensor(float(self._optimizer.param_groups[0]["lr"]))
            if step % DEAR_EVERY == 0:
                signals |= self._epsilon_signals()
        return signals

    def _gradient_norms(self) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for name, norm in self._norms():
            parts.setdefault(name.partition(".")[0], []).append(norm)
        norms = {f"grad_norm.{part}": torch.linalg.vector_norm(torch.stack(own)) for part, own in parts.items()}
        if not norms:
            return {}
        return {"grad_norm": torch.linalg.vector_norm(torch.stack([*norms.values()])), **norms}

    def _norms(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter that has a gradient, and its norm."""
        for name, p in self._model.named_parameters():
            if p.grad is not None:
                yield name, torch.linalg.vector_norm(p.grad.float())

    def _epsilon_signals(self) -> dict[str, Tensor]:
        """As `measure.epsilon_signals`, from the state that PyTorch's Adam and AdamW keep."""
        moments = [*self._second_moments()]
        if not moments:
            return {}
        stride = sample_stride([second.shape for second, _, _ in moments])
        roots = [(second.flatten()[::stride].float() / correction).sqrt() for second, correction, _ in moments]
        below = [root < epsilon for root, (_, _, epsilon) in zip(roots, moments, strict=True)]
        assert self._optimizer is not None
        group = self._optimizer.param_groups[0]
        return {
            "epsilon_dominance": torch.cat(below).float().mean(),
            "effective_lr": float(group["lr"]) / (torch.cat(roots).median() + group["eps"]),
        }

    def _second_moments(self) -> Iterator[tuple[Tensor, float, float]]:
        """Second moment, its bias correction and epsilon, of each parameter that has been stepped."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                state = self._optimizer.state.get(p, {})
                if "exp_avg_sq" in state and state["step"] > 0:
                    yield state["exp_avg_sq"], 1 - group["betas"][1] ** float(state["step"]), float(group["eps"])

    def _fetch(self) -> None:
        """Bring what is pending to the host, in one transfer, and look whether the training can go on."""
        if not self._pending:
            return
        device = next(iter(self._model.parameters())).device
        flat = torch.stack([value.to(device) for row in self._pending for value in row.values()]).tolist()
        values = iter(flat)
        fetched = [{name: next(values) for name in row} for row in self._pending]
        self._rows += fetched
        self._pending.clear()
        self._failure = self._failure or failed(_table(fetched, first_step=len(self._rows) - len(fetched)))


def _table(rows: list[dict[str, float]], first_step: int = 0) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)
    measured = np.array([[name in row for name in names] for row in rows], bool)
    shape = (len(rows), len(names))
    return Table(names, np.arange(first_step, first_step + len(rows)), values.reshape(shape), measured.reshape(shape))
