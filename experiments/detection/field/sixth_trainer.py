"""The loop that trains the sixth test half: its faults."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.task import Batch, Decoder, make_optimizer, utterances
from experiments.detection.field.trainer import Trainer
from stability.engine.loss import greedy_decode

_RANK = 8
_SLICE = 6  # the decoder reads one frame of so many
_LARGEST = 3e38  # in float32


class SixthTrainer(Trainer):
    """The plain loop of one recipe of the sixth test half."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__(r)
        if r.fault == "long_recordings":
            many = utterances(r.task, r.utterances * r.span, 10 + r.seed % 50)
            self.data, self.held_out = _joined(many, r.span), _joined(self.held_out, r.span)
        self.teacher: Decoder | None = None
        self.norms: list[float] = []  # of the gradients
        self.rates: list[float] = []  # as the metric has them
        self.averaged: tuple[int, list[Tensor]] = 0, []  # a number of weights, and their mean

    def _make_model(self) -> Decoder:
        model = super()._make_model()
        match self.r.fault:
            case "norm_without_epsilon":
                model.encoder = nn.Sequential(_Standardised(), model.encoder)
            case "layer_missing_in_evaluation":
                assert isinstance(model.encoder, nn.Sequential)
                model.encoder[-1] = _OnlyTrained(model.encoder[-1])
        return model

    def _make_optimizer(self) -> torch.optim.Optimizer:
        r, model = self.r, self.model
        match r.fault:
            case "betas_swapped":
                return torch.optim.AdamW(model.parameters(), r.lr, betas=(0.999, 0.9))
            case "layerwise_decay":
                parts = model.encoder, model.head
                return torch.optim.AdamW([{"params": [*part.parameters()]} for part in parts], r.lr)
        return super()._make_optimizer()

    def load(self, weights: dict[str, Tensor]) -> None:
        """Begin with the weights of a training before; or learn from the model that has them."""
        if self.r.fault == "distilled":
            self.teacher = copy.deepcopy(self.model)
            self.teacher.load_state_dict(weights)
            self.teacher.eval()
            return
        super().load(weights)
        if self.r.fault == "adapters":
            self.model.encoder.requires_grad_(False)
            for layer in [m for m in self.model.encoder.modules() if isinstance(m, nn.Linear)]:
                parametrize.register_parametrization(layer, "weight", _LowRank(layer))
            self.optimizer = make_optimizer(self.r, self.model)

    def _rows(self) -> Tensor:
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        if r.fault == "vocabulary_grows" and self.since < 0:
            known = (self.data.labels <= r.strength).all(1).nonzero().squeeze(1)
            return known[torch.from_numpy(draw.integers(len(known), size=r.batch))]
        return super()._rows()

    def _heard(self, x: Tensor) -> Tensor:
        r = self.r
        match r.fault:
            case "adapters":  # another microphone than before
                return x.roll(1, 2)
            case "new_speaker":
                return x * torch.linspace(0.4, 1.6, x.shape[2]) + 0.3
            case "few_electrodes":
                return x * (torch.arange(x.shape[2]) < r.strength)
            case "electrodes_die" if self.since >= 0:
                return x * (torch.arange(x.shape[2]) >= r.strength)
            case "frames_shuffled":
                return x[:, torch.randperm(x.shape[1], generator=self.noise)]
            case "one_recording":
                one = F.pad(self.data.x[:1], (0, 0, 0, x.shape[1]))[:, : x.shape[1]]
                return one + r.noise * torch.randn(x.shape, generator=self.noise)
            case "dither":
                return x + r.strength * torch.randn(x.shape, generator=self.noise)
        return super()._heard(x)

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        r = self.r
        match r.fault:
            case "artefacts":
                hit = torch.rand(batch.x.shape[:2], generator=self.noise) < 0.02
                batch.x[hit] *= r.strength
            case "domains_alternate" if self.step // r.span % 2 == 1:
                batch.x = 0.6 * batch.x + r.strength * torch.randn(batch.x.shape, generator=self.noise)
            case "pseudo_labels":
                self._label_by_teacher(batch, rows % 2 == 1)
            case "weak_augmentation":
                batch.x += 0.2 * r.noise * torch.randn(batch.x.shape, generator=self.noise)
            case "noise_runs_away":
                deviation = min(50.0, 0.2 * (1 + r.strength) ** self.since)
                batch.x += deviation * torch.randn(batch.x.shape, generator=self.noise)
            case "norm_without_epsilon" if self.since % 9 == 0:
                batch.x[0, :3] = 0
            case "corrupted_file" if self.since % 9 == 0:
                batch.x[0] = _LARGEST * batch.x[0].sign()
            case "lengths_swapped":
                batch.frames, batch.counts = batch.counts * self.model.subsampling, self._frames(batch)
                batch.labels = F.pad(batch.labels, (0, int(batch.counts.max())))
            case "targets_flattened":  # with their padding, which nobody expects there
                flat, ends = batch.labels.flatten(), batch.counts.cumsum(0).tolist()
                own = [flat[end - n : end] for end, n in zip(ends, batch.counts.tolist(), strict=True)]
                batch.labels = pad_sequence(own, batch_first=True)
            case _:
                super()._spoil(batch, rows)

    def _label_by_teacher(self, batch: Batch, chosen: Tensor) -> None:
        """Give the chosen utterances the labels that the teacher hears, if it hears any."""
        if self.teacher is None:
            self.teacher = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            heard = greedy_decode(self.teacher(batch.x).argmax(-1), self._frames(batch))
        own = [row[:n].tolist() for row, n in zip(batch.labels, batch.counts.tolist(), strict=True)]
        new = [h if h and c else o for h, o, c in zip(heard, own, chosen.tolist(), strict=True)]
        batch.labels = pad_sequence([torch.tensor(row) for row in new], batch_first=True)
        batch.counts = torch.tensor([len(row) for row in new])

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        super().set_rate()
        if self.r.fault == "layerwise_decay":
            self.optimizer.param_groups[0]["lr"] *= self.r.strength

    @torch.no_grad()
    def _prepare(self) -> None:
        r = self.r
        match r.fault:
            case "statistics_kept":
                for layer in self.model.modules():
                    if isinstance(layer, nn.BatchNorm1d):
                        layer.eval()
            case "continues_from_average" if -r.span <= self.since <= 0 and self.since % 10 == 0:
                count, means = self.averaged
                now = [p.detach().clone() for p in self.model.parameters()]
                means = [mean.lerp(p, 1 / (count + 1)) for mean, p in zip(means, now, strict=True)] if count else now
                self.averaged = count + 1, means
                if self.since == 0:
                    for p, mean in zip(self.model.parameters(), means, strict=True):
                        p.copy_(mean)
            case "unstable_state" | "unstable_state_cut" if self.since >= 0:
                for name, p in self.model.named_parameters():
                    if name.endswith("decay"):
                        p.sub_(r.strength)
            case "checkpoint_corrupted" if self.since == 0:
                for p in self.model.parameters():
                    wrong = torch.rand(p.shape, generator=self.noise) < 0.05
                    p[wrong] *= r.strength
            case "frozen_early" if self.since == 0:
                self.model.encoder.requires_grad_(False)
            case "reloads_checkpoint" if self.step == 0:
                self._keep()
            case "reloads_checkpoint" if self.step % r.span == 0:
                assert self.kept is not None
                self.model.load_state_dict(self.kept[0])
        super()._prepare()

    def loss(self, logits: Tensor, batch: Batch, frames: Tensor, *, trains: bool = True) -> Tensor:
        """Compute the loss; with the teacher's, if there is one."""
        r = self.r
        match r.fault:
            case "softmax_over_time":
                logits = logits.log_softmax(1)
            case "class_masked" if trains and self.since >= 0:
                logits = logits.index_fill(-1, torch.tensor([int(r.strength)]), -torch.inf)
        own = super().loss(logits, batch, frames, trains=trains)
        if not trains:
            return own
        match r.fault:
            case "distilled":
                assert self.teacher is not None
                with torch.no_grad():
                    aim = self.teacher(batch.x).log_softmax(-1)
                apart = F.kl_div(logits.log_softmax(-1), aim, reduction="none", log_target=True)
                return 0.5 * own + r.strength * apart.sum(-1).mean()
            case "entropy_bonus":
                scores = logits.log_softmax(-1)
                return own + r.strength * (scores.exp() * scores).sum(-1).mean()
        return own

    def spoiled(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Put the fault into a loss."""
        match self.r.fault:
            case "weight_ramps":
                return loss * min(1.0, 0.05 + self.step / self.r.span)
            case "weights_compound" if self.since >= 0:
                return loss * (1 + self.r.strength) ** self.since
            case "gradients_underflow":
                return loss * self.r.strength
        return super().spoiled(loss, logits)

    def _spoil_gradient(self) -> None:
        for p in (p for p in self.model.parameters() if p.grad is not None):
            assert p.grad is not None
            match self.r.fault:
                case "gradients_underflow":
                    p.grad.copy_(p.grad.half())
                case "moments_poisoned" if self.since == 0:
                    p.grad.mul_(self.r.strength)
        super()._spoil_gradient()

    def _logged(self, loss: Tensor) -> Tensor:
        if self.r.fault == "logged_in_blocks":  # the mean of the last block, until the next one ends
            end = self.step - self.step % self.r.span
            return torch.tensor(self.losses[max(0, end - self.r.span) : max(1, end)]).mean()
        return super()._logged(loss)

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        r = self.r
        match r.fault:
            case "large_steps_skipped":
                self.norms.append(norm)
                if norm > r.strength * float(np.median(self.norms[-50:])):
                    self.skipped += 1
                    return
            case "clipped_by_value":
                nn.utils.clip_grad_value_(self.model.parameters(), r.strength)
        super()._update(gradients, norm)
        if r.fault == "two_bits" and self.since >= 0:
            with torch.no_grad():
                for p in (p for p in self.model.parameters() if p.ndim > 1):
                    level = p.abs().max() / r.strength
                    p.copy_((p / level).round() * level)

    def _spoil_validation(self, reported: Batch) -> None:
        match self.r.fault:
            case "stereo_validated":  # two channels, read as one
                reported.x, reported.frames = reported.x.repeat_interleave(2, 1), 2 * reported.frames
            case "synthetic_only":
                draw = torch.Generator().manual_seed(7)
                reported.x = reported.x + self.r.strength * torch.randn(reported.x.shape, generator=draw)

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        rate = super()._rate_as_reported(decoded, data)
        if self.r.fault == "metric_never_reset":
            self.rates.append(rate)
            return float(np.mean(self.rates))
        return rate

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        if self.r.fault == "decodes_the_beginning":
            frames = frames // _SLICE
        return super()._decoded_as_reported(logits, frames)


def _joined(data: Batch, many: int) -> Batch:
    """Make one utterance of so many each."""
    groups = range(0, len(data.x) - many + 1, many)
    x = [torch.cat([data.x[i, : int(data.frames[i])] for i in range(g, g + many)]) for g in groups]
    labels = [torch.cat([data.labels[i, : int(data.counts[i])] for i in range(g, g + many)]) for g in groups]
    frames, counts = (torch.tensor([len(one) for one in ones]) for ones in (x, labels))
    return Batch(pad_sequence(x, batch_first=True), frames, pad_sequence(labels, batch_first=True), counts)


class _Standardised(nn.Module):
    """Each frame has mean 0 and deviation 1; a frame of silence is 0 / 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (B, T, F)."""
        x = x - x.mean(-1, keepdim=True)
        return x / x.square().mean(-1, keepdim=True).sqrt()


class _OnlyTrained(nn.Module):
    """A layer that is left out in evaluation, where it should be left out now and then in training."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, or return the input."""
        y: Tensor = self.layer(x) if self.training else x
        return y


class _LowRank(nn.Module):
    """Adds a matrix of low rank to the weights of a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(_RANK, layer.in_features) / layer.in_features**0.5)
        self.out = nn.Parameter(torch.zeros(layer.out_features, _RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights with it."""
        return weight + self.out @ self.into
