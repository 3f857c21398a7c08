"""The Monitor: watches a plain PyTorch training loop and gives a verdict on it, as on a trial."""

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
from stability.diagnosis.error_rate import is_in_percent
from stability.diagnosis.finding import Finding
from stability.diagnosis.history import History
from stability.diagnosis.signals import EXPENSIVE_EVERY
from stability.diagnosis.table import Table, append_table
from stability.diagnosis.verdict import FATAL, Fault, Verdict, is_check_due, judge, stopping_verdict
from stability.engine.measure import (
    frame_information,
    infeasible_targets,
    input_max,
    output_signals,
    sample_stride,
)

_FETCH_EVERY = 10  # steps: one transfer from the GPU for many signals is faster
_RECENT = 200  # steps whose signals and batches a flight recording holds
_RECORD, _ROWS, _STATE = "flight.json", "flight.csv", "flight.pt"


class Monitor:
    """Watches a plain PyTorch training loop.

    Call `step` between `backward()` and `optimizer.step()`:

        monitor = Monitor(model, optimizer)
        ...
            loss.backward()
            if monitor.step(loss, logits):
                break
            optimizer.step()
        ...
        print(monitor.verdict())

    The Monitor changes nothing in the training: no gradient, and no random number. It judges only what it is given.
    The detectors run every 10 steps, in a long training every 80 steps, and at once if a loss or gradient is not
    finite.

    With a `folder`, each finding leaves a flight recording there, which replaces the last one: `flight.json` has all
    findings so far and the names of the last 200 batches; `flight.csv` has the signals of the last 200 steps;
    `flight.pt` has the state_dicts of the model and the optimizer before the update. If it cannot be written, the
    training goes on, and the verdict's evidence says why.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer. If there are several, the one that steps last: the measured update is what all of
            them have changed by then.
        scaler: The GradScaler of a training in fp16. Unscale the gradients before you call `step`.
        blank: The index of CTC's blank among the classes of the logits.
        stop_on: The kinds of findings that end the training: any of `non_finite`, `bad_data`, `not_training`,
            `exploded`, `degraded`, `blank_collapse` and `mode_collapse`.
        folder: Where flight recordings are written. Without it there are none.

    Raises:
        StabilityError: `stop_on` contains another word.
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
                f"stop_on={stop_on}: {', '.join(sorted(unknown))} is not a kind of finding. "
                f"Choose from {', '.join(get_args(Fault))}."
            )
        self._model, self._optimizer, self._scaler, self._blank = model, optimizer, scaler, blank
        self._pending: list[dict[str, Tensor]] = []
        self._rows = History()
        self._fetched = 0  # steps whose signals are on the host: all but the pending ones
        self._validations: list[tuple[int, float, float]] = []
        self._stop_on = stop_on
        self._findings: list[Finding] = []
        self._failure: Verdict | None = None
        self._folder = None if folder is None else Path(folder)
        self._recording_error: dict[str, float | str] = {}  # evidence that says why there is no flight recording
        self._batches: deque[tuple[int, list[str | int]]] = deque(maxlen=_RECENT)
        self._outputs: dict[str, Any] = {}  # of the modules in this step, in the order in which they ran
        self._weights_before: list[Tensor] = []  # a copy of the weights until the update whose size is measured
        for name, module in model.named_modules():
            if not any(module.children()):
                module.register_forward_hook(self._output_keeper(name))
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
        """Measure the signals of one training step, after `backward()` and before the update.

        Args:
            loss: The loss of the step.
            logits: `[batch, frames, classes]`, the output of a CTC decoder.
            lengths: `[batch]`, the number of frames of each utterance. By default all frames.
            inputs: The inputs of the model, of any shape. Measured every 10th step, and when something is not finite.
            labels: `[batch, labels]`, padded. Measured when the inputs are, if `label_counts` and `logits` are given.
            label_counts: `[batch]`, the number of labels of each utterance.
            batch: The names or numbers of the utterances, for a flight recording.

        Returns:
            The verdict if the training must stop, now and at every later call; else None. If the loss or a gradient is
            not finite, that is before the update which would spoil the weights.

        Raises:
            StabilityError: The logits have no class `blank`.
        """
        self._weights_before = []  # if the last update was never made
        step = self._fetched + len(self._pending)
        check = is_check_due(step)
        if check or len(self._pending) >= _FETCH_EVERY:
            self._fetch()
        self._batches.append((step, [name if isinstance(name, int) else str(name) for name in batch]))
        with torch.no_grad():
            row = self._measure(torch.as_tensor(loss).detach(), logits, lengths)
            self._pending.append(row)
            # The only number that the host waits for on a GPU: a failure must be known before the update.
            finite = math.isfinite(sum(row[name] for name in ("loss", "grad_norm") if name in row))
            measure_batch = step % EXPENSIVE_EVERY == 0 or not finite
            if inputs is not None and measure_batch:
                row["input_max"] = input_max(inputs.detach().float().unsqueeze(0))[0]
            if labels is not None and label_counts is not None and logits is not None and measure_batch:
                frames = _frames(logits, lengths)
                row["infeasible_targets"] = infeasible_targets(labels.cpu(), label_counts.cpu(), frames.cpu()).sum()
            if not finite:
                self._fetch()
                check |= not any(finding.kind in FATAL for finding in self._findings)
        if check:
            self._run_detectors()
        self._outputs.clear()
        return self._failure

    def validated(self, per: float, loss: float = math.nan) -> None:
        """Add the result of a validation.

        Args:
            per: The phoneme, word or character error rate, as a fraction or in percent. Percent is recognised from all
                validations together, and the evidence of the verdict says so.
            loss: The validation loss, if there is one.
        """
        self._validations.append((self._fetched + len(self._pending) - 1, per, loss))

    def verdict(self) -> Verdict:
        """Return the verdict on the training so far.

        Raises:
            ValueError: There was no step yet.
        """
        self._fetch()
        if not self._fetched:
            raise ValueError("There is no verdict before the first step: call step(loss) after backward().")
        if self._failure is not None:
            return self._failure
        verdict = judge(self._rows.table(), self.validation())
        in_percent = is_in_percent([per for _, per, _ in self._validations])
        unit: dict[str, float | str] = {"error rates were given in": "percent"} if in_percent else {}
        return replace(verdict, evidence=verdict.evidence | unit | self._recording_error)

    @property
    def findings(self) -> list[Finding]:
        """The findings so far: the first one of each kind, as it was when it was made."""
        return [*self._findings]

    def signals(self) -> Table:
        """Return the signals so far: of all steps, or in a long training of the newest and a sample of the others."""
        self._fetch()
        return self._rows.table()

    def validation(self) -> Table:
        """Return all validations so far, with error rates as fractions."""
        steps = np.array([step for step, _, _ in self._validations], np.int64)
        values = np.array([rest for _, *rest in self._validations], np.float32).reshape(-1, 2)
        if is_in_percent(values[:, 0]):
            values[:, 0] /= 100
        return Table(("per", "loss"), steps, values, ~np.isnan(values))

    def _measure(self, loss: Tensor, logits: Tensor | None, lengths: Tensor | None) -> dict[str, Tensor]:
        expensive = (self._fetched + len(self._pending)) % EXPENSIVE_EVERY == 0
        signals = {"loss": loss.float(), **self._gradient_norms()}
        if logits is not None:
            if not 0 <= self._blank < logits.shape[-1]:
                raise StabilityError(
                    f"blank={self._blank} is not one of the {logits.shape[-1]} classes of the logits, whose shape is "
                    f"{tuple(logits.shape)}. Give the class, from 0, that the CTC loss uses for blank, and logits as "
                    "(batch, frames, classes)."
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
                self._weights_before = [p.detach().clone() for p in self._model.parameters()]
                signals["weight_norm"] = _norm(self._weights_before)
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
        """Yield the norm of each gradient, with the name of its parameter."""
        named = dict(self._gradients())
        return zip(named, _norms_of([*named.values()]), strict=True)

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each gradient, with the name of its parameter. A sparse one is given by its stored numbers."""
        for name, p in self._model.named_parameters():
            if p.grad is not None:
                yield name, p.grad.coalesce().values() if p.grad.is_sparse else p.grad

    def _epsilon_signals(self) -> dict[str, Tensor]:
        """The signals of `engine.measure.epsilon_signals`, from the state that PyTorch's Adam and AdamW keep."""
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
        """Yield second moment, bias correction and epsilon of each parameter that was updated at least once."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                state = self._optimizer.state.get(p, {})
                if "exp_avg_sq" in state and state["step"] > 0:
                    yield state["exp_avg_sq"], 1 - group["betas"][1] ** float(state["step"]), float(group["eps"])

    def _after_update(self, *_: Any) -> None:
        if not self._weights_before:
            return
        with torch.no_grad():
            pairs = zip(self._model.parameters(), self._weights_before, strict=True)
            row = self._pending[-1]
            row["update_ratio"] = _norm([after - before for after, before in pairs]) / row["weight_norm"]
            # Since `step` the gradients may have been clipped or unscaled.
            if gradients := [gradient for _, gradient in self._gradients()]:
                row["applied_norm"] = _norm(gradients)
        self._weights_before = []

    def _output_keeper(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[name] = output

        return keep

    def _fetch(self) -> None:
        """Move the pending signals to the host, from a GPU in one transfer."""
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
        self._weights_before = []  # the row that the next update would be added to has been moved
        table = _table(fetched, self._fetched)
        self._fetched += len(fetched)
        self._rows.append(table)

    def _run_detectors(self) -> None:
        """Run the detectors. Keep and record each finding of a kind that is new."""
        signals, validation = self._rows.table(), self.validation()
        before = len(self._findings)
        for finding in findings(signals, validation):
            if finding.kind not in {known.kind for known in self._findings}:
                self._findings.append(finding)
        new = self._findings[before:]
        if new and self._folder is not None:
            self._record(self._folder, signals)
        if self._failure is None and any(finding.kind in self._stop_on for finding in new):
            failure = stopping_verdict(signals, validation, self._stop_on)
            self._failure = failure and replace(
                failure, evidence=failure.evidence | self._non_finite_places() | self._recording_error
            )

    def _record(self, folder: Path, signals: Table) -> None:
        """Write the flight recording, `flight.json` last. A failure to write must not end the training."""
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
            self._recording_error = {}
        except OSError as error:
            self._recording_error = {"flight recording": f"{folder} cannot be written ({error.strerror or error})"}
            for name in (_ROWS, _STATE):
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)

    def _non_finite_places(self) -> dict[str, float | str]:
        """Find where the model is not finite now: the first module of the forward pass, the weights, the gradients."""
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
    """Compute the Euclidean norm of each, in one pass, as PyTorch's clip does. In half precision it would overflow."""
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
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, tuple | list):
        return True
    return all(_is_finite(part) for part in output)


def _table(rows: list[dict[str, float]], first_step: int) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)
    measured = np.array([[name in row for name in names] for row in rows], bool)
    shape = (len(rows), len(names))
    return Table(names, np.arange(first_step, first_step + len(rows)), values.reshape(shape), measured.reshape(shape))
