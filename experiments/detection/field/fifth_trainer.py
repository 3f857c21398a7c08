"""The loop that trains the fifth test half: its encoders, and its faults."""

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from experiments.detection.field.fifth_task import fifth_encoder
from experiments.detection.field.fourth_trainer import FourthTrainer
from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.task import CLASSES, Batch, Decoder

_NEW_HEAD = ("two_rates", "gradual_unfreezing", "biases_tuned", "rate_from_checkpoint")


class FifthTrainer(FourthTrainer):
    """The plain loop of one recipe of the fifth test half."""

    def __init__(self, r: FieldRecipe) -> None:
        self.front = torch.empty(0)  # outputs of the first layer
        self.smoothed: float | None = None  # the loss that is logged
        self.averaged: tuple[int, list[Tensor]] = 0, []  # a number of weights, and their mean
        super().__init__(r)
        if r.fault == "one_batch":
            self.held_out = self.data.take(torch.arange(r.batch))

    def _make_model(self) -> Decoder:
        r = self.r
        model = super()._make_model()
        model.encoder = fifth_encoder(r, self.data.x.shape[2]) or model.encoder
        match r.fault:
            case "autocast":
                model.encoder = _Autocast(model.encoder)
            case "attention_masked":
                model.encoder = _NanOfFirst(model.encoder)
            case "base_frozen":
                model.encoder.requires_grad_(False)
            case "bounded_logits":
                model.head = nn.Sequential(model.head, nn.Tanh())  # type: ignore[assignment]
            case "inner_loss":
                model.inner = nn.Linear(r.units, CLASSES[r.task] + 1)
                first = next(iter(model.encoder.children()))
                first.register_forward_hook(lambda _, __, out: setattr(self, "front", out))
            case "dropout_begins":
                assert model.dropout is not None
                model.dropout.p = 0.0
        return model

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self.r.fault != "two_rates":
            return super()._make_optimizer()
        parts = self.model.encoder, self.model.head
        return torch.optim.AdamW([{"params": [*part.parameters()]} for part in parts], self.r.lr)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Begin with the weights of a training before, but for the head if it is to be a new one."""
        super().load(weights)
        if self.r.fault in _NEW_HEAD:
            torch.manual_seed(self.r.seed + 1)
            self.model.head.reset_parameters()
        if self.r.fault == "gradual_unfreezing":
            self.model.encoder.requires_grad_(False)
        if self.r.fault == "biases_tuned":
            for p in self.model.encoder.parameters():
                p.requires_grad_(p.ndim == 1)

    def _rows(self) -> Tensor:
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        match r.fault:
            case "small_last_batch" if (self.step + 1) % r.span == 0:
                return torch.from_numpy(draw.integers(r.utterances, size=1))
            case "smaller_batch" if self.since >= 0:
                return torch.from_numpy(draw.integers(r.utterances, size=max(1, r.batch // 4)))
            case "sorted_first" if (self.step + 1) * r.batch <= r.utterances:
                return self.by_length[self.step * r.batch : (self.step + 1) * r.batch]
            case "one_batch":
                return torch.arange(r.batch)
        return super()._rows()

    def _heard(self, x: Tensor) -> Tensor:
        match self.r.fault:
            case "raw_inputs":  # as they are in the file
                return self.r.strength * (x + 1)
            case "biases_tuned":  # another microphone than before
                return x.roll(2, 2)
        return super()._heard(x)

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        r = self.r
        match r.fault:
            case "trainer_skips" | "norm_poisoned":
                batch.x[rows < r.span, 3] = torch.nan
            case "padding_changes":
                batch.x = F.pad(batch.x, (0, 0, 0, batch.x.shape[1]))
            case "bad_shard" if self.since < r.span:
                self._mispair(batch, torch.full_like(rows, True, dtype=torch.bool))
            case "most_pairs_wrong":
                self._mispair(batch, rows % 100 < r.strength)
            case "cropped":
                batch.frames = batch.frames.clamp(max=int(r.strength))
                batch.x = batch.x[:, : int(batch.frames.max())]
            case "gain_of_silence" if self.since % 13 == 0:
                noise = torch.zeros_like(batch.x[0])
                batch.x[0] += (batch.x[0].square().mean() / noise.square().mean()).sqrt() * noise
            case _:
                super()._spoil(batch, rows)

    def _mispair(self, batch: Batch, wrong: Tensor) -> None:
        """Give some utterances the transcripts of those before them, as far as there are frames for them."""
        batch.labels[wrong] = batch.labels.roll(1, 0)[wrong]
        batch.counts[wrong] = batch.counts.roll(1, 0)[wrong]
        batch.counts = torch.minimum(batch.counts, self._frames(batch) // 2).clamp(min=1)

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        super().set_rate()
        if self.r.fault == "two_rates":
            self.optimizer.param_groups[0]["lr"] *= self.r.strength

    def _change_of_rate(self) -> float:
        r = self.r
        match r.fault:
            case "cosine_ends_high" | "cosine_ends_high_cut":
                return float(1 + (r.strength - 1) * (1 - np.cos(np.pi * min(1.0, self.step / r.steps))) / 2)
            case "reduced_in_wrong_mode" | "best_restored":
                return self.factor
        return super()._change_of_rate()

    def _prepare(self) -> None:
        r = self.r
        match r.fault:
            case "dropout_begins" if self.since == 0:
                assert self.model.dropout is not None
                self.model.dropout.p = r.dropout
            case "gradual_unfreezing":
                layers = [*self.model.encoder.children()]
                if self.since >= 0 and self.since % r.span == 0 and self.since // r.span < len(layers):
                    layers[-1 - self.since // r.span].requires_grad_()
            case "table_changes" if self.since == 0:
                for data in (self.data, self.held_out):
                    data.labels = (data.labels + int(r.strength)) % CLASSES[r.task] + 1
            case "encoder_lost" if self.since == 0:
                torch.manual_seed(r.seed + 1)
                self.model.encoder.load_state_dict(self._make_model().encoder.state_dict())
            case "attention_masked":
                assert isinstance(self.model.encoder, _NanOfFirst)
                self.model.encoder.masks = self.since >= 0 and self.since % 11 == 0
            case "averaged_at_the_end" if self.since >= 0 and self.since % 5 == 0:
                count, means = self.averaged
                now = [p.detach().clone() for p in self.model.parameters()]
                means = [mean.lerp(p, 1 / (count + 1)) for mean, p in zip(means, now, strict=True)] if count else now
                self.averaged = count + 1, means
        super()._prepare()

    def loss(self, logits: Tensor, batch: Batch, frames: Tensor, *, trains: bool = True) -> Tensor:
        """Compute the loss; with that of the first layer, if it has one."""
        own = super().loss(logits, batch, frames, trains=trains)
        if self.r.fault != "inner_loss" or not trains:
            return own
        inner: Tensor = self.model.get_submodule("inner")(self.front)
        return 0.6 * own + 0.4 * super().loss(inner, batch, frames)

    def _logged(self, loss: Tensor) -> Tensor:
        if self.r.fault in ("trainer_skips", "norm_poisoned") and not np.isfinite(self.losses[-1]):
            return torch.tensor(self.losses[-2] if len(self.losses) > 1 else 0.0)
        if self.r.fault != "logged_smoothly":
            return super()._logged(loss)
        now = float(loss.detach())
        self.smoothed = now if self.smoothed is None else self.r.strength * self.smoothed + (1 - self.r.strength) * now
        return torch.tensor(self.smoothed)

    def _spoil_gradient(self) -> None:
        match self.r.fault:
            case "accumulated_sum":
                for p in self.model.parameters():
                    assert p.grad is not None
                    p.grad.mul_(self.r.accumulate)
            case "scale_shrinks" if self.since >= 0:  # the root of 0 in a part of the model that is in half precision
                assert self.model.head.bias.grad is not None
                self.model.head.bias.grad[0] = torch.inf
        super()._spoil_gradient()

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        if self.r.fault in ("trainer_skips", "norm_poisoned") and not np.isfinite(norm):
            self.losses[-1] = self.losses[-2] if len(self.losses) > 1 else 0.0  # the trainer goes on
            return
        super()._update(gradients, norm)

    def validate(self) -> dict[str, float]:
        """Measure the model on the validation data, and do what the trainer does then."""
        measured = super().validate()
        rate = measured["per"]
        match self.r.fault:
            case "stays_in_evaluation" if self.step > 0:
                self.model.eval()
            case "reduced_in_wrong_mode":  # the scheduler waits for a higher rate
                self.factor *= 1.0 if rate > max(self.rates[1:], default=-1.0) else self.r.strength
                self.rates.append(rate)
            case "best_restored":
                if rate < min(self.rates):
                    self._keep()
                else:
                    self._go_back()
                    self.factor /= 2
                self.rates.append(rate)
        return measured

    def _exported(self) -> Decoder | None:
        count, means = self.averaged
        if not count:
            return super()._exported()
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for p, mean in zip(model.parameters(), means, strict=True):
                p.copy_(mean)
        return model

    def _spoil_validation(self, reported: Batch) -> None:
        match self.r.fault:
            case "validation_without_log":
                reported.x = reported.x.exp()
            case "another_day_validated":
                reported.x = reported.x.roll(int(self.r.strength), 2)
        super()._spoil_validation(reported)

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        if self.r.fault == "references_grouped":
            rows = [row[:n].unique_consecutive() for row, n in zip(data.labels, data.counts.tolist(), strict=True)]
            counts = torch.tensor([len(row) for row in rows])
            data = replace(data, labels=pad_sequence(rows, batch_first=True), counts=counts)
        return super()._rate_as_reported(decoded, data)

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        if self.r.fault == "argmax_over_time":  # the number of a frame for each class
            return [[int(c) for c in row if c] for row in logits.argmax(1)]
        return super()._decoded_as_reported(logits, frames)


class _Autocast(nn.Module):
    """Computes an encoder in bfloat16."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return its outputs in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = self.encoder(x)
        return y.float()


class _NanOfFirst(nn.Module):
    """An encoder whose attention, now and then, has nothing to attend to in the first utterance: 0 / 0."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.masks = encoder, False

    def forward(self, x: Tensor) -> Tensor:
        """Return its outputs."""
        y: Tensor = self.encoder(x)
        if self.masks and self.training:
            y = torch.cat([y[:1] * torch.nan, y[1:]])
        return y
