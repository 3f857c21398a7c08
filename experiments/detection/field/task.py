"""The tasks of the field corpus, and what is trained on them: utterances, decoders and optimizers."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.corpus import _GRU
from experiments.detection.field.fifth_task import CHANNELS, LETTERS, letters
from experiments.detection.field.recipe import FieldRecipe, Task
from experiments.detection.field.seventh_task import (
    SEVENTH_CLASSES,
    SEVENTH_FEATURES,
    seventh_encoder,
    seventh_utterances,
)
from experiments.detection.field.sixth_task import (
    SIXTH_CLASSES,
    SIXTH_FEATURES,
    sixth_encoder,
    sixth_optimizer,
    sixth_utterances,
)
from experiments.detection.field.third_task import (
    THIRD_CLASSES,
    THIRD_FEATURES,
    third_encoder,
    third_optimizer,
    third_utterances,
)

CLASSES: dict[Task, int] = {
    "short": 10,
    "long": 24,
    "words": 40,
    "homophones": 40,
    "letters": LETTERS,
    **THIRD_CLASSES,
    **SIXTH_CLASSES,
    **SEVENTH_CLASSES,
}  # without blank
_FEATURES: dict[Task, int] = {
    "short": 12,
    "long": 12,
    "words": 20,
    "homophones": 20,
    "letters": CHANNELS,
    **THIRD_FEATURES,
    **SIXTH_FEATURES,
    **SEVENTH_FEATURES,
}
_WORDS = 60
_HALVED = (
    "conv_gru",
    "bigru",
    "crnn",
    "quartz",
    "stacked_gru",
    "post_norm",
    "tcn",
    "transformer",
    "deep_speech",
    "patches",
    "tdnn",
    "ssm",
    "blstm",
    "vgg",
    "squeezed",
    "nearby",
)  # models with half the frames


@dataclass
class Batch:
    """Utterances, padded."""

    x: Tensor  # (B, T, F)
    frames: Tensor  # (B,)
    labels: Tensor  # (B, L), from 1; 0 is blank
    counts: Tensor  # (B,)

    def take(self, rows: Tensor) -> "Batch":
        """Return some utterances, padded to the longest of them."""
        frames, counts = self.frames[rows], self.counts[rows]
        longest, most = int(frames.max()), max(1, int(counts.max()))
        return Batch(self.x[rows, :longest], frames, self.labels[rows, :most], counts)

    def shorten(self) -> None:
        """Drop the last labels of targets for which there are too few frames."""
        self.counts = torch.minimum(self.counts, (self.frames - 1) // 2).clamp(min=1)


@cache
def utterances(task: Task, count: int, seed: int) -> Batch:
    """Make utterances without noise."""
    makers = {"short": _glides, "long": _glides, "words": _speech, "homophones": _speech, "letters": letters}
    makers |= dict.fromkeys(SIXTH_CLASSES, sixth_utterances)
    makers |= dict.fromkeys(SEVENTH_CLASSES, seventh_utterances)
    make = makers.get(task, third_utterances)
    xs, ys = zip(*make(task, count, np.random.default_rng(seed)), strict=True)
    return Batch(
        nn.utils.rnn.pad_sequence([*xs], batch_first=True),
        torch.tensor([len(x) for x in xs]),
        nn.utils.rnn.pad_sequence([*ys], batch_first=True),
        torch.tensor([len(y) for y in ys]),
    )


def _glides(task: Task, count: int, draw: np.random.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """Each label is a glide between two spectra that are its own, with gaps between."""
    features = _FEATURES[task]
    spectra = torch.randn(2, CLASSES[task] + 1, features, generator=torch.Generator().manual_seed(23)) * 1.3
    shares = 1 / np.arange(2, CLASSES[task] + 2) ** 0.7  # some labels are common, some are rare
    for _ in range(count):
        low, high = (2, 7) if task == "short" else (6, 13)
        labels = draw.choice(CLASSES[task], size=draw.integers(low, high), p=shares / shares.sum()) + 1
        parts = [torch.zeros(int(draw.integers(1, 3)), features)]
        for label in labels.tolist():
            glide = torch.linspace(0, 1, int(draw.integers(2, 6))).unsqueeze(1)
            parts.append((1 - glide) * spectra[0, label] + glide * spectra[1, label])
            parts.append(torch.zeros(int(draw.integers(1, 3)), features))
        yield torch.cat(parts) * float(draw.uniform(0.8, 1.2)), torch.from_numpy(labels)


def _speech(task: Task, count: int, draw: np.random.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """Each label is two peaks in the spectrum, that rise and fall. Labels of a word follow one another without a gap.

    A few words are common, most are rare. Speakers differ in loudness and pitch.
    """
    fixed = np.random.default_rng(31)
    peaks = fixed.uniform(0, _FEATURES[task], (3, CLASSES[task] + 1))  # the first, and start and end of the second
    if task == "homophones":
        half = CLASSES[task] // 2
        peaks[:, half + 1 :] = peaks[:, 1 : half + 1]
    words = [_without_repeats(fixed, int(fixed.integers(2, 5)), CLASSES[task]) for _ in range(_WORDS)]
    shares = 1 / np.arange(1, _WORDS + 1) ** 0.8
    channels = np.arange(_FEATURES[task])
    for _ in range(count):
        spoken = draw.choice(_WORDS, size=draw.integers(1, 4), p=shares / shares.sum())
        if task == "homophones":
            texts = [_without_repeats(draw, len(words[word]), CLASSES[task]) for word in spoken]
        else:
            texts = [words[word] for word in spoken]
        pitch = draw.normal(0, 0.4)
        frames = [np.zeros((int(draw.integers(1, 3)), len(channels)))]
        for text in texts:
            for label in text:
                length = int(draw.integers(2, 5))
                time = (np.arange(length)[:, None] + 0.5) / length
                first, start, end = peaks[:, label] + pitch
                second = start + (end - start) * time
                shape = np.exp(-((channels - first) ** 2) / 3) + 0.8 * np.exp(-((channels - second) ** 2) / 3)
                frames.append(3 * np.sin(np.pi * time) * shape)
            frames.append(np.zeros((int(draw.integers(1, 3)), len(channels))))
        x = np.concatenate(frames) * draw.uniform(0.8, 1.25)
        yield torch.from_numpy(x).float(), torch.tensor([label for text in texts for label in text])


def _without_repeats(draw: np.random.Generator, length: int, classes: int) -> list[int]:
    labels: list[int] = []
    while len(labels) < length:
        label = int(draw.integers(1, classes + 1))
        if not labels or label != labels[-1]:
            labels.append(label)
    return labels


class Decoder(nn.Module):
    """An encoder from PyTorch's layers, and a linear head."""

    def __init__(self, r: FieldRecipe) -> None:
        super().__init__()
        self.kind, self.fault = r.model, r.fault
        self.pool = {"all_infeasible": 64, "subsampled_too_far": int(r.strength)}.get(r.fault or "", 1)
        self.subsampling = 2 if r.model in _HALVED else self.pool
        self.encoder = _encoder(r)
        self.dropout = nn.Dropout(r.dropout) if r.dropout else None
        self.head = nn.Linear(2 * r.units if r.model == "bigru" else r.units, CLASSES[r.task] + 1)
        if r.fault == "unused_decoder":
            self.other_decoder = nn.Sequential(nn.Linear(r.units, 2 * r.units), nn.Linear(2 * r.units, 40))
        self.scale = 1.0  # of the logits

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, T, C) from features (B, T, F)."""
        if self.pool > 1:
            x = F.avg_pool1d(x.transpose(1, 2), self.pool, ceil_mode=True).transpose(1, 2)
        if self.kind == "conv_norm":
            x = x * 20 + 300  # filter banks that nobody has normalised
        if self.kind in ("conv", "conv_norm"):
            x = self.encoder(x.transpose(1, 2)).transpose(1, 2)
        elif self.kind in ("gru", "lstm"):
            x = self.encoder(x)[0]
        else:
            x = self.encoder(x)
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.head(x.detach() if self.fault == "encoder_cut_off" else x)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits.softmax(-1) if self.fault in ("softmax_twice", "probabilities_not_logs") else logits


def _encoder(r: FieldRecipe) -> nn.Module:
    h, features = r.units, _FEATURES[r.task]
    match r.model:
        case "gru":
            return _GRU(features, h, 1, batch_first=True)
        case "lstm":
            return nn.LSTM(features, h, 1, batch_first=True)
        case "attention":
            layer = nn.TransformerEncoderLayer(h, 2, 2 * h, dropout=0.0, batch_first=True, norm_first=True)
            front = nn.Conv1d(features, h, 5, padding=2)
            return nn.Sequential(_Transposed(front), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
        case "deep_conv" | "deep_conv_norm":
            norm = _Transposed(nn.BatchNorm1d(h)) if r.model == "deep_conv_norm" else nn.LayerNorm(h)
            blocks = [_Residual(copy.deepcopy(norm), _Transposed(nn.Conv1d(h, h, 5, padding=2))) for _ in range(2)]
            return nn.Sequential(_Transposed(nn.Conv1d(features, h, 5, padding=2)), *blocks)
        case "conformer":
            return nn.Sequential(_Transposed(nn.Conv1d(features, h, 3, padding=1)), _ConformerBlock(h))
        case "conv_gru" | "bigru":
            front = nn.Conv1d(features, h, 5, stride=2, padding=2)
            recurrent = _BothWays(h, h) if r.model == "bigru" else _First(_GRU(h, h, 1, batch_first=True))
            return nn.Sequential(_Transposed(front), nn.ReLU(), recurrent)
        case "crnn" | "quartz" | "stacked_gru" | "post_norm" | "tcn":
            return third_encoder(r, features)
        case "tdnn" | "ssm" | "blstm":
            return sixth_encoder(r, features)
        case "vgg" | "squeezed" | "nearby":
            return seventh_encoder(r, features)
    return _plain_convolutions(r, features)


def _plain_convolutions(r: FieldRecipe, features: int) -> nn.Module:
    h = r.units
    norm = (lambda: nn.BatchNorm1d(h, momentum=0.0 if r.fault == "norm_frozen" else 0.1)) if "norm" in r.model else None
    layers: list[nn.Module] = []
    for inputs in (features, h):
        layers += [nn.Conv1d(inputs, h, 5, padding=2), *([norm()] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


class _Transposed(nn.Module):
    """A layer for (B, F, T), on (B, T, F)."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time."""
        y: Tensor = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return y


class _First(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the states."""
        y: Tensor = self.layer(x)[0]
        return y


class _BothWays(nn.Module):
    """A bidirectional GRU."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.forth, self.back = (_First(_GRU(inputs, units, 1, batch_first=True)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of both directions, (B, T, 2H)."""
        return torch.cat([self.forth(x), self.back(x.flip(1)).flip(1)], -1)


class _Residual(nn.Module):
    """Normalises, applies a layer, and adds the result."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: Tensor) -> Tensor:
        """Add what the layer makes of the input."""
        y: Tensor = self.layer(self.norm(x))
        return x + F.relu(y)


class _ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, a gated convolution in each channel, and the other half."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(units) for _ in range(4)])
        self.feeds = nn.ModuleList(
            [nn.Sequential(nn.Linear(units, 2 * units), nn.SiLU(), nn.Linear(2 * units, units)) for _ in range(2)]
        )
        self.attention = nn.MultiheadAttention(units, 2, batch_first=True)
        self.gate = nn.Linear(units, 2 * units)
        self.convolution = _Transposed(nn.Conv1d(units, units, 7, padding=3, groups=units))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, H)."""
        before, attended, convolved, after = self.norms
        x = x + 0.5 * self.feeds[0](before(x))
        y: Tensor = attended(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + F.silu(self.convolution(F.glu(self.gate(convolved(x)), -1)))
        y = self.feeds[1](after(x))
        return x + 0.5 * y


class Lion(torch.optim.Optimizer):
    """The sign of an average of gradients."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight by the rate."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (0.9 * average + 0.1 * p.grad).sign())
                average.lerp_(p.grad, 0.01)


def make_optimizer(r: FieldRecipe, model: Decoder) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe. The rate is set at every step."""
    if r.fault == "not_in_optimizer":
        model = copy.deepcopy(model)
    parameters: list[Any] = [*model.parameters()]
    if r.fault == "encoder_not_in_optimizer":
        parameters = [*model.head.parameters()]
    if r.fault in ("unfrozen_later", "unfrozen_too_fast"):
        parameters = [{"params": [*part.parameters()]} for part in (model.head, model.encoder)]
    if r.fault == "biases_only":
        parameters = [p for p in model.parameters() if p.ndim == 1]
    decay = r.weight_decay
    if (own := third_optimizer(r, parameters) or sixth_optimizer(r, parameters)) is not None:
        return own
    match r.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, r.lr, momentum=0.9, weight_decay=decay)
        case "nesterov":
            momentum = r.strength if r.fault == "momentum_too_high" else 0.9
            return torch.optim.SGD(parameters, r.lr, momentum=momentum, weight_decay=decay, nesterov=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, r.lr)
        case "radam":
            return torch.optim.RAdam(parameters, r.lr)
        case "adafactor":
            return torch.optim.Adafactor(parameters, r.lr)
        case "nadam":
            return torch.optim.NAdam(parameters, r.lr, weight_decay=decay, decoupled_weight_decay=True)
        case "adagrad":
            return torch.optim.Adagrad(parameters, r.lr)
        case "adadelta":
            return torch.optim.Adadelta(parameters, r.lr)
        case "amsgrad":
            return torch.optim.Adam(parameters, r.lr, amsgrad=True)
        case "lion":
            return Lion(parameters, r.lr, weight_decay=decay)
    return torch.optim.AdamW(parameters, r.lr, eps=r.epsilon, weight_decay=decay, fused=True)
