"""Watch a training loop of one's own, and rule on it as on a trial."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stability.data.phonemes import BLANK
from stability.diagnosis.history import History
from stability.diagnosis.signals import Table
from stability.diagnosis.verdict import Verdict, failed, judge
from stability.errors import StabilityError
from stability.training.measure import DEAR_EVERY, frame_information, infeasible_targets, output_signals, sample_stride

_BLOCK = 10  # steps after which signals are fetched from a GPU


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

    All but the model is optional; what is not given is not judged. `scaler` is the GradScaler of a training in fp16,
    whose gradients `step` should see unscaled; `blank` the logits' class of CTC's blank. Of several optimizers give
    the one that steps last: the update is what the weights have changed by then. Nothing is changed: not a gradient,
    not a random number.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
        *,
        blank: int = BLANK,
    ) -> None:
        self._model, self._optimizer, self._scaler, self._blank = model, optimizer, scaler, blank
        self._pending: list[dict[str, Tensor]] = []
        self._rows = History()
        self._fetched = 0  # steps, all but the pending
        self._validations: list[tuple[int, float, float]] = []
        self._failure: Verdict | None = None
        self._outputs: dict[str, Any] = {}  # of this step's modules, in the order in which they ran
        self._before: list[Tensor] = []  # the weights, while an update is made whose size is measured
        for name, module in model.named_modules():
            if not any(module.children()):
                module.register_forward_hook(self._keep_output(name))
        if optimizer is not None:
            optimizer.register_step_post_hook(self._after_update)

    def step(
        self,
        loss: Tensor | float,
        logits: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        labels: Tensor | None = None,
        label_counts: Tensor | None = None,
    ) -> Verdict | None:
        """Take one training step's signals; the verdict if the training cannot go on, else None.

        logits: (B, T, C) of a CTC decoder; lengths: (B,) frames of each, all T if not given.
        inputs: what the model was given, of any shape; labels: (B, L), padded; label_counts: (B,) labels of each.
        A loss or gradient that is not finite is told before the update that it would spoil.
        Logits without the class of blank raise `StabilityError`.
        """
        self._before = []  # of an update that was never made
        if len(self._pending) >= (_BLOCK if next(self._model.parameters()).is_cuda else 1):
            self._fetch()
        with torch.no_grad():
            row = self._measure(torch.as_tensor(loss).detach(), logits, lengths)
            if inputs is not None:
                row["input_max"] = torch.linalg.vector_norm(inputs.detach().float(), math.inf)
            if logits is not None and labels is not None and label_counts is not None:
                frames = _frames(logits, lengths)
                row["infeasible_targets"] = infeasible_targets(labels.cpu(), label_counts.cpu(), frames.cpu()).sum()
            self._pending.append(row)
            # The one number that is waited for on a GPU too: a failure has to be known before the update.
            if not torch.stack([row[n].cpu() for n in ("loss", "grad_norm") if n in row]).isfinite().all():
                self._fetch()
        self._outputs.clear()
        return self._failure

    def validated(self, per: float, loss: float = math.nan) -> None:
        """Take a validation's phoneme (or word, or character) error rate, 1 for all wrong, and its loss."""
        self._validations.append((self._fetched + len(self._pending) - 1, per, loss))

    def verdict(self) -> Verdict:
        """What became of the training so far. Raises ValueError before the first step."""
        self._fetch()
        if not self._fetched:
            raise ValueError("There is no verdict before the first step: call step(loss) after backward().")
        return self._failure or judge(self._rows.table(), self.validation())

    def signals(self) -> Table:
        """Every signal of every step so far."""
        self._fetch()
        return self._rows.table()

    def validation(self) -> Table:
        """All validations so far."""
        steps = np.array([step for step, _, _ in self._validations], np.int64)
        values = np.array([rest for _, *rest in self._validations], np.float32).reshape(-1, 2)
        return Table(("per", "loss"), steps, values, ~np.isnan(values))

    def _measure(self, loss: Tensor, logits: Tensor | None, lengths: Tensor | None) -> dict[str, Tensor]:
        dear = (self._fetched + len(self._pending)) % DEAR_EVERY == 0
        signals = {"loss": loss.float(), **self._gradient_norms()}
        if logits is not None:
            if not 0 <= self._blank < logits.shape[-1]:
                raise StabilityError(
                    f"blank={self._blank} is none of the {logits.shape[-1]} classes of logits {tuple(logits.shape)}: "
                    "give the class (from 0) that CTC's loss takes for blank, and logits as (batch, frames, classes)."
                )
            by_time = logits.detach().float().transpose(0, 1).unsqueeze(0)
            frames = _frames(logits, lengths).view(1, -1)
            signals |= {name: value[0] for name, value in output_signals(by_time, frames, self._blank).items()}
            if dear:
                signals["frame_information"] = frame_information(by_time, frames, self._blank)[0]
        if self._scaler is not None:
            signals["loss_scale"] = torch.tensor(float(self._scaler.get_scale()))
        if self._optimizer is not None:
            signals["lr"] = torch.tensor(float(self._optimizer.param_groups[0]["lr"]))
            if dear:
                signals |= self._epsilon_signals()
                self._before = [p.detach().clone() for p in self._model.parameters()]
                signals["weight_norm"] = _norm(self._before)
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
        for name, gradient in self._gradients():
            yield name, _norm([gradient])

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter that has a gradient, and the gradient; of a sparse one the numbers that it holds."""
        for name, p in self._model.named_parameters():
            if p.grad is not None:
                yield name, p.grad.coalesce().values() if p.grad.is_sparse else p.grad

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

    def _after_update(self, *_: Any) -> None:
        if not self._before:
            return
        with torch.no_grad():
            pairs = zip(self._model.parameters(), self._before, strict=True)
            row = self._pending[-1]
            row["update_ratio"] = _norm([after - before for after, before in pairs]) / row["weight_norm"]
            # What was applied may have been clipped, or unscaled, since `step`.
            if gradients := [gradient for _, gradient in self._gradients()]:
                row["applied_norm"] = _norm(gradients)
        self._before = []

    def _keep_output(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[name] = output

        return keep

    def _fetch(self) -> None:
        """Bring what is pending to the host, in one transfer, and look whether the training can go on."""
        if not self._pending:
            return
        device = next(self._model.parameters()).device
        flat = torch.stack([value.float().to(device) for row in self._pending for value in row.values()]).tolist()
        values = iter(flat)
        fetched = [{name: next(values) for name in row} for row in self._pending]
        self._pending.clear()
        self._before = []  # an update that is still to come has no row any more
        table = _table(fetched, self._fetched)
        self._fetched += len(fetched)
        self._rows.append(table.names, table.steps, table.values, table.measured)
        if self._failure is None:
            failure = failed(table)
            self._failure = failure and replace(failure, evidence=failure.evidence | self._where())

    def _where(self) -> dict[str, float | str]:
        """Where the model at hand is not finite: first module in the order of the forward pass, and parameters."""
        modules = [name for name, output in self._outputs.items() if not _is_finite(output)]
        weights = [name for name, p in self._model.named_parameters() if not p.isfinite().all()]
        gradients = [name for name, gradient in self._gradients() if not gradient.isfinite().all()]
        found = {
            "first module with an output that is not finite": modules[:1],
            "weights not finite": weights,
            "gradients not finite": gradients,
        }
        return {what: _listed(names) for what, names in found.items() if names}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over all tensors."""
    norms = [torch.linalg.vector_norm(t, dtype=_wide(t)) for t in tensors]
    whole: Tensor = torch.linalg.vector_norm(torch.stack([n.float().to(norms[0].device) for n in norms]))
    return whole


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _frames(logits: Tensor, lengths: Tensor | None) -> Tensor:
    b, t, _ = logits.shape
    return torch.full((b,), t, device=logits.device) if lengths is None else lengths.to(logits.device)


def _is_finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return all(_is_finite(part) for part in parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _table(rows: list[dict[str, float]], first_step: int) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)
    measured = np.array([[name in row for name in names] for row in rows], bool)
    shape = (len(rows), len(names))
    return Table(names, np.arange(first_step, first_step + len(rows)), values.reshape(shape), measured.reshape(shape))
