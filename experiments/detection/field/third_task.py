"""What the third test half trains on: lines of text, spike counts, words in silence; its encoders and optimizers."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.corpus import _GRU
from experiments.detection.field.recipe import FieldRecipe, Task

THIRD_CLASSES: dict[Task, int] = {"lines": 20, "spaced": 20, "spikes": 20, "keywords": 8, "commands": 8}
THIRD_FEATURES: dict[Task, int] = {"lines": 16, "spaced": 16, "spikes": 24, "keywords": 12, "commands": 12}
SPACE = 1  # the class of the gap between words in `spaced`
_DAYS = 5
_Utterances = Iterable[tuple[Tensor, Tensor]]


def third_utterances(task: Task, count: int, draw: np.random.Generator) -> _Utterances:
    """Make utterances without noise: features (T, F) and labels."""
    match task:
        case "lines" | "spaced":
            return _lines(task, count, draw)
        case "spikes":
            return _spikes(count, draw)
    return _words_in_silence(task, count, draw)


def _labels(draw: np.random.Generator, count: int, classes: int) -> list[int]:
    """Draw labels, from 1, of which no two neighbours are the same."""
    labels: list[int] = []
    while len(labels) < count:
        label = int(draw.integers(1, classes + 1))
        if labels[-1:] != [label]:
            labels.append(label)
    return labels


def _lines(task: Task, count: int, draw: np.random.Generator) -> _Utterances:
    """Images of lines of text, column by column. A glyph is 3 to 5 columns of ink, and stands higher or lower."""
    fixed, rows = np.random.default_rng(41), THIRD_FEATURES[task]
    widths = fixed.integers(3, 6, THIRD_CLASSES[task] + 1)
    glyphs = [(fixed.random((width, rows - 2)) < 0.4) * 1.0 for width in widths]
    for _ in range(count):
        labels = _labels(draw, int(draw.integers(3, 8)), THIRD_CLASSES[task])
        if task == "spaced":
            letters = [label for label in labels if label != SPACE]
            labels = [label for letter in letters for label in (letter, SPACE)][:-1]
        columns = [np.zeros((2, rows))]
        for label in labels:
            ink = np.zeros((int(widths[label]) + int(draw.integers(0, 2)), rows))
            above = int(draw.integers(3))
            if label != SPACE or task == "lines":
                ink[: widths[label], above : above + rows - 2] = glyphs[label]
            columns.append(ink)
        x = np.concatenate([*columns, np.zeros((1, rows))]) * draw.uniform(0.7, 1.3)
        yield torch.from_numpy(2 * x - 0.7).float(), torch.tensor(labels)


def _spikes(count: int, draw: np.random.Generator) -> _Utterances:
    """Roots of spike counts. Each label is a path through the rates of all channels, which differ from day to day."""
    fixed, channels = np.random.default_rng(43), THIRD_FEATURES["spikes"]
    paths = fixed.normal(0, 1, (THIRD_CLASSES["spikes"] + 1, 3, channels))
    gains, offsets = fixed.uniform(0.7, 1.3, (_DAYS, channels)), fixed.normal(0, 0.3, (_DAYS, channels))
    for number in range(count):
        labels = _labels(draw, int(draw.integers(3, 8)), THIRD_CLASSES["spikes"])
        frames = [np.zeros((2, channels))]
        for label in labels:
            time = np.linspace(0, 2, int(draw.integers(3, 6)))
            frames.append(np.stack([np.interp(time, range(3), path) for path in paths[label].T], 1))
        day = number % _DAYS
        yield torch.from_numpy(np.concatenate(frames) * gains[day] + offsets[day]).float(), torch.tensor(labels)


def _words_in_silence(task: Task, count: int, draw: np.random.Generator) -> _Utterances:
    """One to three words, or one command, in a recording that is silent for most of its time."""
    fixed, features = np.random.default_rng(47), THIRD_FEATURES[task]
    words = fixed.normal(0, 1.3, (THIRD_CLASSES[task] + 1, 2, features))
    for _ in range(count):
        labels = _labels(draw, 1 if task == "commands" else int(draw.integers(1, 4)), THIRD_CLASSES[task])
        frames = [np.zeros((int(draw.integers(4, 14)), features))]
        for label in labels:
            time = np.linspace(0, 1, int(draw.integers(4, 8)))[:, None]
            frames.append((1 - time) * words[label, 0] + time * words[label, 1])
            frames.append(np.zeros((int(draw.integers(4, 14)), features)))
        yield torch.from_numpy(np.concatenate(frames)).float(), torch.tensor(labels)


def third_encoder(r: FieldRecipe, features: int) -> nn.Module:
    """Make an encoder of (B, T, F), with outputs (B, T / 2, units)."""
    h = r.units
    match r.model:
        case "crnn":
            return nn.Sequential(_Front(features, h, 3), _Recurrent(nn.LSTM(h, h // 2, bidirectional=True)))
        case "stacked_gru":
            return nn.Sequential(_TwoFrames(), _Recurrent(_GRU(2 * features, h, 2, batch_first=True)))
        case "post_norm":
            layer = nn.TransformerEncoderLayer(h, 2, 2 * h, dropout=0.0, batch_first=True)
            layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            return nn.Sequential(_Front(features, h, 5), _Places(), layers)
        case "quartz":
            blocks: list[nn.Module] = [_Separable(h, 5), _Separable(h, 5)]
        case _:
            blocks = [_Dilated(h, 1), _Dilated(h, 2)]
    if r.fault == "layers_skipped":
        blocks = [_Skipped(block, r.strength) for block in blocks]
    return nn.Sequential(_Front(features, h, 5), *blocks)


class _Front(nn.Module):
    """A convolution that leaves every other frame."""

    def __init__(self, features: int, units: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(features, units, width, stride=2, padding=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time."""
        return F.relu(self.convolution(x.transpose(1, 2)).transpose(1, 2))


class _TwoFrames(nn.Module):
    """Each two frames become one."""

    def forward(self, x: Tensor) -> Tensor:
        """Stack frames, (B, T, F) to (B, T / 2, 2 F)."""
        x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
        return x.reshape(len(x), -1, 2 * x.shape[2])


class _Recurrent(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the states (B, T, H)."""
        y: Tensor
        if self.layer.batch_first:
            y = self.layer(x)[0]
            return y
        y = self.layer(x.transpose(0, 1))[0]
        return y.transpose(0, 1)


class _Places(nn.Module):
    """Adds the sines and cosines of the frame's place."""

    def forward(self, x: Tensor) -> Tensor:
        """Add them to (B, T, H)."""
        half = x.shape[2] // 2
        angles = torch.arange(x.shape[1])[:, None] * torch.exp(-math.log(1000) * torch.arange(half) / half)
        return x + 0.5 * torch.cat([angles.sin(), angles.cos()], 1)


class _Separable(nn.Module):
    """A convolution in each channel, one over the channels, batch norm, and the input added."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.own = nn.Conv1d(units, units, width, padding=width // 2, groups=units)
        self.mixed = nn.Conv1d(units, units, 1)
        self.norm = nn.BatchNorm1d(units)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, H)."""
        y: Tensor = self.norm(self.mixed(self.own(x.transpose(1, 2)))).transpose(1, 2)
        return F.relu(x + y)


class _Dilated(nn.Module):
    """A convolution over the frames before, and the input added."""

    def __init__(self, units: int, dilation: int) -> None:
        super().__init__()
        self.before = 2 * dilation
        self.convolution = nn.Conv1d(units, units, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, H)."""
        y: Tensor = self.convolution(F.pad(x.transpose(1, 2), (self.before, 0))).transpose(1, 2)
        return x + F.relu(y)


class _Skipped(nn.Module):
    """Leaves out a layer now and then, in training."""

    def __init__(self, layer: nn.Module, share: float) -> None:
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, or return the input."""
        if self.training and float(torch.rand(())) < self.share:
            return x
        y: Tensor = self.layer(x)
        return y


class NovoGrad(torch.optim.Optimizer):
    """Momentum of gradients that are divided by an average of the norm of their layer."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, square = self.state[p], p.grad.square().sum()
                state["square"] = square if "square" not in state else 0.75 * state["square"] + 0.25 * square
                scaled = p.grad / (state["square"].sqrt() + 1e-8) + group["weight_decay"] * p
                average = state.setdefault("exp_avg", torch.zeros_like(p))
                average.mul_(0.95).add_(scaled)
                p.sub_(group["lr"] * average)


def third_optimizer(r: FieldRecipe, parameters: list[Any]) -> torch.optim.Optimizer | None:
    """Make the optimizer of a recipe; None if it is one of the halves before."""
    match r.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, r.lr, weight_decay=r.weight_decay)
        case "noam_adam":
            return torch.optim.Adam(parameters, r.lr, betas=(0.9, 0.98), eps=1e-9)
        case "adamax":
            return torch.optim.Adamax(parameters, r.lr)
        case "novograd":
            return NovoGrad(parameters, r.lr, weight_decay=r.weight_decay)
        case "rms_momentum":
            return torch.optim.RMSprop(parameters, r.lr, momentum=0.9, centered=True, eps=1e-6)
    return None
