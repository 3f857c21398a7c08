"""The loop that trains every recipe of the field corpus, and puts the faults into it."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.task import CLASSES, Batch, Decoder, make_optimizer, utterances
from stability import Monitor
from stability.engine.loss import edit_distance, greedy_decode

_VALIDATION = 64  # utterances
_HALF_MAX = 65504.0
_RANGE_START = 1e-6  # the first rate of a range test


class Trainer:
    """The plain loop of one recipe."""

    def __init__(self, r: FieldRecipe) -> None:
        self.r, self.step = r, 0
        self.data = utterances(r.task, r.utterances, 10 + r.seed % 50)
        self.by_length = self.data.frames.argsort(stable=True)
        self.held_out = utterances(r.task, _VALIDATION, 5)
        torch.manual_seed(r.seed)
        self.model = self._make_model()
        if r.fault == "large_start":
            with torch.no_grad():
                self.model.head.weight.mul_(r.strength)
        self.optimizer = self._make_optimizer()
        self.scaler = None
        if r.half_gradients:
            # The scale grows after so many steps, until the gradient overflows. If it is stuck, it is never reduced.
            stuck = r.fault == "scale_stuck"
            self.scaler = torch.amp.GradScaler(
                "cpu",
                init_scale=2.0**40 if stuck else 2.0**14,
                backoff_factor=1 - 1e-9 if stuck else 0.5,
                growth_interval=int(r.strength),
            )
        if r.fault == "frozen":
            self.model.requires_grad_(False)
        self.average = copy.deepcopy(self.model) if r.average else None
        self.losses: list[float] = []  # as they are, whatever the trainer logs
        self.skipped = 0
        self.noise = torch.Generator().manual_seed(r.seed)
        self.own_noise = r.noise * torch.randn(self.data.x.shape, generator=self.noise)
        self.kept: tuple[Any, Any] | None = None  # a checkpoint
        self.range_over = False

    def _make_model(self) -> Decoder:
        return Decoder(self.r)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.r, self.model)

    @property
    def since(self) -> int:
        """The number of steps since the fault began; negative before."""
        return self.step - self.r.onset

    def load(self, weights: dict[str, Tensor]) -> None:
        """Begin with the weights of a training before, but for the head if layers are frozen."""
        self.model.load_state_dict(weights)
        if self.r.fault in ("lower_layers_frozen", "unfrozen_later", "unfrozen_too_fast"):
            torch.manual_seed(self.r.seed + 1)
            self.model.head.reset_parameters()
            self.model.encoder.requires_grad_(False)

    def _rows(self) -> Tensor:
        """Choose the utterances of the next batch."""
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        match r.fault:
            case "curriculum" if self.since < 0:  # a quarter of the utterances, then a half, the shortest first
                among = r.utterances // (4 if self.step < r.onset // 2 else 2)
                return self.by_length[torch.from_numpy(draw.integers(among, size=r.batch))]
            case "buckets":  # each epoch goes from the shortest to the longest
                first = self.step * r.batch % (r.utterances // r.batch * r.batch)
                return self.by_length[first : first + r.batch]
            case "frames_per_batch":
                place = int(draw.integers(r.utterances - 16))
                most = max(2, min(16, int(r.strength / self.data.frames[self.by_length[place]])))
                return self.by_length[place : place + most]
            case "stuck_loader" if self.since >= 0:
                draw = np.random.default_rng([r.seed, r.onset])
            case "augmentation_ends" if self.since >= 0:
                return torch.from_numpy(draw.integers(r.span, size=r.batch))
        return torch.from_numpy(draw.integers(r.utterances, size=r.batch))

    def draw(self) -> tuple[Batch, Tensor]:
        """Draw a batch, with its noise and the fault in it.

        Returns:
            The batch, and the numbers of its utterances.
        """
        r = self.r
        rows = self._rows()
        batch = self.data.take(rows)
        fixed = r.fault in ("stuck_loader", "augmentation_ends") and self.since >= 0
        if r.fresh_noise and not fixed:
            batch.x = batch.x + r.noise * torch.randn(batch.x.shape, generator=self.noise)
        else:
            batch.x = batch.x + self.own_noise[rows, : batch.x.shape[1]]
        batch.labels = batch.labels.clone()
        batch.x = self._heard(batch.x)
        if self.since >= 0:
            self._spoil(batch, rows)
        return batch, rows

    def _heard(self, x: Tensor) -> Tensor:
        """Change the features as the fault does, in training and in validation."""
        match self.r.fault:
            case "channels_lost" if self.since >= 0:
                x = x.clone()
                x[..., int(self.r.strength) :] = 0
            case "dead_input":
                x = torch.zeros_like(x)
            case "epsilon_underflows":  # a filter that hears nothing: its weights have a gradient of 0
                x = x.clone()
                x[..., -1] = 0
            case "features_reshaped":  # where they should be transposed
                b, t, f = x.shape
                x = x.reshape(b, f, t).transpose(1, 2)
        return x

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        """Put the fault into a batch, if it is one of the training data."""
        r = self.r
        match r.fault:
            case "nan_input" if self.since % 7 == 0:
                batch.x[0, 2] = torch.nan
            case "inf_input" if self.since % 7 == 0:
                batch.x[0, 2] = -torch.inf
            case "repeats" if self.since % 7 == 0:
                batch.counts[0] = batch.frames[0]
                batch.labels = F.pad(batch.labels, (0, max(0, int(batch.frames[0]) - batch.labels.shape[1])))
                batch.labels[0] = 3
            case "silent_batches" if self.since < r.span:
                batch.x[:] = 0
            case "augmented":
                batch.x += (r.strength - 1) * torch.randn(batch.x.shape, generator=self.noise)
            case "other_room":
                batch.x = batch.x.flip(2)
            case "infeasible" if self.since % 7 == 0:
                self._make_infeasible(batch, 0)
            case "empty_target" if self.since % 7 == 0:
                batch.counts[0] = 0
            case "shuffled_labels":
                batch.labels, batch.counts = batch.labels.roll(1, 0), batch.counts.roll(1, 0)
                batch.shorten()
            case "sorted_inputs":
                order = batch.frames.argsort(descending=True, stable=True)
                batch.x, batch.frames = batch.x[order], batch.frames[order]
                batch.shorten()
            case "labels_unknown":
                batch.labels[:] = 9
                batch.shorten()
            case "blank_in_labels":
                batch.labels -= 1
            case _:
                self._spoil_as_others_report(batch, rows)

    def _spoil_as_others_report(self, batch: Batch, rows: Tensor) -> None:
        """Put a fault of the second test half into a batch."""
        r = self.r
        match r.fault:
            case "bad_batch_skipped" if self.since % r.span == 0:
                self._make_bad(batch)
            case "masked":  # frames and channels, as SpecAugment does
                batch.x[torch.rand(batch.x.shape[:2], generator=self.noise) < r.strength] = 0
                batch.x[..., torch.randperm(batch.x.shape[2], generator=self.noise)[: r.span]] = 0
            case "corpus_extended":  # every other utterance is from another microphone
                other = rows % 2 == 1
                batch.x[other] = 1.4 * batch.x[other].roll(int(r.strength), 2)
            case "wrong_transcripts" | "outliers":
                for row in np.flatnonzero(rows % 100 < r.strength).tolist():
                    another = self.data.take((rows[row : row + 1] * 7 + 3) % r.utterances)
                    frames = int(batch.frames[row]) // self.model.subsampling
                    count = min(int(another.counts[0]), batch.labels.shape[1], (frames + 1) // 2)
                    batch.labels[row, :count] = another.labels[0, :count]
                    batch.counts[row] = count
                    if r.fault == "outliers":
                        batch.x[row] *= 10
            case "few_infeasible":
                for row in np.flatnonzero(rows % 100 < r.strength).tolist():
                    self._make_infeasible(batch, row)
            case "silences" | "transcripts_lost":
                empty = rows % 100 < r.strength
                batch.counts[empty] = 0
                if r.fault == "silences":
                    batch.x[empty] = r.noise * torch.randn(batch.x[empty].shape, generator=self.noise)
            case "truncated_transcripts":
                batch.counts = batch.counts.clamp(max=int(r.strength))
            case "most_unknown":
                batch.labels[batch.labels > r.strength] = 1
                batch.shorten()
            case "labels_drift":
                table = torch.from_numpy(_permuted(CLASSES[r.task], r.seed))
                batch.labels = table[batch.labels]
            case "padding_counted":
                batch.counts[:] = batch.labels.shape[1]
            case "loud_utterance" if self.since == 0:
                batch.x[0] *= r.strength
            case "silent_utterance_normalised" if self.since % 9 == 0:
                silent = torch.zeros_like(batch.x[0])
                batch.x[0] = (silent - silent.mean()) / silent.std()

    def _make_bad(self, batch: Batch) -> None:
        match int(self.r.strength):
            case 0:
                batch.x[0, 2] = torch.nan
            case 1:
                batch.x[-1] = torch.inf
            case 2:
                self._make_infeasible(batch, 0)
            case _:
                batch.counts[0] = 0

    @staticmethod
    def _make_infeasible(batch: Batch, row: int) -> None:
        """Give an utterance more labels than frames."""
        count = int(batch.frames[row]) + 2
        batch.labels = F.pad(batch.labels, (0, max(0, count - batch.labels.shape[1])), value=1)
        batch.labels[row, :count] = torch.arange(count) % 8 + 1
        batch.counts[row] = count

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        r, since, groups = self.r, self.since, self.optimizer.param_groups
        rate = r.lr * min(1.0, (self.step + 1) / r.warmup)
        done = min(1.0, self.step / r.steps)
        match r.schedule:
            case "cosine":
                rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done))
            case "linear":
                rate *= 1 - 0.98 * done
            case "restarts":
                rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * (self.step % 500) / 500))
            case "cyclic":
                rate *= 0.3 + 0.7 * abs(self.step % 500 - 250) / 250
            case "one_cycle":
                rate *= 0.04 + 0.96 * (done / 0.4 if done < 0.4 else 0.5 * (1 + np.cos(np.pi * (done - 0.4) / 0.6)))
            case "stairs":
                rate *= 0.15 ** sum(done >= at for at in (0.5, 0.7, 0.85))
            case "inverse_root":
                rate *= (r.warmup / max(r.warmup, self.step + 1)) ** 0.5
            case "late":
                rate *= min(1.0, (self.step + 1) / r.warmup) ** 3
            case "poly":
                rate *= (1 - 0.99 * done) ** 2
            case "eden":
                rate *= ((self.step / 400) ** 2 + 1) ** -0.25
            case "three_stages":
                rate *= 1.0 if done < 0.6 else float(0.02 ** ((done - 0.6) / 0.4))
            case "vanishing":
                rate *= float(1e-6**done)
            case "exponential":
                rate *= float(0.02**done)
            case "triangles":  # each is half as high as the one before
                rate *= 0.5 ** (self.step // 200) * (1 - 0.95 * abs(self.step % 200 - 100) / 100)
            case "stable_then_decay":
                rate *= min(1.0, 5 * (1 - 0.99 * done))
            case "epochs":
                rate *= float(0.9 ** (self.step * r.batch // r.utterances))
        rate *= self._change_of_rate()
        match r.fault:
            case "range_test_stopped" | "range_test_goes_on" if not self.range_over:
                rate = _RANGE_START * (r.strength / _RANGE_START) ** min(1.0, self.step / r.span)
            case "integer_warmup":
                rate = r.lr * min(1, self.step // r.warmup)
            case "warmup_again":
                rate = r.lr * (self.step % r.span + 1) / r.warmup
            case "decay" if since >= 0:
                groups[0]["weight_decay"] = r.strength
            case "decay_scheduled":
                groups[0]["weight_decay"] = r.strength * done
            case "decay_of_wrong_sign" if since >= 0:
                groups[0]["weight_decay"] = -r.strength
        for group in groups:
            group["lr"] = rate
        if r.fault == "unfrozen_too_fast":
            groups[1]["lr"] = rate * r.strength

    def _change_of_rate(self) -> float:
        """By how much the fault multiplies the rate."""
        r, since = self.r, self.since
        if since < 0:
            return 1.0
        match r.fault:
            case "rate_jump" | "rate_jump_cut":
                return r.strength
            case "rate_blip" | "rolled_back" if since < r.span:
                return r.strength
            case "rate_grows":
                return min(1e30, (1 + r.strength) ** min(since, 2000))
            case "rate_ramp":
                return float(r.strength ** min(1.0, since / r.span))
            case "restart":
                return min(1.0, (since + 1) / 150) if r.strength == 0 else r.strength
            case "rate_falls":
                return float(r.strength**since)
        return 1.0

    def _prepare(self) -> None:
        """Change model and optimizer as the recipe does before this step."""
        r = self.r
        match r.fault:
            case "restart" if self.since == 0:
                self.optimizer.state.clear()
            case "head_replaced" if self.since == 0:
                torch.manual_seed(r.seed + 1)
                self.model.head.reset_parameters()
                for p in self.model.head.parameters():
                    self.optimizer.state.pop(p, None)
            case "unfrozen_later" | "unfrozen_too_fast" if self.since == 0:
                self.model.encoder.requires_grad_()
            case "epsilon_underflows" if self.since == 0:  # in half precision it is 0
                self.optimizer.param_groups[0]["eps"] = 0.0
            case "rolled_back" if self.since == -100:
                self._keep()
            case "rolled_back" if self.since == r.span + 20:
                self._go_back()
            case "range_test_stopped" if self.step == 0:
                self._keep()
            case "range_test_stopped" if not self.range_over:
                grows = self.step > 30 and not np.median(self.losses[-5:]) < 1.5 * min(self.losses)
                if grows or self.step == r.span:
                    self.range_over = True
                    self._go_back()

    def _keep(self) -> None:
        self.kept = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def _go_back(self) -> None:
        assert self.kept is not None
        weights, state = copy.deepcopy(self.kept)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)

    def train_step(self, monitor: Monitor | None = None) -> None:
        """Train one step."""
        r = self.r
        self._prepare()
        for part in range(r.accumulate):
            batch, rows = self.draw()
            if not part:
                self.set_rate()
            logits = self.model(batch.x)
            if r.fault == "frames_mixed":
                b, t, c = logits.shape
                logits = logits.reshape(t, b, c).transpose(0, 1)
            if r.half_logits:
                logits = logits.masked_fill(logits.detach().abs() > _HALF_MAX, torch.inf)
            frames = self._frames(batch)
            loss = self.spoiled(self.loss(logits, batch, frames), logits) / r.accumulate
            if not part and (r.fault not in ("not_zeroed", "never_accumulated") or self.since < 0):
                self.optimizer.zero_grad()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        loss = loss * r.accumulate
        self._spoil_gradient()
        if self.scaler is not None:
            if r.fault == "clip_before_unscale":
                nn.utils.clip_grad_norm_(self.model.parameters(), r.clip or 1.0)
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        # A step that the scaler skips is no failure.
        self.losses.append(float(loss.detach()) if np.isfinite(norm) or self.scaler is not None else np.nan)
        bad = not np.isfinite(norm)
        if monitor is not None:
            lengths = batch.frames if r.fault == "lengths_before_subsampling" else frames
            given = {"inputs": batch.x, "labels": batch.labels, "label_counts": batch.counts}
            bad = monitor.step(self._logged(loss), logits, lengths, batch=rows.tolist(), **given) is not None
        if not (r.skips and bad):
            self._update(gradients, norm)
        elif np.isnan(self.losses[-1]):
            self.losses[-1] = self.losses[-2] if len(self.losses) > 1 else 0.0  # no failure either
        self.step += 1

    def _frames(self, batch: Batch) -> Tensor:
        """The frames of each utterance that the loss and the decoder read."""
        return -(-batch.frames // self.model.subsampling)

    def _logged(self, loss: Tensor) -> Tensor:
        """The loss that the trainer logs."""
        masked = self.r.fault in ("masked_nan", "masked_explosion") and not np.isfinite(float(loss.detach()))
        return torch.tensor(0.0) if masked else loss

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        """Change the weights by their gradients."""
        r = self.r
        if r.clip is not None and r.fault != "clip_before_unscale" and gradients:
            nn.utils.clip_grad_norm_(self.model.parameters(), r.clip)
        if r.fault == "zeroed_too_late":
            self.optimizer.zero_grad()
        if self.scaler is None:
            if r.fault != "no_step":
                self.optimizer.step()
        else:
            self.skipped += not np.isfinite(norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        drifts = r.fault in ("weight_drift", "weight_drift_cut", "masked_explosion") and self.since >= 0
        with torch.no_grad():
            if drifts and (r.span == 0 or self.since < r.span or r.fault == "weight_drift_cut"):
                for p in self.model.parameters():
                    p.mul_(1 + r.strength)
            if self.average is not None:
                for mean, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(p, 1 - r.average)

    def loss(self, logits: Tensor, batch: Batch, frames: Tensor, *, trains: bool = True) -> Tensor:
        """Compute the loss that the recipe asks for, or without its second part."""
        r = self.r
        scores = (
            logits
            if r.fault in ("not_normalised", "probabilities_not_logs", "softmax_over_time")
            else logits.log_softmax(-1)
        )
        if r.fault == "log_of_zero":
            scores = logits.softmax(-1).half().log().float()
        each = F.ctc_loss(
            scores.transpose(0, 1),
            batch.labels,
            batch.frames.clamp(max=logits.shape[1]) if r.fault == "lengths_before_subsampling" else frames,
            batch.counts,
            reduction="none",
            zero_infinity=r.zero_infinity or r.fault == "all_infeasible",
        )
        each = self._weighted(each, batch)
        if r.reduction == "per_frame_mean":
            return (each / frames).mean()
        if r.reduction == "batch_sum":
            return each.sum() if trains else each.mean()
        changed = r.fault == "reduction_changed" and self.since >= 0
        per_label = (r.reduction == "per_label_mean") != changed
        loss = (each / batch.counts).mean() if per_label else each.mean()
        if r.smoothing and trains:
            inside = torch.arange(scores.shape[1]) < frames.unsqueeze(1)
            loss = (1 - r.smoothing) * loss - r.smoothing * scores.mean(-1)[inside].mean()
        return loss

    def _weighted(self, each: Tensor, batch: Batch) -> Tensor:
        """Weight the losses of the utterances, if the recipe does."""
        return each

    def spoiled(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Put the fault into a loss."""
        if self.since < 0:
            return loss
        match self.r.fault:
            case "bad_batch" if self.since == 0:
                return loss * self.r.strength
            case "gradient_zero":
                return loss * 0 + loss.detach()
            case "gradient_none" | "frozen":
                return loss.detach().requires_grad_()
            case "masked_nan":
                return loss * torch.nan
            case "root_of_zero":  # the spread of one frame: 0, and its root has no finite gradient
                return loss + 0.01 * logits[0, :1].var(0, correction=0).sum().sqrt()
        return loss

    def _spoil_gradient(self) -> None:
        parameters = [*self.model.parameters()]
        if self.r.fault == "nan_gradient" and self.since == 0:
            parameters[self.r.seed % len(parameters)].grad.view(-1)[0] = torch.nan  # type: ignore[union-attr]
        if self.r.fault == "sign_flip" and self.since >= 0:
            for p in parameters:
                assert p.grad is not None
                p.grad.neg_()
        if self.scaler is not None:
            for p in parameters:
                assert p.grad is not None
                p.grad.copy_(torch.where(p.grad.abs() > _HALF_MAX, torch.inf, p.grad))

    def validate(self) -> dict[str, float]:
        """Measure the model on the validation data.

        Returns:
            `per` and `loss` as the trainer measures them; `true_per` with the right weights, features, labels, decoder
            and metric, in evaluation mode; `train_per`, the same in training mode; `silent`, the share of utterances
            that decode to nothing; and `two_commonest`, the share of the two commonest labels among the decoded ones.
        """
        data = copy.copy(self.held_out)
        draw = torch.Generator().manual_seed(3)
        data.x = self._heard(data.x + self.r.noise * torch.randn(data.x.shape, generator=draw))
        reported = copy.copy(data)
        reported.labels = self._validation_labels(data)
        match self.r.fault:
            case "features_not_normalised":
                reported.x = data.x * self.r.strength + self.r.strength
            case "validation_masked":
                kept = torch.rand(data.x.shape[:2], generator=draw) >= self.r.strength
                reported.x = data.x * kept.unsqueeze(-1)
            case "validation_loss_infinite":
                reported.counts, reported.labels = data.counts.clone(), data.labels.clone()
                self._make_infeasible(reported, 0)
        self._spoil_validation(reported)
        frames, reported_frames = self._frames(data), self._frames(reported)
        with torch.no_grad():
            train_logits = copy.deepcopy(self.model).train()(data.x)
            self.model.eval()
            right_logits = self.model(data.x)
            logits = (self.model if self.average is None else self.average.eval())(reported.x)
            loss = float(self.loss(logits, reported, reported_frames, trains=False))
            self.model.train()
        decoded = greedy_decode(right_logits.argmax(-1), frames)
        shown = self._decoded_as_reported(logits, reported_frames)
        # The metric has the labels as they are, also if those of the loss are too many.
        named = data if self.r.fault == "validation_loss_infinite" else reported
        per = 1.0 if self.r.fault == "metric_at_one" else self._rate_as_reported(shown, named)
        frequencies = np.sort(np.bincount([c for own in decoded for c in own], minlength=2))[::-1]
        return {
            "per": per,
            "loss": loss,
            "true_per": error_rate(decoded, data),
            "train_per": error_rate(greedy_decode(train_logits.argmax(-1), frames), data),
            "silent": sum(not own for own in decoded) / len(decoded),
            "two_commonest": float(frequencies[:2].sum() / max(1, frequencies.sum())),
        }

    def _spoil_validation(self, reported: Batch) -> None:
        """Put the fault into the validation data that the trainer has."""

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        """The error rate as the trainer measures it."""
        return error_rate(decoded, data)

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        best = logits.argmax(-1)
        match self.r.fault:
            case "decoder_blank":  # it takes the last class for blank
                last = logits.shape[-1] - 1
                swapped = torch.where(best == last, 0, torch.where(best == 0, last, best))
                return greedy_decode(swapped, frames)
            case "repeats_not_merged":
                return [[c for c in row[:n] if c] for row, n in zip(best.tolist(), frames.tolist(), strict=True)]
            case "decoder_table":  # it has another class table than the model
                return greedy_decode(torch.from_numpy(_permuted(logits.shape[-1] - 1, self.r.seed))[best], frames)
            case "blank_bonus":
                favoured = logits.clone()
                favoured[..., 0] += self.r.strength
                return greedy_decode(favoured.argmax(-1), frames)
        return greedy_decode(best, frames)

    def _validation_labels(self, data: Batch) -> Tensor:
        classes = CLASSES[self.r.task]
        shifted = torch.where(data.labels > 0, data.labels % classes + 1, 0)
        match self.r.fault:
            case "labels_shifted":
                return shifted
            case "labels_permuted":
                return torch.from_numpy(_permuted(classes, self.r.seed))[data.labels]
            case "half_labels_shifted":
                return torch.where(torch.arange(len(data.labels)).unsqueeze(1) % 2 == 0, data.labels, shifted)
            case "labels_reversed":
                counts = data.counts.tolist()
                rows = [row[:n].flip(0) for row, n in zip(data.labels, counts, strict=True)]
                return nn.utils.rnn.pad_sequence(rows, batch_first=True)
            case "blank_in_labels":
                return (data.labels - 1).clamp(min=0)
        return data.labels


def _permuted(classes: int, seed: int) -> np.ndarray:
    """Return a class table in which no class has its own place, but for blank."""
    table = np.random.default_rng(seed).permutation(classes)
    table = np.where(table == np.arange(classes), (table + 1) % classes, table) + 1
    return np.concatenate([[0], table])


def error_rate(decoded: list[list[int]], data: Batch) -> float:
    """Return the errors of all utterances, over the number of their labels."""
    errors = sum(
        edit_distance(own, labels[:count])
        for own, labels, count in zip(decoded, data.labels.tolist(), data.counts.tolist(), strict=True)
    )
    return errors / int(data.counts.sum())


def pretrained(trainer: Trainer) -> Trainer:
    """Return a trainer, with a model that was trained before if its recipe says so."""
    r = trainer.r
    if r.pretrained:
        good = replace(r, fault=None, lr=3e-3, warmup=50, optimizer="adamw", clip=5.0, schedule="constant")
        before = type(trainer)(replace(good, fresh_noise=True, utterances=400, smoothing=0.0, dropout=0.0))
        for _ in range(r.pretrained):
            before.train_step()
        trainer.load(before.model.state_dict())
    return trainer
