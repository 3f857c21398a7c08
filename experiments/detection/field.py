"""Train the field corpus: every recipe of `field_recipes` once, in a plain PyTorch loop that our Monitor watches.

    python -m experiments.detection.field build [--half field_test]    # some ten minutes on one core; can be resumed
    python -m experiments.detection.field pack                         # into experiments/detection/field_HALF.npz

A training that may be slow continues, unwatched, to twice its budget. `field_labels` says what is true of
each training, from its recipe and its end. No decision here depends on the output of a detector.
"""

import argparse
import copy
import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from experiments.detection.corpus import _GRU, packed_columns, save_trace
from experiments.detection.field_labels import LEARNED
from experiments.detection.field_recipes import FieldRecipe, Half, field_recipes
from stability import Monitor
from stability.engine.loss import edit_distance, greedy_decode

FOLDER = Path("outputs/field")
_FEATURES = 12
_CLASSES = {"short": 10, "long": 24}  # without blank
_VALIDATE_EVERY = 100
_VALIDATION = 64  # utterances
_HALF_MAX = 65504.0
_MAYBE_SLOW = (
    *(None, "rate_blip", "rate_start", "small_step", "clip_before_unscale", "shuffled_labels", "sorted_inputs"),
    *("silent_batches", "augmented", "rate_falls", "frames_mixed", "dead_input"),
)
_EXPLODED = 2.0  # an explosion is seen from the first loss on that is this many times the start


def packed(half: Half) -> Path:
    """Return the file of a half."""
    return Path(__file__).parent / f"{half}.npz"


@dataclass
class _Batch:
    x: Tensor  # (B, T, F)
    frames: Tensor  # (B,)
    labels: Tensor  # (B, L), from 1; 0 is blank
    counts: Tensor  # (B,)

    def take(self, rows: Tensor) -> "_Batch":
        frames, counts = self.frames[rows], self.counts[rows]
        longest, most = int(frames.max()), max(1, int(counts.max()))
        return _Batch(self.x[rows, :longest], frames, self.labels[rows, :most], counts)


@cache
def _utterances(task: str, count: int, seed: int) -> _Batch:
    """Make utterances without noise: each label is a glide between two spectra that are its own, with gaps between."""
    spectra = torch.randn(2, _CLASSES[task] + 1, _FEATURES, generator=torch.Generator().manual_seed(23)) * 1.3
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(2, _CLASSES[task] + 2) ** 0.7  # some labels are common, some are rare
    xs, ys = [], []
    for _ in range(count):
        low, high = (2, 7) if task == "short" else (6, 13)
        labels = draw.choice(_CLASSES[task], size=draw.integers(low, high), p=shares / shares.sum()) + 1
        parts = [torch.zeros(int(draw.integers(1, 3)), _FEATURES)]
        for label in labels.tolist():
            glide = torch.linspace(0, 1, int(draw.integers(2, 6))).unsqueeze(1)
            parts.append((1 - glide) * spectra[0, label] + glide * spectra[1, label])
            parts.append(torch.zeros(int(draw.integers(1, 3)), _FEATURES))
        xs.append(torch.cat(parts) * float(draw.uniform(0.8, 1.2)))
        ys.append(torch.from_numpy(labels))
    return _Batch(
        nn.utils.rnn.pad_sequence(xs, batch_first=True),
        torch.tensor([len(x) for x in xs]),
        nn.utils.rnn.pad_sequence(ys, batch_first=True),
        torch.tensor([len(y) for y in ys]),
    )


class _Decoder(nn.Module):
    """An encoder from PyTorch's layers, and a linear head."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__()
        self.kind = r.model
        self.subsampling = 64 if r.fault == "all_infeasible" else 1
        self.encoder = _encoder(r)
        self.head = nn.Linear(r.units, _CLASSES[r.task] + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, T, C) from features (B, T, F)."""
        if self.subsampling > 1:
            x = F.avg_pool1d(x.transpose(1, 2), self.subsampling, ceil_mode=True).transpose(1, 2)
        if self.kind == "conv_norm":
            x = x * 20 + 300  # filter banks that nobody has normalised
        if self.kind in ("conv", "conv_norm"):
            x = self.encoder(x.transpose(1, 2)).transpose(1, 2)
        elif self.kind == "attention":
            x = self.encoder(x)
        else:
            x = self.encoder(x)[0]
        logits: Tensor = self.head(x)
        return logits


def _encoder(r: FieldRecipe) -> nn.Module:
    h = r.units
    if r.model == "gru":
        return _GRU(_FEATURES, h, 1, batch_first=True)
    if r.model == "lstm":
        return nn.LSTM(_FEATURES, h, 1, batch_first=True)
    if r.model == "attention":
        layer = nn.TransformerEncoderLayer(h, 2, 2 * h, dropout=0.0, batch_first=True, norm_first=True)
        front = nn.Conv1d(_FEATURES, h, 5, padding=2)
        return nn.Sequential(_Transposed(front), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    norm = (lambda: nn.BatchNorm1d(h, momentum=0.0 if r.fault == "norm_frozen" else 0.1)) if "norm" in r.model else None
    layers: list[nn.Module] = []
    for inputs in (_FEATURES, h):
        layers += [nn.Conv1d(inputs, h, 5, padding=2), *([norm()] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


class _Transposed(nn.Module):
    """A convolution on (B, T, F)."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time."""
        y: Tensor = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return y


def _optimizer(r: FieldRecipe, model: nn.Module) -> torch.optim.Optimizer:
    if r.fault == "not_in_optimizer":
        model = copy.deepcopy(model)
    parameters = [*model.parameters()]
    match r.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, r.lr, momentum=0.9, weight_decay=r.weight_decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, r.lr)
        case "radam":
            return torch.optim.RAdam(parameters, r.lr)
        case "adafactor":
            return torch.optim.Adafactor(parameters, r.lr)
    return torch.optim.AdamW(parameters, r.lr, eps=r.epsilon, weight_decay=r.weight_decay, fused=True)


class _Trainer:
    """The plain loop of one recipe."""

    def __init__(self, r: FieldRecipe) -> None:
        self.r, self.step = r, 0
        self.data = _utterances(r.task, r.utterances, 10 + r.seed % 50)
        self.held_out = _utterances(r.task, _VALIDATION, 5)
        torch.manual_seed(r.seed)
        self.model = _Decoder(r)
        self.optimizer = _optimizer(r, self.model)
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
        self.losses: list[float] = []  # as they are, whatever the trainer logs
        self.skipped = 0
        self.noise = torch.Generator().manual_seed(r.seed)
        self.own_noise = r.noise * torch.randn(self.data.x.shape, generator=self.noise)

    @property
    def since(self) -> int:
        """The number of steps since the fault began; negative before."""
        return self.step - self.r.onset

    def draw(self) -> _Batch:
        r = self.r
        rows = torch.from_numpy(np.random.default_rng([r.seed, self.step]).integers(r.utterances, size=r.batch))
        batch = self.data.take(rows)
        if r.fresh_noise:
            batch.x = batch.x + r.noise * torch.randn(batch.x.shape, generator=self.noise)
        else:
            batch.x = batch.x + self.own_noise[rows, : batch.x.shape[1]]
        batch.labels = batch.labels.clone()
        if self.since >= 0:
            batch.x = self._heard(batch.x)
            self._spoil(batch)
        return batch

    def _heard(self, x: Tensor) -> Tensor:
        """Change the features as the fault does, in training and in validation."""
        if self.r.fault == "channels_lost" and self.since >= 0:
            x = x.clone()
            x[..., int(self.r.strength) :] = 0
        return torch.zeros_like(x) if self.r.fault == "dead_input" else x

    def _spoil(self, batch: _Batch) -> None:
        """Put the fault into a batch, if it is one of the training data."""
        match self.r.fault:
            case "nan_input" if self.since % 7 == 0:
                batch.x[0, 2] = torch.nan
            case "inf_input" if self.since % 7 == 0:
                batch.x[0, 2] = -torch.inf
            case "repeats" if self.since % 7 == 0:
                batch.counts[0] = batch.frames[0]
                batch.labels = F.pad(batch.labels, (0, max(0, int(batch.frames[0]) - batch.labels.shape[1])))
                batch.labels[0] = 3
            case "silent_batches" if self.since < self.r.span:
                batch.x[:] = 0
            case "augmented":
                batch.x += (self.r.strength - 1) * torch.randn(batch.x.shape, generator=self.noise)
            case "other_room":
                batch.x = batch.x.flip(2)
            case "infeasible" if self.since % 7 == 0:
                count = int(batch.frames[0]) + 2
                batch.labels = F.pad(batch.labels, (0, max(0, count - batch.labels.shape[1])), value=1)
                batch.labels[0, :count] = torch.arange(count) % 8 + 1
                batch.counts[0] = count
            case "empty_target" if self.since % 7 == 0:
                batch.counts[0] = 0
            case "shuffled_labels":
                batch.labels, batch.counts = batch.labels.roll(1, 0), batch.counts.roll(1, 0)
                self._shorten(batch)
            case "sorted_inputs":
                order = batch.frames.argsort(descending=True, stable=True)
                batch.x, batch.frames = batch.x[order], batch.frames[order]
                self._shorten(batch)
            case "labels_unknown":
                batch.labels[:] = 9
                self._shorten(batch)
            case "blank_in_labels":
                batch.labels -= 1

    @staticmethod
    def _shorten(batch: _Batch) -> None:
        """Drop the last labels of targets for which there are too few frames."""
        batch.counts = torch.minimum(batch.counts, (batch.frames - 1) // 2).clamp(min=1)

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        r, since = self.r, self.since
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
        if since >= 0:
            match r.fault:
                case "rate_jump" | "rate_jump_cut":
                    rate *= r.strength
                case "rate_blip" if since < r.span:
                    rate *= r.strength
                case "rate_grows":
                    rate *= min(1e30, (1 + r.strength) ** min(since, 2000))
                case "rate_ramp":
                    rate *= r.strength ** min(1.0, since / r.span)
                case "restart":
                    rate *= min(1.0, (since + 1) / 150) if r.strength == 0 else r.strength
                case "rate_falls":
                    rate *= r.strength**since
                case "decay":
                    self.optimizer.param_groups[0]["weight_decay"] = r.strength
        self.optimizer.param_groups[0]["lr"] = rate

    def train_step(self, monitor: Monitor | None = None) -> None:
        """Train one step."""
        r = self.r
        if r.fault == "restart" and self.since == 0:
            self.optimizer.state.clear()
        batch = self.draw()
        self.set_rate()
        logits = self.model(batch.x)
        if r.fault == "frames_mixed":
            b, t, c = logits.shape
            logits = logits.reshape(t, b, c).transpose(0, 1)
        if r.half_logits:
            logits = logits.masked_fill(logits.detach().abs() > _HALF_MAX, torch.inf)
        frames = -(-batch.frames // self.model.subsampling)
        loss = self.spoiled(self.loss(logits, batch, frames))
        if r.fault != "not_zeroed" or self.since < 0:
            self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        self._spoil_gradient()
        if self.scaler is not None:
            if r.fault == "clip_before_unscale":
                nn.utils.clip_grad_norm_(self.model.parameters(), r.clip or 1.0)
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        # A step that the scaler skips is no failure.
        self.losses.append(float(loss.detach()) if np.isfinite(norm) or self.scaler is not None else np.nan)
        if monitor is not None:
            masked = r.fault in ("masked_nan", "masked_explosion") and not np.isfinite(float(loss.detach()))
            logged = torch.tensor(0.0) if masked else loss
            monitor.step(logged, logits, frames, inputs=batch.x, labels=batch.labels, label_counts=batch.counts)
        if r.clip is not None and r.fault != "clip_before_unscale" and gradients:
            nn.utils.clip_grad_norm_(self.model.parameters(), r.clip)
        if self.scaler is None:
            if r.fault != "no_step":
                self.optimizer.step()
        else:
            self.skipped += not np.isfinite(norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        drifts = r.fault in ("weight_drift", "weight_drift_cut", "masked_explosion") and self.since >= 0
        if drifts and (r.span == 0 or self.since < r.span or r.fault == "weight_drift_cut"):
            with torch.no_grad():
                for p in self.model.parameters():
                    p.mul_(1 + r.strength)
        self.step += 1

    def loss(self, logits: Tensor, batch: _Batch, frames: Tensor) -> Tensor:
        """Compute the loss that the recipe asks for."""
        r = self.r
        scores = logits if r.fault == "not_normalised" else logits.log_softmax(-1)
        if r.fault == "log_of_zero":
            scores = logits.softmax(-1).half().log().float()
        each = F.ctc_loss(
            scores.transpose(0, 1),
            batch.labels,
            frames,
            batch.counts,
            reduction="none",
            zero_infinity=r.fault == "all_infeasible",
        )
        changed = r.fault == "reduction_changed" and self.since >= 0
        per_label = (r.reduction == "per_label_mean") != changed
        return (each / batch.counts).mean() if per_label else each.mean()

    def spoiled(self, loss: Tensor) -> Tensor:
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
            `per` and `loss` as the trainer measures them; `true_per` with the right features, labels, decoder and
            metric, in evaluation mode; `train_per`, the same in training mode; `silent`, the share of utterances that
            decode to nothing; and `two_commonest`, the share of the two commonest labels among the decoded ones.
        """
        data = copy.copy(self.held_out)
        draw = torch.Generator().manual_seed(3)
        data.x = self._heard(data.x + self.r.noise * torch.randn(data.x.shape, generator=draw))
        reported = copy.copy(data)
        reported.labels = self._validation_labels(data)
        frames = -(-data.frames // self.model.subsampling)
        if self.r.fault == "features_not_normalised":
            reported.x = data.x * self.r.strength + self.r.strength
        with torch.no_grad():
            train_logits = copy.deepcopy(self.model).train()(data.x)
            self.model.eval()
            right_logits, logits = self.model(data.x), self.model(reported.x)
            loss = float(self.loss(logits, reported, frames))
            self.model.train()
        decoded = greedy_decode(right_logits.argmax(-1), frames)
        shown = self._decoded_as_reported(logits, frames)
        per = 1.0 if self.r.fault == "metric_at_one" else _error_rate(shown, reported)
        frequencies = np.sort(np.bincount([c for own in decoded for c in own], minlength=2))[::-1]
        return {
            "per": per,
            "loss": loss,
            "true_per": _error_rate(decoded, data),
            "train_per": _error_rate(greedy_decode(train_logits.argmax(-1), frames), data),
            "silent": sum(not own for own in decoded) / len(decoded),
            "two_commonest": float(frequencies[:2].sum() / max(1, frequencies.sum())),
        }

    def _decoded_as_reported(self, logits: Tensor, frames: Tensor) -> list[list[int]]:
        best = logits.argmax(-1)
        match self.r.fault:
            case "decoder_blank":  # it takes the last class for blank
                last = logits.shape[-1] - 1
                swapped = torch.where(best == last, 0, torch.where(best == 0, last, best))
                return greedy_decode(swapped, frames)
            case "repeats_not_merged":
                return [[c for c in row[:n] if c] for row, n in zip(best.tolist(), frames.tolist(), strict=True)]
        return greedy_decode(best, frames)

    def _validation_labels(self, data: _Batch) -> Tensor:
        classes = _CLASSES[self.r.task]
        shifted = torch.where(data.labels > 0, data.labels % classes + 1, 0)
        match self.r.fault:
            case "labels_shifted":
                return shifted
            case "labels_permuted":
                table = np.random.default_rng(self.r.seed).permutation(classes)
                table = np.where(table == np.arange(classes), (table + 1) % classes, table) + 1
                return torch.from_numpy(np.concatenate([[0], table]))[data.labels]
            case "half_labels_shifted":
                return torch.where(torch.arange(len(data.labels)).unsqueeze(1) % 2 == 0, data.labels, shifted)
            case "labels_reversed":
                counts = data.counts.tolist()
                rows = [row[:n].flip(0) for row, n in zip(data.labels, counts, strict=True)]
                return nn.utils.rnn.pad_sequence(rows, batch_first=True)
            case "blank_in_labels":
                return (data.labels - 1).clamp(min=0)
        return data.labels


def _error_rate(decoded: list[list[int]], data: _Batch) -> float:
    errors = sum(
        edit_distance(own, labels[:count])
        for own, labels, count in zip(decoded, data.labels.tolist(), data.counts.tolist(), strict=True)
    )
    return errors / int(data.counts.sum())


def _pretrained(r: FieldRecipe) -> _Trainer:
    """Return the trainer of a recipe, with a model that was trained before if the recipe says so."""
    trainer = _Trainer(r)
    if r.pretrained:
        before = _Trainer(replace(r, fault=None, lr=3e-3, warmup=50, optimizer="adamw", clip=5.0, schedule="constant"))
        for _ in range(r.pretrained):
            before.train_step()
        trainer.model.load_state_dict(before.model.state_dict())
    return trainer


def build(r: FieldRecipe) -> None:
    """Train one recipe and write its trace into FOLDER, under its name."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    trainer = _pretrained(r)
    initial = {"step": -1, **trainer.validate()}
    monitor = Monitor(trainer.model, trainer.optimizer, trainer.scaler)
    ends: list[dict[str, float]] = []
    failed_at: int | None = None
    cut_since: int | None = None
    while trainer.step < r.steps:
        trainer.train_step(monitor)
        last = trainer.losses[-1]
        if failed_at is None and not np.isfinite(last):
            failed_at = trainer.step - 1
        if (r.fault or "").endswith("_cut") and trainer.since >= 0:
            exploded = not last < _EXPLODED * trainer.losses[0]
            cut_since = trainer.step if exploded and cut_since is None else cut_since
            if cut_since is not None and trainer.step - cut_since >= r.span:
                break
        over = failed_at is not None and trainer.step > failed_at + r.stop_after
        if trainer.step % _VALIDATE_EVERY == 0 or trainer.step == r.steps:
            ends.append({"step": trainer.step - 1, **trainer.validate()})
            given = ends[-1]["per"] * (100 if r.percent else 1)
            monitor.validated(given, ends[-1]["loss"])
        if over:
            break
    signals = monitor.signals()
    losses = np.array(trainer.losses)
    later: list[dict[str, float]] = []
    if failed_at is None and r.fault in _MAYBE_SLOW and ends[-1]["true_per"] > LEARNED:
        while trainer.step < 2 * r.steps and (not later or later[-1]["true_per"] > LEARNED):
            for _ in range(max(100, r.steps // 4)):
                trainer.train_step()
            later.append({"step": trainer.step - 1, **trainer.validate()})
            if not np.isfinite(trainer.losses[-1]):
                break
    finite = losses[np.isfinite(losses)]
    start = float(np.median(finite[:5])) if len(finite) else np.nan
    grown = np.flatnonzero((losses > _EXPLODED * abs(start)) & (np.arange(len(losses)) >= r.onset))
    facts = {
        "recipe": asdict(r),
        "steps": len(losses),
        "failed_at": failed_at,
        "skipped": trainer.skipped,
        "initial": initial,
        "ends": ends,
        "later": later,
        "start_loss": start,
        "grown_at": int(grown[0]) if len(grown) else None,
        "cut": cut_since is not None,
        "end_loss": float(np.median(finite[-20:])) if len(finite) else np.nan,
        "largest_loss": float(finite.max()) if len(finite) else np.nan,
        "least_loss": float(finite.min()) if len(finite) else np.nan,
    }
    save_trace(FOLDER / f"{r.name}.npz", facts, signals)


def _is_built(r: FieldRecipe) -> bool:
    """Whether there is a trace of the recipe as it is now."""
    path = FOLDER / f"{r.name}.npz"
    if not path.exists():
        return False
    with np.load(path) as one:
        return bool(FieldRecipe(**json.loads(str(one["facts"]))["recipe"]) == r)


def pack(half: Half) -> None:
    """Pack the traces of a half into one small file."""
    arrays: dict[str, Any] = {}
    there = [r for r in field_recipes() if r.half == half and _is_built(r)]
    for r in there:
        with np.load(FOLDER / f"{r.name}.npz") as one:
            facts = json.loads(str(one["facts"])) | {"recipe": asdict(r)}
            ends = [[end["step"], end["per"], end["loss"]] for end in facts["ends"]]
            arrays |= packed_columns(r.name, json.dumps(facts), one, np.reshape(ends, (-1, 3)))
    np.savez_compressed(packed(half), **arrays)
    print(f"{half}: {len(there)} trainings, {packed(half).stat().st_size / 1e6:.1f} MB")


def _build_all(half: Half, only: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [r for r in field_recipes() if r.half == half and only in r.name and not _is_built(r)]
    for r in track(missing, "trainings"):
        try:
            build(r)
        except Exception as error:
            print(f"{r.name}: {type(error).__name__}: {error}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "pack"])
    parser.add_argument("--half", choices=get_args(Half), default="field_design")
    parser.add_argument("--only", default="", help="only recipes whose name contains this text")
    options = parser.parse_args()
    if options.command == "build":
        _build_all(options.half, options.only)
    else:
        pack(options.half)


if __name__ == "__main__":
    main()
