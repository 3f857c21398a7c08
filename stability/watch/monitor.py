"""Watch a training loop of one's own, and rule on it as on a trial."""

import io
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stability.core.errors import StabilityError
from stability.core.files import write_atomically
from stability.core.text import first_of
from stability.data.phonemes import BLANK
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.history import History
from stability.diagnosis.signals import EXPENSIVE_EVERY
from stability.diagnosis.table import Table, append_table
from stability.diagnosis.verdict import FATAL, Fault, Verdict, is_check_due, judge, stopped
from stability.engine.measure import (
    frame_information,
    infeasible_targets,
    input_max,
    output_signals,
    sample_stride,
)

_BLOCK = 10  # steps after which signals are fetched, for speed
_RECENT = 200  # steps whose signals and batches a recording holds
_RECORD, _ROWS, _STATE = "flight.json", "flight.csv", "flight.pt"


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

    What is wrong is looked for every 10 steps (every 80 in a long training), and is told in `findings`. A finding of
    the kinds `stop_on` (of non_finite, bad_data, exploded, blank_collapse and mode_collapse) makes `step` return the
    verdict, from then on. With a `folder` each finding leaves a flight recording there, in the place of the last one:
    `flight.json`, all findings so far and the names of the batches; `flight.csv`, the signals; both of the last 200
    steps; and `flight.pt`, the state_dicts of model and optimizer when it was found, before the update. Why there is
    none, say for a full disk, is told in the verdict's evidence. Other words in `stop_on` raise `StabilityError`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
        *,
        blank: int = BLANK,
        stop_on: Collection[Fault] = FATAL,
        folder: Path | str | None = None,
    ) -> None:
        if unknown := {*stop_on} - {*get_args(Fault)}:
            raise StabilityError(
                f"stop_on={stop_on}: there is no {', '.join(sorted(unknown))}; there are {', '.join(get_args(Fault))}."
            )
        self._model, self._optimizer, self._scaler, self._blank = model, optimizer, scaler, blank
        self._pending: list[dict[str, Tensor]] = []
        self._rows = History()
        self._fetched = 0  # steps, all but the pending
        self._validations: list[tuple[int, float, float]] = []
        self._stop_on = stop_on
        self._findings: list[Finding] = []
        self._failure: Verdict | None = None
        self._folder = None if folder is None else Path(folder)
        self._unrecorded: dict[str, float | str] = {}
        self._batches: deque[tuple[int, list[str | int]]] = deque(maxlen=_RECENT)
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
        batch: Sequence[str | int] = (),
    ) -> Verdict | None:
        """Take one training step's signals; the verdict if the training is to be stopped, else None.

        logits: (B, T, C) of a CTC decoder; lengths: (B,) frames of each, all T if not given.
        inputs: what the model was given, of any shape; labels: (B, L), padded; label_counts: (B,) labels of each.
        batch: the names or numbers of its utterances, for a flight recording.
        A loss or gradient that is not finite is told before the update that it would spoil.
        Logits without the class of blank raise `StabilityError`.
        """
        self._before = []  # of an update that was never made
        step = self._fetched + len(self._pending)
        look = is_check_due(step)
        if look or len(self._pending) >= _BLOCK:
            self._fetch()
        self._batches.append((step, [name if isinstance(name, int) else str(name) for name in batch]))
        with torch.no_grad():
            row = self._measure(torch.as_tensor(loss).detach(), logits, lengths)
            self._pending.append(row)
            # The one number that is waited for on a GPU too: a failure has to be known before the update.
            finite = math.isfinite(sum(row[name] for name in ("loss", "grad_norm") if name in row))
            closely = step % EXPENSIVE_EVERY == 0 or not finite
            if inputs is not None and closely:
                row["input_max"] = input_max(inputs.detach().float().unsqueeze(0))[0]
            if labels is not None and label_counts is not None and logits is not None and closely:
                frames = _frames(logits, lengths)
                row["infeasible_targets"] = infeasible_targets(labels.cpu(), label_counts.cpu(), frames.cpu()).sum()
            if not finite:
                self._fetch()
                look |= not any(finding.kind in FATAL for finding in self._findings)
        if look:
            self._look()
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
        if self._failure is not None:
            return self._failure
        verdict = judge(self._rows.table(), self.validation())
        return replace(verdict, evidence=verdict.evidence | self._unrecorded)

    @property
    def findings(self) -> list[Finding]:
        """What has been found wrong so far: the first finding of each kind, as it was when it was made."""
        return [*self._findings]

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
        expensive = (self._fetched + len(self._pending)) % EXPENSIVE_EVERY == 0
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
            if expensive:
                signals["frame_information"] = frame_information(by_time, frames, self._blank)[0]
        if self._scaler is not None:
            signals["loss_scale"] = torch.tensor(float(self._scaler.get_scale()))
        if self._optimizer is not None:
            signals["lr"] = torch.tensor(float(self._optimizer.param_groups[0]["lr"]))
            if expensive:
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
        named = dict(self._gradients())
        return zip(named, _norms_of([*named.values()]), strict=True)

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
        """Bring what is pending to the host, from a GPU in one transfer."""
        if not self._pending:
            return
        device = next(self._model.parameters()).device
        if device.type == "cpu":
            fetched = [{name: float(value) for name, value in row.items()} for row in self._pending]
        else:
            flat = torch.stack([value.float().to(device) for row in self._pending for value in row.values()])
            values = iter(flat.tolist())
            fetched = [{name: next(values) for name in row} for row in self._pending]
        self._pending.clear()
        self._before = []  # an update that is still to come has no row any more
        table = _table(fetched, self._fetched)
        self._fetched += len(fetched)
        self._rows.append(table)

    def _look(self) -> None:
        """Ask the detectors, and keep and record what is new."""
        signals, validation = self._rows.table(), self.validation()
        before = len(self._findings)
        for finding in findings(signals, validation):
            if finding.kind not in {known.kind for known in self._findings}:
                self._findings.append(finding)
        new = self._findings[before:]
        if new and self._folder is not None:
            self._record(self._folder, signals)
        if self._failure is None and any(finding.kind in self._stop_on for finding in new):
            failure = stopped(signals, validation, self._stop_on)
            self._failure = failure and replace(failure, evidence=failure.evidence | self._where() | self._unrecorded)

    def _record(self, folder: Path, signals: Table) -> None:
        """Write the flight recording, its `flight.json` last. What cannot be written ends no training."""
        record = {"findings": [asdict(finding) for finding in self._findings], "batches": dict(self._batches)}
        state = {"model_state_dict": self._model.state_dict()}
        if self._optimizer is not None:
            state["optimizer_state_dict"] = self._optimizer.state_dict()
        recent = slice(-_RECENT, None)
        rows = Table(signals.names, signals.steps[recent], signals.values[recent], signals.measured[recent])
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (_RECORD, _ROWS, _STATE):
                (folder / name).unlink(missing_ok=True)
            append_table(folder / _ROWS, rows)
            write_atomically(folder / _STATE, buffer.getbuffer())
            write_atomically(folder / _RECORD, json.dumps(record, indent=2).encode())
            self._unrecorded = {}
        except OSError as error:
            self._unrecorded = {"flight recording": f"{folder} cannot be written ({error.strerror or error})"}
            for name in (_ROWS, _STATE):
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)

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
        return {what: first_of(names, 4) for what, names in found.items() if names}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over all tensors."""
    whole: Tensor = torch.linalg.vector_norm(torch.stack(_norms_of(tensors)))
    return whole


def _norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each, in one pass, as PyTorch's own clip takes it. Half precision would overflow."""
    if not tensors:
        return []
    wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
    return [norm.float().to(tensors[0].device) for norm in torch._foreach_norm(wide)]


def _frames(logits: Tensor, lengths: Tensor | None) -> Tensor:
    b, t, _ = logits.shape
    return torch.full((b,), t, device=logits.device) if lengths is None else lengths.to(logits.device)


def _is_finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return all(_is_finite(part) for part in parts)


def _table(rows: list[dict[str, float]], first_step: int) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)
    measured = np.array([[name in row for name in names] for row in rows], bool)
    shape = (len(rows), len(names))
    return Table(names, np.arange(first_step, first_step + len(rows)), values.reshape(shape), measured.reshape(shape))
