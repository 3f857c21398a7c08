"""What the seventh test half trains on: number plates, bases of DNA, signs; its encoders and its optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.field.recipe import FieldRecipe, Task
from experiments.detection.field.sixth_task import _along
from experiments.detection.field.third_task import _Front, _TwoFrames

SEVENTH_CLASSES: dict[Task, int] = {"plates": 26, "bases": 4, "signs": 22}
SEVENTH_FEATURES: dict[Task, int] = {"plates": 14, "bases": 6, "signs": 18}
LETTERS_OF_PLATES = 16  # the first classes; the others are digits
_REACH = 6  # frames on each side that attention sees
_Utterances = Iterable[tuple[np.ndarray, list[int]]]


def seventh_utterances(task: Task, count: int, draw: np.random.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """Make utterances without noise: features (T, F) and labels."""
    match task:
        case "plates":
            made = _plates(count, draw)
        case "bases":
            made = _bases(count, draw)
        case _:
            made = _signs(count, draw)
    return ((torch.from_numpy(x).float(), torch.tensor(labels)) for x, labels in made)


def _plates(count: int, draw: np.random.Generator) -> _Utterances:
    """Images of number plates, column by column: some letters, then digits. They differ in height and contrast."""
    fixed, rows = np.random.default_rng(83), SEVENTH_FEATURES["plates"]
    glyphs = (fixed.random((SEVENTH_CLASSES["plates"] + 1, 5, rows - 3)) < 0.45) * 1.0
    for _ in range(count):
        letters = draw.integers(1, LETTERS_OF_PLATES + 1, draw.integers(0, 3))
        digits = draw.integers(LETTERS_OF_PLATES + 1, SEVENTH_CLASSES["plates"] + 1, draw.integers(3, 6))
        labels = [*letters.tolist(), *digits.tolist()]
        above = int(draw.integers(4))
        columns = [np.zeros((2, rows))]
        for label in labels:
            ink = np.zeros((5 + int(draw.integers(1, 3)), rows))
            ink[:5, above : above + rows - 3] = glyphs[label]
            columns.append(ink)
        x = np.concatenate(columns)
        blurred = 0.7 * x + 0.3 * np.roll(x, 1, 1)
        yield draw.uniform(1.5, 2.5) * blurred - 0.7, labels


def _bases(count: int, draw: np.random.Generator) -> _Utterances:
    """The current through a pore: its level depends on the base in it, and a little on both neighbours.

    Each frame has a few samples. The level drifts, and there is a short peak when the next base comes.
    """
    levels, side = np.array([0, -1.5, -0.5, 0.5, 1.5]), np.array([0, 0.3, -0.2, 0.15, -0.3])
    samples = SEVENTH_FEATURES["bases"]
    for _ in range(count):
        labels = draw.integers(1, 5, draw.integers(5, 11)).tolist()
        around = [0, *labels, 0]
        frames = [np.zeros((2, samples))]
        for place, label in enumerate(labels):
            current = np.full((int(draw.integers(4, 7)), samples), levels[label])
            current += side[around[place]] + side[around[place + 2]]
            current[0, :2] += 2.0
            frames.append(current)
        x = np.concatenate([*frames, np.zeros((1, samples))])
        yield x + draw.normal(0, 0.15) + np.linspace(0, draw.normal(0, 0.2), len(x))[:, None], labels


def _signs(count: int, draw: np.random.Generator) -> _Utterances:
    """The joints of someone who signs. The hands go from sign to sign; people differ in size and place."""
    joints = SEVENTH_FEATURES["signs"]
    ways = np.random.default_rng(89).normal(0, 1, (SEVENTH_CLASSES["signs"] + 1, 3, joints))
    for _ in range(count):
        labels = (draw.choice(SEVENTH_CLASSES["signs"], size=draw.integers(2, 6), replace=False) + 1).tolist()
        points = np.concatenate([np.zeros((1, joints)), *(ways[label] for label in labels), np.zeros((1, joints))])
        times = [int(draw.integers(2, 4)) for _ in points[1:]]
        way = [_along(points[i : i + 2], time + 1)[:-1] for i, time in enumerate(times)]
        yield draw.uniform(0.8, 1.2) * np.concatenate(way) + draw.normal(0, 0.2, joints), labels


def seventh_encoder(r: FieldRecipe, features: int) -> nn.Module:
    """Make an encoder of (B, T, F), with outputs (B, T / 2, units). Its last part has inputs as wide as its outputs."""
    h = r.units
    match r.model:
        case "vgg":
            return nn.Sequential(_Images(features, h), _Around(h))
        case "squeezed":
            return nn.Sequential(_Front(features, h, 5), _Squeezed(h), _Squeezed(h))
        case _:
            return nn.Sequential(_TwoFrames(), nn.Linear(2 * features, h), _Around(h), _Nearby(h), _Nearby(h))


class _Images(nn.Module):
    """Two convolutions over time and features, as over an image, and a layer norm."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.out = nn.Linear(12 * ((features + 3) // 4), units)
        self.norm = nn.LayerNorm(units)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T / 2, units) from (B, T, F)."""
        y = F.max_pool2d(F.relu(self.first(x.unsqueeze(1))), 2, ceil_mode=True)
        y = F.max_pool2d(F.relu(self.second(y)), (1, 2), ceil_mode=True)
        return F.relu(self.norm(self.out(y.transpose(1, 2).flatten(2))))


class _Around(nn.Module):
    """A convolution over time, and the input added."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(units, units, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to (B, T, H)."""
        return x + F.relu(self.convolution(x.transpose(1, 2)).transpose(1, 2))


class _Squeezed(nn.Module):
    """A convolution in each channel, one over the channels, batch norm, a gate from the mean over time, the input."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.own = nn.Conv1d(units, units, 5, padding=2, groups=units)
        self.mixed = nn.Conv1d(units, units, 1)
        self.norm = nn.BatchNorm1d(units)
        self.gate = nn.Sequential(nn.Linear(units, units // 4), nn.ReLU(), nn.Linear(units // 4, units), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, H)."""
        y: Tensor = self.norm(self.mixed(self.own(x.transpose(1, 2)))).transpose(1, 2)
        return F.silu(x + y * self.gate(y.mean(1, keepdim=True)))


class _Nearby(nn.Module):
    """Attention to the frames nearby, and two linear layers; norms before each."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(units) for _ in range(2)])
        self.attention = nn.MultiheadAttention(units, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(units, 2 * units), nn.GELU(), nn.Linear(2 * units, units))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (B, T, H)."""
        place = torch.arange(x.shape[1])
        far = (place[:, None] - place).abs() > _REACH
        y: Tensor = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=far, need_weights=False)[0]
        fed: Tensor = self.feed(self.norms[1](x))
        return x + fed


class ScheduleFree(torch.optim.Optimizer):
    """Adam without a schedule: gradients are taken between fast weights and their mean, with which one validates."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.steps, self.total = 0, 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        self.steps += 1
        for group in self.param_groups:
            between, decay = group["betas"]
            self.total += group["lr"] ** 2
            share = group["lr"] ** 2 / self.total
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"fast": p.clone(), "exp_avg_sq": torch.zeros_like(p)}
                mean = self.mean(p)
                square = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - decay) / (1 - decay**self.steps)
                state["fast"].sub_(group["lr"] * p.grad / (square.sqrt() + group["eps"]))
                p.copy_(state["fast"].lerp(mean.lerp(state["fast"], share), between))

    @torch.no_grad()
    def mean(self, p: Tensor) -> Tensor:
        """Return the mean of the fast weights."""
        between = self.defaults["betas"][0]
        return p.clone() if not self.state[p] else (p - (1 - between) * self.state[p]["fast"]) / between
