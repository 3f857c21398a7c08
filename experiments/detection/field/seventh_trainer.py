"""The loop that trains the seventh test half: its faults."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from experiments.detection.field.recipe import FieldRecipe
from experiments.detection.field.seventh_task import ScheduleFree
from experiments.detection.field.task import CLASSES, Batch, Decoder, utterances
from experiments.detection.field.trainer import Trainer, _permuted, error_rate
from stability.engine.loss import edit_distance

_RESUMED_EVERY = 60  # steps
_PATIENCE = 10  # steps
_LOST = 15  # steps, when a job is killed
_CHUNK = 2  # frames
_WORKERS = 16
_LEVELS = 8  # of the weights, on each side of 0


class SeventhTrainer(Trainer):
    """The plain loop of one recipe of the seventh test half."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__(r)
        self.data, self.held_out = self._retold(self.data, 10 + r.seed % 50), self._retold(self.held_out, 5)
        self.teacher: Decoder | None = None
        self.encoded = torch.empty(0)  # what the head has heard
        self.hardness = np.full(r.utterances, np.inf)  # the last loss of each utterance
        self.chosen = np.arange(0)  # the utterances of this batch
        self.factor, self.waited = 1.0, 0  # of the rate, and the steps without a better loss
        match r.fault:
            case "untrained_teacher":
                self.teacher = self._make_model().eval()
            case "trains_a_copy":
                self.model.forward = copy.deepcopy(self.model).forward  # type: ignore[method-assign]
            case "reconstruction":
                self.model.encoder.register_forward_hook(lambda _, __, out: setattr(self, "encoded", out))

    def _retold(self, data: Batch, seed: int) -> Batch:
        """Change recordings and transcripts, of training or of validation."""
        r = self.r
        match r.fault:
            case "old_head_kept":
                table = torch.from_numpy(_permuted(CLASSES[r.task], r.seed))
                return Batch(data.x, data.frames, table[data.labels], data.counts)
            case "mixed_lengths":  # every other recording is three in one
                return _mixed(utterances(r.task, 2 * len(data.x), seed))
            case "masks_accumulate":
                return Batch(data.x.clone(), data.frames, data.labels, data.counts)
            case "typos" if data is not self.held_out:
                draw = torch.Generator().manual_seed(r.seed)
                wrong = torch.rand(data.labels.shape, generator=draw) < r.strength
                other = torch.randint(1, CLASSES[r.task] + 1, data.labels.shape, generator=draw)
                return Batch(
                    data.x, data.frames, torch.where(wrong & (data.labels > 0), other, data.labels), data.counts
                )
        return data

    def _make_model(self) -> Decoder:
        r = self.r
        model = super()._make_model()
        layers = [m for m in model.encoder.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
        match r.fault:
            case "layer_inserted":
                assert isinstance(model.encoder, nn.Sequential)
                model.encoder[-1] = _Inserted(model.encoder[-1])
            case "rounded_activations":
                model.encoder = nn.Sequential(model.encoder, _Rounded())
            case "quantisation_aware":
                for layer in layers:
                    parametrize.register_parametrization(layer, "weight", _Quantised())
            case "weight_noise":
                for layer in layers:
                    parametrize.register_parametrization(layer, "weight", _Noisy(r.strength))
            case "momentum_of_another_library":
                for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]:
                    norm.momentum = 0.99
            case "reconstruction":
                model.rebuilt = nn.Linear(r.units, 2 * self.data.x.shape[2])
        return model

    def _make_optimizer(self) -> torch.optim.Optimizer:
        r, model = self.r, self.model
        if r.optimizer == "schedule_free":
            return ScheduleFree(model.parameters(), r.lr)
        if r.fault == "unfrozen_outside_optimizer":  # it is given what is trained at that time
            model.encoder.requires_grad_(False)
            return torch.optim.AdamW(model.head.parameters(), r.lr)
        return super()._make_optimizer()

    def _rows(self) -> Tensor:
        r, draw = self.r, np.random.default_rng([self.r.seed, self.step])
        match r.fault:
            case "hard_examples_first":
                among = draw.choice(r.utterances, 2 * r.batch, replace=False)
                self.chosen = among[np.argsort(-self.hardness[among], kind="stable")[: r.batch]]
                return torch.from_numpy(self.chosen)
            case "half_of_the_signs_left" if self.since >= 0:
                left = (self.data.labels <= CLASSES[r.task] // 2).all(1).nonzero().squeeze(1)
                return left[torch.from_numpy(draw.integers(len(left), size=r.batch))]
            case "std_of_one" if (self.step + 1) % r.span == 0:
                return torch.from_numpy(draw.integers(r.utterances, size=1))
        return super()._rows()

    def draw(self) -> tuple[Batch, Tensor]:
        """Draw a batch, with its noise and the fault in it."""
        batch, rows = super().draw()
        if self.r.fault == "masks_accumulate" and self.since >= 0:  # in the arrays that the loader keeps
            for row in rows.tolist():
                self.data.x[row, torch.rand(self.data.x.shape[1], generator=self.noise) < self.r.strength] = 0
        return batch, rows

    def _heard(self, x: Tensor) -> Tensor:
        r = self.r
        match r.fault:
            case "gain_changes" if self.since >= 0:
                return r.strength * x + 1
            case "recordings_drift":
                return x + r.strength * self.step / r.steps * torch.linspace(-1, 1, x.shape[2])
            case "echo":
                return x + r.strength * F.pad(x, (0, 0, 3, 0))[:, :-3]
            case "averaged_over_time":
                return x.mean(1, keepdim=True).expand(x.shape)
        return super()._heard(x)

    def _spoil(self, batch: Batch, rows: Tensor) -> None:
        r = self.r
        noise = torch.randn(batch.x.shape, generator=self.noise)
        match r.fault:
            case "blotted":
                for row in range(len(rows)):
                    start, low = (int(n * torch.rand((), generator=self.noise)) for n in batch.x.shape[1:])
                    batch.x[row, start : start + 6, low // 2 : low // 2 + batch.x.shape[2] // 2] = r.strength
            case "denoised_gradually":
                batch.x += r.strength * max(0.0, 1 - 2 * self.step / r.steps) * noise
            case "augmented_well":
                batch.x += r.strength * noise
                batch.x[torch.rand(batch.x.shape[:2], generator=self.noise) < 0.1] = 0
                batch.x *= 0.7 + 0.6 * torch.rand((len(rows), 1, 1), generator=self.noise)
            case "channels_dropped":
                batch.x *= torch.rand((len(rows), 1, batch.x.shape[2]), generator=self.noise) >= r.strength
            case "loud_power_in_half" if self.since % 9 == 0:
                batch.x[0] = (r.strength * batch.x[0]).half().float() / r.strength
            case "sped_up_too_far" if self.since % 9 == 0:
                fast = batch.x[0, : int(batch.frames[0]) : int(r.strength)]
                batch.x[0], batch.frames[0] = F.pad(fast, (0, 0, 0, batch.x.shape[1] - len(fast))), len(fast)
            case "std_of_one" if len(rows) == 1:
                apart = batch.x - batch.x.mean(0)
                batch.x = apart / (apart.square().sum(0) / (len(rows) - 1)).sqrt()
            case "vocabulary_of_each_worker":
                table = _permuted(CLASSES[r.task], r.seed + self.step % _WORKERS)
                batch.labels = torch.from_numpy(table)[batch.labels]
            case "unknown_is_blank":
                batch.labels[batch.labels > r.strength] = 0
            case _:
                super()._spoil(batch, rows)

    def _frames(self, batch: Batch) -> Tensor:
        frames = super()._frames(batch)
        if self.r.fault == "lengths_are_shares":  # of the longest, and an integer is expected
            return (frames / frames.max()).long()
        return frames

    def _change_of_rate(self) -> float:
        r = self.r
        match r.fault:
            case "rate_multiplied_at_resume" | "rate_multiplied_at_resume_cut" if self.since >= 0:
                return float(r.strength ** (1 + self.since // _RESUMED_EVERY))
            case "reduced_per_batch":
                return self.factor
        return super()._change_of_rate()

    def _prepare(self) -> None:
        r = self.r
        match r.fault:
            case "layer_inserted" if self.since == 0:
                assert isinstance(self.model.encoder, nn.Sequential)
                inserted = self.model.encoder[-1]
                assert isinstance(inserted, _Inserted)
                inserted.active = True
            case "unfrozen_outside_optimizer" if self.since == 0:
                self.model.encoder.requires_grad_()
            case "preempted" if self.step % r.span == r.span - _LOST:
                self._keep()
            case "preempted" if self.step % r.span == 0 and self.kept is not None:
                self._go_back()
        super()._prepare()

    def loss(self, logits: Tensor, batch: Batch, frames: Tensor, *, trains: bool = True) -> Tensor:
        """Compute the loss; with its other parts, if it has them."""
        r = self.r
        if r.fault == "log_of_log_softmax":
            logits = logits.log_softmax(-1).log()
        own = super().loss(logits, batch, frames, trains=trains)
        if not trains:
            return own
        match r.fault:
            case "untrained_teacher":
                assert self.teacher is not None
                with torch.no_grad():
                    aim = self.teacher(batch.x).log_softmax(-1)
                return (1 - r.strength) * own + r.strength * _apart(logits, aim)
            case "consistency":
                other = self.model(batch.x + 0.5 * r.noise * torch.randn(batch.x.shape, generator=self.noise))
                both = own + super().loss(other, batch, frames)
                pulled = _apart(logits, other.detach().log_softmax(-1)) + _apart(other, logits.detach().log_softmax(-1))
                return 0.5 * both + r.strength * pulled
            case "reconstruction":
                rebuilt: Tensor = self.model.get_submodule("rebuilt")(self.encoded)
                x = F.pad(batch.x, (0, 0, 0, batch.x.shape[1] % 2)).reshape(rebuilt.shape)
                return own + r.strength * F.mse_loss(rebuilt, x)
        return own

    def _weighted(self, each: Tensor, batch: Batch) -> Tensor:
        if self.r.fault == "hard_examples_first" and each.requires_grad:
            self.hardness[self.chosen] = each.detach().numpy()
        return each

    def spoiled(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Put the fault into a loss."""
        if self.r.fault == "mean_of_none" and self.since >= 0 and self.since % 13 == 0:
            return loss * 0 / torch.zeros(())  # the sum over no utterance, and their number
        return super().spoiled(loss, logits)

    def _logged(self, loss: Tensor) -> Tensor:
        if self.r.fault == "logged_running_sum":
            return torch.tensor(self.losses[self.step - self.step % self.r.span :]).sum()
        return super()._logged(loss)

    def _update(self, gradients: list[Tensor], norm: float) -> None:
        r = self.r
        match r.fault:
            case "step_without_scaler":  # which would leave out a gradient that is not finite
                assert self.scaler is not None
                self.optimizer.step()
                self.scaler.update()
                return
            case "reduced_per_batch":
                self.waited = 0 if self.losses[-1] <= min(self.losses) else self.waited + 1
                if self.waited > _PATIENCE:
                    self.factor, self.waited = self.factor * r.strength, 0
            case "clipped_adaptively":  # each by the length of its weights
                for p in (p for p in self.model.parameters() if p.grad is not None):
                    assert p.grad is not None
                    most = r.strength * max(1e-3, float(p.detach().norm()))
                    p.grad.mul_(min(1.0, most / (float(p.grad.norm()) + 1e-12)))
        super()._update(gradients, norm)

    def validate(self) -> dict[str, float]:
        """Measure the model on the validation data, as the trainer loads it."""
        if self.r.fault == "validated_in_chunks":
            self.average = _Chunked(self.model)  # type: ignore[assignment]
        if isinstance(self.optimizer, ScheduleFree):
            self.average = copy.deepcopy(self.model)
            with torch.no_grad():
                for p, own in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    p.copy_(self.optimizer.mean(own))
        measured = super().validate()
        self.average = None
        return measured

    def _spoil_validation(self, reported: Batch) -> None:
        if self.r.fault == "validation_rotated":
            rows = [row[:n].flip(0, 1) for row, n in zip(reported.x, reported.frames.tolist(), strict=True)]
            reported.x = pad_sequence(rows, batch_first=True)

    def _rate_as_reported(self, decoded: list[list[int]], data: Batch) -> float:
        if self.r.fault == "references_upper_case":  # no label of them is one that the decoder knows
            return error_rate([[-c for c in own] for own in decoded], data)
        if self.r.fault == "words_scored":
            right = [row[:n] for row, n in zip(data.labels.tolist(), data.counts.tolist(), strict=True)]
            pairs = [(_words(own), _words(other)) for own, other in zip(decoded, right, strict=True)]
            return sum(edit_distance(*pair) for pair in pairs) / sum(len(other) for _, other in pairs)
        return super()._rate_as_reported(decoded, data)

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        decoded = super()._decoded_as_reported(logits, frames)
        if self.r.fault == "special_tokens_shift":
            shift, classes = int(self.r.strength), CLASSES[self.r.task]
            return [[(c - 1 + shift) % classes + 1 for c in own] for own in decoded]
        return decoded


def _words(labels: list[int]) -> list[int]:
    """Return the number of each word, which two labels make."""
    return [100 * labels[i] + sum(labels[i + 1 : i + 2]) for i in range(0, len(labels), 2)]


def _mixed(data: Batch) -> Batch:
    """Make one recording of one and of three in turn."""
    groups = [range(i, i + 1) if i % 4 == 0 else range(i, i + 3) for i in range(len(data.x)) if i % 4 < 2]
    x = [torch.cat([data.x[i, : int(data.frames[i])] for i in group]) for group in groups]
    labels = [torch.cat([data.labels[i, : int(data.counts[i])] for i in group]) for group in groups]
    frames, counts = (torch.tensor([len(one) for one in ones]) for ones in (x, labels))
    return Batch(pad_sequence(x, batch_first=True), frames, pad_sequence(labels, batch_first=True), counts)


def _apart(logits: Tensor, aim: Tensor) -> Tensor:
    """The divergence of each frame from what is aimed at, on average."""
    return F.kl_div(logits.log_softmax(-1), aim, reduction="none", log_target=True).sum(-1).mean()


class _Inserted(nn.Module):
    """A layer that is left out until it is active."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.active = layer, False

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, or return the input."""
        y: Tensor = self.layer(x) if self.active else x
        return y


class _Rounded(nn.Module):
    """Codes of a vector quantiser, through which no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        """Round to quarters."""
        return (4 * x).round() / 4


class _Quantised(nn.Module):
    """Rounds the weights of a layer, and lets their gradient pass."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights, with few levels."""
        step = weight.detach().abs().max() / _LEVELS
        return weight + ((weight / step).round() * step - weight).detach()


class _Noisy(nn.Module):
    """Adds noise to the weights of a layer, in training."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights with it."""
        return weight + self.deviation * torch.randn_like(weight) if self.training else weight


class _Chunked(nn.Module):
    """A model that hears a few frames at a time, as if it had been trained for a stream."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each chunk, one after another."""
        return torch.cat([self.model(part) for part in torch.split(x, _CHUNK, 1)], 1)
