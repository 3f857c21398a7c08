"""Shared by the callbacks for Lightning and Hugging Face: a `Monitor` in the training loop of another package."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stability.core.errors import StabilityError
from stability.diagnosis.display import show_outcome
from stability.diagnosis.metric import metric_name
from stability.diagnosis.verdict import FATAL, Fault, Verdict
from stability.watch.given import Given, joined, read_given
from stability.watch.monitor import Monitor

_ERROR_RATE = re.compile(r"(^|[^a-z])(per|wer|cer|error_rate)$")
_VALIDATION_LOSS = re.compile(r"(^|[^a-z])(val|valid|validation|eval|dev)[^a-z](.*[^a-z])?loss$")


class LoopMonitor(Monitor):
    """A Monitor that collects a step's batches, ignores steps that fp16's scaler skips, and finds metrics by name."""

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
        self._given: list[Given] = []

    def add_batch(self, loss: Tensor, **given: Any) -> None:
        """Add one of the batches of a step: its loss, and what else `step` takes, which is checked here."""
        self._losses.append(loss.detach().clone())
        self._given = [replace(earlier, logits=None, frames=None) for earlier in self._given]  # they take memory
        self._given.append(read_given(**given, blank=self._blank))

    def must_skip_update(self, *, summed: bool = False) -> bool:
        """Measure a step after the backward pass of its last batch.

        A step that fp16's scaler will skip is not measured: a smaller scale may mend it.

        Args:
            summed: Whether the step's loss is the sum over its batches, and not the mean.

        Returns:
            Whether the training must stop before the update. Then the gradients have been dropped.
        """
        if not self._losses:  # the loop skipped the batch
            return False
        losses = torch.stack(self._losses).float()
        loss = mean_over_ranks(losses.sum() if summed else losses.mean())
        given = joined(self._given)
        self._losses, self._given = [], []
        may_overflow = self._scaler is not None and self._scaler.get_scale() > 1 and loss.isfinite()
        if may_overflow and not self._norms()[1].isfinite().all():
            return False
        # Each process has its own logits, so the processes may find different things.
        if not _on_any_rank(self._take_step(loss, given) is not None, loss.device):
            return False
        for p in self._model.parameters():
            p.grad = None  # a parameter without a gradient is not updated, not even by decay or momentum
        return True

    def add_metrics(self, metrics: Mapping[str, Any], *, rehearsal: bool = False) -> None:
        """Take the error rate and the loss from the metrics of a validation.

        Args:
            metrics: All that the validation logged.
            rehearsal: Only check that the error rate is there.

        Raises:
            StabilityError: The error rate that the user named is not among the metrics.
        """
        if self._error_rate is not None and self._error_rate not in metrics:
            raise StabilityError(
                f"The validation logged no metric {self._error_rate!r}. Log it, or set error_rate to one of these: "
                f"{', '.join(sorted(metrics)) or 'none was logged'}."
            )
        if rehearsal or not self._stepped:
            return
        name = self._error_rate or _first_matching(metrics, _ERROR_RATE)
        rate, loss = (float(metrics.get(key, math.nan)) for key in (name, _first_matching(metrics, _VALIDATION_LOSS)))
        if not math.isnan(rate):
            self._metric = metric_name(name)
        if not math.isnan(rate) or not math.isnan(loss):
            self.validated(rate, loss)

    def end(self, *, show: bool) -> Verdict | None:
        """Return the verdict at the end of the training, and print it if `show`; None if there was no step."""
        if not self._stepped:
            return None
        verdict = self.verdict()
        if show:
            show_outcome(verdict)
        return verdict

    @property
    def _stepped(self) -> bool:
        return bool(self._fetched or self._pending)


class MonitorOwner:
    """The base of both callbacks: it has the Monitor and its verdict."""

    _monitor: LoopMonitor | None = None

    @property
    def monitor(self) -> LoopMonitor:
        """The Monitor of the training that runs or ran last. ValueError if there was none yet."""
        if self._monitor is None:
            raise ValueError("There is no monitor before the training has begun: call fit or train first.")
        return self._monitor

    def verdict(self) -> Verdict:
        """Return the verdict on the training so far. ValueError before its first step."""
        return self.monitor.verdict()


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean over all processes that train together. If all judge by it, they stop at the same step."""
    if not dist.is_available() or not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any of the processes that train together."""
    if not dist.is_available() or not dist.is_initialized():
        return flag
    return bool(mean_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def loggable(verdict: Verdict) -> dict[str, float | str]:
    """Return the verdict as values for a logger, each under a name that begins with `stability/`."""
    values = {
        "outcome": verdict.outcome,
        "cause": verdict.cause,
        "confidence": verdict.confidence,
        "onset step": verdict.onset_step,
        "advice": verdict.advice or None,
        **verdict.evidence,
    }
    return {f"stability/{name}": value for name, value in values.items() if value is not None}


def _innermost(model: nn.Module) -> nn.Module:
    """The model without its wrappers: the names of its children then show where a gradient is."""
    children = [child for child in model.children() if next(child.parameters(), None) is not None]
    if len(children) != 1 or next(model.parameters(recurse=False), None) is not None:
        return model
    return _innermost(children[0])


def _first_matching(metrics: Mapping[str, Any], pattern: re.Pattern[str]) -> str:
    names = (name for name in metrics if pattern.search(name.lower()) and not name.lower().startswith("train"))
    return next(names, "")
