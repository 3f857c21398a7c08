"""What the fifth test half trains on besides the tasks before: spelled speech with double letters; its encoders."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.corpus import _GRU
from experiments.detection.field.recipe import FieldRecipe, Task
from experiments.detection.field.third_task import _Front, _Places

LETTERS, CHANNELS = 26, 40
_WORDS = 80
_PATCH = 6  # frames


def letters(task: Task, count: int, draw: np.random.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """Each letter goes from one smooth spectrum to another, and runs into the next. Some words have double letters."""
    fixed = np.random.default_rng(53)
    rough = fixed.normal(0, 1, (LETTERS + 1, 2, CHANNELS + 6))
    spectra = np.stack([rough[..., i : i + CHANNELS] for i in range(7)]).mean(0) * 3
    words = []
    for _ in range(_WORDS):
        word = fixed.choice(LETTERS, size=fixed.integers(2, 5), replace=False) + 1
        place = int(fixed.integers(len(word)))
        words.append(np.insert(word, place, word[place]) if fixed.random() < 0.2 else word)
    shares = 1 / np.arange(1, _WORDS + 1) ** 0.6
    for _ in range(count):
        spoken = [words[i] for i in draw.choice(_WORDS, size=draw.integers(1, 4), p=shares / shares.sum())]
        frames, last = [np.zeros((2, CHANNELS))], 0
        for letter in np.concatenate(spoken):
            time = np.linspace(0, 1, int(draw.integers(3, 6)))[:, None]
            if letter == last:  # CTC needs a blank between them
                frames.append(np.zeros((2, CHANNELS)))
            frames.append((1 - time) * spectra[letter, 0] + time * spectra[letter, 1])
            last = letter
        x = np.concatenate([*frames, np.zeros((2, CHANNELS))])
        x[1:-1] = 0.25 * x[:-2] + 0.5 * x[1:-1] + 0.25 * x[2:]
        tilt = draw.normal(0, 0.3) * np.linspace(-1, 1, CHANNELS)
        yield torch.from_numpy(x * draw.uniform(0.7, 1.3) + tilt).float(), torch.from_numpy(np.concatenate(spoken))


def fifth_encoder(r: FieldRecipe, features: int) -> nn.Module | None:
    """Make an encoder of (B, T, F), with outputs (B, T / 2, units); None if it is one of the halves before."""
    h = r.units
    match r.model:
        case "transformer":
            layer = nn.TransformerEncoderLayer(h, 4, 2 * h, dropout=0.0, batch_first=True, norm_first=True)
            layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(h), enable_nested_tensor=False)
            return nn.Sequential(_Front(features, h, 5), _Places(), layers)
        case "deep_speech":
            front = _Spectrogram(8)
            return nn.Sequential(
                front, _Gru(8 * ((features + 1) // 2), h, over_batch=r.fault == "batch_first_forgotten")
            )
        case "patches":
            day = nn.Sequential(nn.Linear(features, features), nn.Softsign())
            over_batch = r.fault == "batch_first_forgotten"
            return nn.Sequential(day, _Patches(), _Gru(_PATCH * features, h, over_batch=over_batch))
    return None


class _Spectrogram(nn.Module):
    """A convolution over time and channels that halves both, and batch norm."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, maps, (5, 5), stride=2, padding=2)
        self.norm = nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of each frame, (B, T / 2, maps * F / 2), from (B, T, F)."""
        y: Tensor = F.hardtanh(self.norm(self.convolution(x.unsqueeze(1))), 0, 20)
        return y.transpose(1, 2).flatten(2)


class _Patches(nn.Module):
    """Every second frame, with those around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T / 2, _PATCH * F) from (B, T, F)."""
        return F.pad(x, (0, 0, 2, _PATCH - 3)).unfold(1, _PATCH, 2).flatten(2)


class _Gru(nn.Module):
    """A GRU in both directions, over time; or over the utterances of the batch, if somebody forgot `batch_first`."""

    def __init__(self, inputs: int, units: int, *, over_batch: bool) -> None:
        super().__init__()
        self.forth, self.back = (_GRU(inputs, units // 2, 1, batch_first=True) for _ in range(2))
        self.over_batch = over_batch

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of both directions, (B, T, units)."""
        if self.over_batch:
            x = x.transpose(0, 1)
        y = torch.cat([self.forth(x)[0], self.back(x.flip(1))[0].flip(1)], -1)
        return y.transpose(0, 1) if self.over_batch else y
