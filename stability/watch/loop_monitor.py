"""What the callbacks for Lightning and for Hugging Face's Trainer share: a `Monitor` in another package's loop."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stability.core.errors import StabilityError
from stability.diagnosis.display import show_outcome
from stability.diagnosis.verdict import FATAL, Fault, Verdict
from stability.watch.monitor import Monitor

_ERROR_RATE = re.compile(r"(^|[^a-z])(per|wer|cer|error_rate)$")
_VALIDATION_LOSS = re.compile(r"(^|[^a-z])(val|valid|validation|eval|dev)[^a-z](.*[^a-z])?loss$")


class LoopMonitor(Monitor):
    """A Monitor that gathers a step's batches, and knows fp16's scaler and metrics by their names."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        blank: int,
        error_rate: str | None,
        scaler: torch.amp.GradScaler | None,
        stop_on: Collection[Fault] = FATAL,
    ) -> None:
        super().__init__(_innermost(model), optimizer, blank=blank, stop_on=stop_on)
        self._error_rate, self._scaler = error_rate, scaler
        self._losses: list[Tensor] = []
        self._output: tuple[Tensor | None, Tensor | None] = None, None

    def took(self, loss: Tensor, logits: Tensor | None = None, lengths: Tensor | None = None) -> None:
        """Take one of a step's batches: its loss, and its logits and lengths as in `step`."""
        self._losses.append(loss.detach().clone())
        self._output = None if logits is None else logits.detach(), lengths

    def cannot_step(self, *, summed: bool = False) -> bool:
        """Take a step whose batches went backward; whether it must not be made, because the training is to be stopped.

        The step's loss is the mean over its batches, or their sum. Gradients that are not to be stepped are dropped.
        A step that fp16's scaler skips, since a smaller scale may mend it, is none.
        """
        if not self._losses:  # the batch was skipped
            return False
        losses = torch.stack(self._losses).float()
        loss = mean_over_ranks(losses.sum() if summed else losses.mean())
        logits, lengths = self._output
        self._losses, self._output = [], (None, None)
        if self._scaler is not None and self._scaler.get_scale() > 1 and loss.isfinite():
            norms = [norm for _, norm in self._norms()]
            if not torch.stack(norms).isfinite().all():
                return False
        # Logits are each process's own, and so may be what is found in them.
        if not _on_any_rank(self.step(loss, logits, lengths) is not None, loss.device):
            return False
        for p in self._model.parameters():
            p.grad = None  # what has no gradient is not stepped: no decay, no momentum
        return True

    def logged(self, metrics: Mapping[str, Any], *, rehearsal: bool = False) -> None:
        """Take the error rate and the loss from a validation's metrics; from a rehearsal's nothing.

        Metrics without the error rate that was asked for raise `StabilityError`.
        """
        if self._error_rate is not None and self._error_rate not in metrics:
            raise StabilityError(
                f"The validation logged no metric {self._error_rate!r}. Log it, or let error_rate name another: "
                f"{', '.join(sorted(metrics)) or 'there is none'}."
            )
        if rehearsal or not self._stepped:
            return
        rate = _first(metrics, _ERROR_RATE) if self._error_rate is None else float(metrics[self._error_rate])
        loss = _first(metrics, _VALIDATION_LOSS)
        if not math.isnan(rate) or not math.isnan(loss):
            self.validated(rate, loss)

    def end(self, *, show: bool) -> Verdict | None:
        """The verdict at the training's end, printed if so asked; None if there was no step."""
        if not self._stepped:
            return None
        verdict = self.verdict()
        if show:
            show_outcome(verdict)
        return verdict

    @property
    def _stepped(self) -> bool:
        return bool(self._fetched or self._pending)


class Watching:
    """What both callbacks offer."""

    _monitor: LoopMonitor | None = None

    @property
    def monitor(self) -> LoopMonitor:
        """The Monitor of the training that runs, or ran last. Raises ValueError before the first."""
        if self._monitor is None:
            raise ValueError("There is no monitor before the training has begun.")
        return self._monitor

    def verdict(self) -> Verdict:
        """What became of the training so far. Raises ValueError before the first step."""
        return self.monitor.verdict()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes that train together: judging by it, they all stop at the same step."""
    if not dist.is_available() or not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any of the processes that train together says so."""
    if not dist.is_available() or not dist.is_initialized():
        return flag
    return bool(mean_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def loggable(verdict: Verdict) -> dict[str, float | str]:
    """The verdict under names of its own in a log."""
    said = {"outcome": verdict.outcome, "cause": verdict.cause, "onset step": verdict.onset_step}
    told = {**said, "advice": verdict.advice or None, **verdict.evidence}
    return {f"stability/{name}": value for name, value in told.items() if value is not None}


def _innermost(model: nn.Module) -> nn.Module:
    """The model below whatever only wraps another: its children's names tell where a gradient is."""
    children = [child for child in model.children() if next(child.parameters(), None) is not None]
    if len(children) != 1 or next(model.parameters(recurse=False), None) is not None:
        return model
    return _innermost(children[0])


def _first(metrics: Mapping[str, Any], pattern: re.Pattern[str]) -> float:
    names = (name for name in metrics if pattern.search(name.lower()) and not name.lower().startswith("train"))
    return float(metrics.get(next(names, ""), math.nan))
