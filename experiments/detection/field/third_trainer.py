"""The loop that trains the third test half: what is special about its trainings, and its faults."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.task import CLASSES, Batch
from experiments.detection.field.third_task import SPACE
from experiments.detection.field.trainer import Trainer, error_rate

_DAYS = 5
_LOSS_SCALE = 2.0**16
_PADDED_TO = 32  # labels, of a metric that counts the padding


class ThirdTrainer(Trainer):
    """The plain loop of one recipe of the third test half."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__(r)
        self.data, self.held_out = self._retold(self.data), self._retold(self.held_out)
        if r.fault == "one_row_off":
            self.data.labels, self.data.counts = self.data.labels.roll(1, 0), self.data.counts.roll(1, 0)
            self.data.shorten()
        self._set_first_weights()
        if r.fault == "scale_starts_too_high":
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**r.strength, growth_interval=400)
        self.factor = 1.0  # of the rate
        self.rates = [np.inf]  # error rates since the rate was last reduced
        self.pruned: list[tuple[nn.Parameter, Tensor]] = []

    def _retold(self, data: Batch) -> Batch:
        """Change the transcripts, of training and of validation."""
        match self.r.fault:
            case "characters":  # each label is spelled with three
                each = [(data.labels + k - 1) % CLASSES[self.r.task] + 1 for k in (0, 7, 11)]
                return Batch(data.x, data.frames, torch.stack(each, 2).flatten(1), 3 * data.counts)
            case "right_to_left":
                rows = [row[:n].flip(0) for row, n in zip(data.labels, data.counts.tolist(), strict=True)]
                return Batch(data.x, data.frames, pad_sequence(rows, batch_first=True), data.counts)
        return Batch(data.x, data.frames, data.labels, data.counts)

    @torch.no_grad()
    def _set_first_weights(self) -> None:
        match self.r.fault:
            case "zero_head":
                for p in self.model.head.parameters():
                    p.zero_()
            case "zero_start":
                for p in self.model.parameters():
                    p.zero_()
            case "blank_first":
                self.model.head.bias[0] += self.r.strength
            case "fixed_front":
                next(iter(self.model.encoder.children())).requires_grad_(False)

    def _rows(self) -> Tensor:
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        match r.fault:
            case "one_day_per_batch":
                day = draw.integers(_DAYS)
                return torch.from_numpy(draw.integers(r.utterances // _DAYS, size=r.batch) * _DAYS + day)
            case "few_sentences":
                return torch.from_numpy(draw.integers(r.span, size=r.batch))
        return super()._rows()

    def _heard(self, x: Tensor) -> Tensor:
        match self.r.fault:
            case "array_moved" if self.since >= 0:
                return x.roll(int(self.r.strength), 2)
            case "features_near_zero":
                return x * self.r.strength
        return super()._heard(x)

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        r = self.r
        match r.fault:
            case "speed_changed":
                speed = 0.85 + 0.3 * float(torch.rand((), generator=self.noise))
                batch.x = F.interpolate(batch.x.transpose(1, 2), scale_factor=speed, mode="linear").transpose(1, 2)
                batch.frames = (batch.frames * speed).long().clamp(max=batch.x.shape[1])
            case "utterances_joined":
                self._join(batch)
            case "cut_to_one_frame" if self.since % 7 == 0:
                batch.frames[0] = 2
            case "normaliser_poisoned":
                batch.x[:] = torch.nan
            case "space_is_blank":
                batch.labels[batch.labels == SPACE] = 0
            case _:
                super()._spoil(batch, rows)

    def _join(self, batch: Batch) -> None:
        """Let each utterance be followed by the next one."""
        size = len(batch.x)
        pairs = [(i, (i + 1) % size) for i in range(size)]
        x = [torch.cat([batch.x[i, : int(batch.frames[i])] for i in pair]) for pair in pairs]
        labels = [torch.cat([batch.labels[i, : int(batch.counts[i])] for i in pair]) for pair in pairs]
        batch.x, batch.labels = pad_sequence(x, batch_first=True), pad_sequence(labels, batch_first=True)
        batch.frames, batch.counts = (torch.tensor([len(one) for one in many]) for many in (x, labels))

    def _frames(self, batch: Batch) -> Tensor:
        frames = super()._frames(batch)
        match self.r.fault:
            case "padding_heard":
                return torch.full_like(frames, -(-batch.x.shape[1] // self.model.subsampling))
            case "lengths_divided_twice":
                return -(-frames // int(self.r.strength))
        return frames

    def _change_of_rate(self) -> float:
        r = self.r
        done = min(1.0, self.step / r.steps)
        match r.fault:
            case "stairs_up":
                return float(r.strength ** sum(done >= at for at in (0.5, 0.7, 0.85)))
            case "stairs_up_cut" if self.since >= 0:
                return r.strength
            case "rate_below_zero":
                return 1 - self.step / r.onset
            case "warmup_never_ends":
                return max(1.0, (self.step + 1) / r.warmup)
            case "rate_ends":
                return max(0.0, 1 - self.step / r.span)
            case "halved_on_plateau":
                return self.factor
        return super()._change_of_rate()

    def _prepare(self) -> None:
        r = self.r
        match r.fault:
            case "dropout_ends" if self.since == 0:
                assert self.model.dropout is not None
                self.model.dropout.p = 0.0
            case "state_reset" if self.step % r.span == 0:
                self.optimizer.state.clear()
            case "second_moments_lost" if self.since == 0:
                for state in self.optimizer.state.values():
                    state["exp_avg_sq"].zero_()
            case "temperature_falls" if self.since >= 0:
                self.model.scale = (1 + r.strength) ** self.since
            case "pruned_a_little" | "pruned_too_far" if self.since == 0:
                for p in (p for p in self.model.parameters() if p.ndim > 1):
                    self.pruned.append((p, p.detach().abs() >= p.detach().abs().quantile(r.strength)))
        super()._prepare()

    def _weighted(self, each: Tensor, batch: Batch) -> Tensor:
        match self.r.fault:
            case "focal":
                return each * (1 - (-each / batch.counts).exp()) ** self.r.strength
            case "loss_divided":
                return each * self.r.strength
        return each

    def spoiled(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Put the fault into a loss."""
        if self.r.fault == "empty_mask" and self.since >= 0 and self.since % 11 == 0:
            mask = torch.zeros(logits.shape[1])  # no frame was drawn
            return loss + 0.1 * (logits[0].square().mean(-1) * mask).sum() / mask.sum()
        return super().spoiled(loss, logits)

    def _spoil_gradient(self) -> None:
        r = self.r
        held = [p.grad for p in self.model.parameters() if p.grad is not None]
        match r.fault:
            case "never_unscaled":
                for gradient in held:
                    gradient.mul_(_LOSS_SCALE)
            case "gradient_noise":
                for gradient in held:
                    gradient.add_(r.strength * torch.randn(gradient.shape, generator=self.noise))
            case "normaliser_poisoned" if self.since >= 0:  # the trainer goes on without such batches
                for gradient in held:
                    gradient.zero_()
        super()._spoil_gradient()

    def _logged(self, loss: Tensor) -> Tensor:
        if self.r.fault == "running_mean":
            return torch.tensor(self.losses[self.step - self.step % self.r.span :]).mean()
        if self.r.fault == "normaliser_poisoned" and self.since >= 0:
            return torch.tensor(0.0)
        return super()._logged(loss)

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        if self.r.fault == "never_accumulated":
            return
        super()._update(gradients, norm)
        with torch.no_grad():
            for p, kept in self.pruned:
                p.mul_(kept)

    def validate(self) -> dict[str, float]:
        """Measure the model on the validation data, and reduce the rate if it has not become better."""
        measured = super().validate()
        if self.r.fault == "halved_on_plateau":
            self.rates.append(measured["per"])
            if len(self.rates) > 3 and min(self.rates[-2:]) >= min(self.rates[:-2]):
                self.factor, self.rates = self.factor / 2, [min(self.rates)]
        return measured

    def _spoil_validation(self, reported: Batch) -> None:
        draw = torch.Generator().manual_seed(7)
        match self.r.fault:
            case "few_validated":
                few = int(self.r.strength)
                reported.x, reported.frames = reported.x[:few], reported.frames[:few]
                reported.labels, reported.counts = reported.labels[:few], reported.counts[:few]
            case "noisier_validation":
                reported.x = reported.x + self.r.strength * torch.randn(reported.x.shape, generator=draw)
            case "validation_resampled":  # at half the rate: twice as fast, and an octave higher
                _, t, f = reported.x.shape
                small = F.interpolate(reported.x.unsqueeze(1), size=(t // 2, 2 * f), mode="bilinear")[:, 0, :, :f]
                reported.x = F.pad(small, (0, 0, 0, t - t // 2))
            case "space_is_blank":
                reported.labels = torch.where(reported.labels == SPACE, 0, reported.labels)

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        right = [row[:n] for row, n in zip(data.labels.tolist(), data.counts.tolist(), strict=True)]
        match self.r.fault:
            case "whole_lines":
                return float(np.mean([own != other for own, other in zip(decoded, right, strict=True)]))
            case "accuracy_as_error":
                return max(0.0, 1 - error_rate(decoded, data))
            case "hypotheses_in_other_order":
                return error_rate(decoded[1:] + decoded[:1], data)
            case "padding_in_metric":
                missing = _PADDED_TO * len(right) - int(data.counts.sum())
                return error_rate(decoded, data) + missing / int(data.counts.sum())
        return super()._rate_as_reported(decoded, data)
