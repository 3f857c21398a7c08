"""The loop that trains the fourth test half: its encoders, optimizers and faults."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.task import Batch, Decoder
from experiments.detection.field.third_trainer import ThirdTrainer
from experiments.detection.field.trainer import error_rate

_DAYS = 5


class FourthTrainer(ThirdTrainer):
    """The plain loop of one recipe of the fourth test half."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__(r)
        self.slow = [p.detach().clone() for p in self.model.parameters()]

    def _make_model(self) -> Decoder:
        r = self.r
        model = super()._make_model()
        inputs = self.data.x.shape[2]
        match r.model:
            case "gated_conv":
                model.encoder = nn.Sequential(_Gated(inputs, r.units), _Gated(r.units, r.units))
            case "elman":
                model.encoder = _Elman(inputs, r.units)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d)]
        match r.fault:
            case "weight_normalised":
                for layer in [*convolutions, model.head]:
                    weight_norm(layer)
            case "slow_statistics":
                for layer in model.modules():
                    if isinstance(layer, nn.BatchNorm1d):
                        layer.momentum = r.strength
            case "small_start":
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(r.strength)
            case "relus_dead":
                assert convolutions[0].bias is not None
                nn.init.constant_(convolutions[0].bias, -r.strength)
        return model

    def _make_optimizer(self) -> torch.optim.Optimizer:
        r = self.r
        match r.optimizer:
            case "lamb":
                return Lamb(self.model.parameters(), r.lr, r.weight_decay)
            case "adam_bf16":
                return RoundedAdam(self.model.parameters(), r.lr)
        return super()._make_optimizer()

    def _rows(self) -> Tensor:
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        match r.fault:
            case "batch_grows":
                size = r.batch * 2 ** int(3 * self.step / r.steps)
                return torch.from_numpy(draw.integers(r.utterances, size=size))
            case "batches_echoed":
                draw = np.random.default_rng([r.seed, self.step // r.span])
                return torch.from_numpy(draw.integers(r.utterances, size=r.batch))
            case "one_day_recorded":
                return torch.from_numpy(_DAYS * draw.integers(r.span, size=r.batch))
        return super()._rows()

    def _heard(self, x: Tensor) -> Tensor:
        match self.r.fault:
            case "signal_fades" if self.since >= 0:
                return x * self.r.strength**self.since
            case "cast_to_integer":
                return (x * self.r.strength).trunc()
        return super()._heard(x)

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        r = self.r
        match r.fault:
            case "compressed_by_root" if self.since % 7 == 0:
                batch.x[0] = batch.x[0].sqrt()
            case "transcripts_gone":
                batch.counts[:] = 0
            case "noise_rises":
                batch.x += r.strength * self.step / r.steps * torch.randn(batch.x.shape, generator=self.noise)
            case "transcripts_cleaned" if self.step < r.span:
                wrong = rows % 100 < r.strength
                batch.labels[wrong], batch.counts[wrong] = (
                    batch.labels.roll(1, 0)[wrong],
                    batch.counts.roll(1, 0)[wrong],
                )
                batch.shorten()
            case "mixed_pairs":
                share = self._share_of_first()
                batch.x = share * batch.x + (1 - share) * batch.x.roll(1, 0)
            case "same_transcript":
                first = int(self.data.counts.argmin())
                batch.labels = self.data.labels[first].repeat(len(rows), 1)
                batch.counts = self.data.counts[first].repeat(len(rows))
            case "trimmed_too_far":
                batch.frames = (batch.frames * r.strength).long().clamp(min=2)
                batch.x = batch.x[:, : int(batch.frames.max())]
            case _:
                super()._spoil(batch, rows)

    def _share_of_first(self) -> float:
        """The weight of the first utterance of a pair at this step."""
        return float(np.random.default_rng([self.r.seed, self.step]).uniform(0.6, 1.0))

    def _change_of_rate(self) -> float:
        r, since = self.r, self.since
        match r.fault:
            case "rate_raised" if since >= 0:
                return r.strength
            case "cosine_rises_again":
                return float(0.51 + 0.49 * np.cos(2 * np.pi * self.step / r.steps))
            case "hot_start" if self.step < r.span:
                return r.strength
            case "restarts_grow" | "restarts_grow_cut":
                falling = 0.51 + 0.49 * np.cos(np.pi * (self.step % 200) / 200)
                return float(falling * r.strength ** max(0, 1 + since // 200))
            case "raised_on_plateau":
                return self.factor
        return super()._change_of_rate()

    def _prepare(self) -> None:
        r = self.r
        match r.fault:
            case "momentum_raised" if self.since == 0:
                self.optimizer.param_groups[0]["momentum"] = r.strength
            case "clip_lost" if self.since == 0:
                self.r = replace(r, clip=None)
            case "resumed_from_older" if self.since == -r.span:
                self._keep()
            case "resumed_from_older" if self.since == 0:
                self._go_back()
            case "shrunk_and_perturbed" if self.since == 0:
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.mul_(r.strength).add_(0.02 * torch.randn(p.shape, generator=self.noise))
        super()._prepare()

    def loss(self, logits: Tensor, batch: Batch, frames: Tensor, *, trains: bool = True) -> Tensor:
        """Compute the loss; that of a mixed pair has the labels of both."""
        own = super().loss(logits, batch, frames, trains=trains)
        if self.r.fault != "mixed_pairs" or not trains:
            return own
        other = Batch(batch.x, batch.frames.roll(1), batch.labels.roll(1, 0), batch.counts.roll(1))
        share = self._share_of_first()
        return share * own + (1 - share) * super().loss(logits, other, frames.roll(1))

    def _weighted(self, each: Tensor, batch: Batch) -> Tensor:
        if self.r.fault == "weight_of_unseen" and self.since >= 0 and self.since % 9 == 0:
            seen = torch.ones(len(each))
            seen[0] = 0  # how often its class was counted
            return each / seen
        return super()._weighted(each, batch)

    def spoiled(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Put the fault into a loss."""
        r = self.r
        match r.fault:
            case "penalty_begins" if self.since >= 0:
                return loss + r.strength * logits.logsumexp(-1).square().mean()
            case "loss_clamped":
                return loss.clamp(max=r.strength)
        return super().spoiled(loss, logits)

    def _logged(self, loss: Tensor) -> Tensor:
        match self.r.fault:
            case "logged_sum":
                return loss * self.r.accumulate
            case "logged_rounded":
                return torch.tensor(round(float(loss.detach()), 2))
        return super()._logged(loss)

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        super()._update(gradients, norm)
        with torch.no_grad():
            if self.r.fault == "decay_unscaled" and self.since >= 0:
                for p in self.model.parameters():
                    p.mul_(1 - self.r.strength)
            if self.r.fault == "lookahead" and (self.step + 1) % self.r.span == 0:
                for slow, p in zip(self.slow, self.model.parameters(), strict=True):
                    p.copy_(slow.lerp_(p, 0.5))

    def validate(self) -> dict[str, float]:
        """Measure the model on the validation data, as the trainer loads it, and raise the rate if it is no better."""
        self.average = self._exported()
        measured = super().validate()
        self.average = None
        if self.r.fault == "raised_on_plateau":
            self.rates.append(measured["per"])
            if len(self.rates) > 2 and self.rates[-1] >= min(self.rates[:-1]):
                self.factor, self.rates = self.factor * self.r.strength, [min(self.rates)]
        return measured

    @torch.no_grad()
    def _exported(self) -> Decoder | None:
        """The model as it is loaded for validation; None if it is the one that is trained."""
        if self.r.fault not in ("buffers_lost", "validates_quantised"):
            return None
        model = copy.deepcopy(self.model)
        if self.r.fault == "buffers_lost":
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm1d):
                    layer.reset_running_stats()
        else:
            for p in (p for p in model.parameters() if p.ndim > 1):
                step = p.abs().max() / self.r.strength
                p.copy_((p / step).round() * step)
        return model

    def _spoil_validation(self, reported: Batch) -> None:
        match self.r.fault:
            case "longer_validation":
                self._join(reported)
            case "inverted_validation":
                reported.x = -reported.x
        super()._spoil_validation(reported)

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        if self.r.fault == "hypotheses_reversed":
            return error_rate([own[::-1] for own in decoded], data)
        return super()._rate_as_reported(decoded, data)

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        if self.r.fault == "language_model_outweighs":
            logits = logits.clone()
            logits[..., 1:3] += self.r.strength
        return super()._decoded_as_reported(logits, frames)


class _Gated(nn.Module):
    """A convolution, half of which gates the other half."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, 2 * units, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to (B, T, F)."""
        return F.glu(self.convolution(x.transpose(1, 2)).transpose(1, 2), -1)


class _Elman(nn.Module):
    """A recurrent layer without gates, in both directions."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.layer = nn.RNN(inputs, units // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states (B, T, H)."""
        y: Tensor = self.layer(x)[0]
        return y


class Lamb(torch.optim.Optimizer):
    """Adam's direction, as long as the weights of its layer."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                mean = state["exp_avg"].lerp_(p.grad, 1 - first) / (1 - first ** state["step"])
                square = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - second) / (1 - second ** state["step"])
                direction = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p
                p.sub_(group["lr"] * p.norm().clamp(0.01, 10) / (direction.norm() + 1e-12) * direction)


class RoundedAdam(torch.optim.Adam):
    """Adam on weights that are bfloat16: what an update has beyond 8 bits is lost."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(p.bfloat16())
