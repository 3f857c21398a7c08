"""What the sixth test half trains on: handwriting, a recorded cortex, dialled numbers; its encoders and optimizers."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.detection.field.recipe import FieldRecipe, Task
from experiments.detection.field.third_task import _Recurrent, _TwoFrames

SIXTH_CLASSES: dict[Task, int] = {"pen": 20, "cortex": 28, "dialled": 10}
SIXTH_FEATURES: dict[Task, int] = {"pen": 7, "cortex": 36, "dialled": 20}
_WORDS = 50
_LATENTS = 6
_Utterances = Iterable[tuple[np.ndarray, list[int]]]


def sixth_utterances(task: Task, count: int, draw: np.random.Generator) -> Iterable[tuple[Tensor, Tensor]]:
    """Make utterances without noise: features (T, F) and labels."""
    match task:
        case "pen":
            made = _written(count, draw)
        case "cortex":
            made = _spoken_in_mind(count, draw)
        case _:
            made = _dialled(count, draw)
    return ((torch.from_numpy(x).float(), torch.tensor(labels)) for x, labels in made)


def _along(points: np.ndarray, frames: int) -> np.ndarray:
    """Walk on straight lines from point to point: (points, F) to (frames, F)."""
    time = np.linspace(0, len(points) - 1, frames)
    return np.stack([np.interp(time, range(len(points)), one) for one in points.T], 1)


def _written(count: int, draw: np.random.Generator) -> _Utterances:
    """The way of a pen. Each character has four points; writers differ in slant and size, and lift the pen between."""
    shapes = np.random.default_rng(61).uniform(-1, 1, (SIXTH_CLASSES["pen"] + 1, 4, 2))
    for _ in range(count):
        labels = (draw.choice(SIXTH_CLASSES["pen"], size=draw.integers(3, 7), replace=False) + 1).tolist()
        ways, down = [np.zeros((1, 2))], [0.0]
        for place, label in enumerate(labels):
            way = _along(shapes[label], int(draw.integers(6, 9))) + np.array([2.5 * place, 0])
            ways += [way, way[-1:] + np.array([0.5, 0.3])]
            down += [1.0] * len(way) + [0.0]
        size, slant = draw.uniform(0.8, 1.25), draw.normal(0, 0.15)
        way = size * np.concatenate(ways) @ np.array([[1, 0], [slant, 1]])
        move = np.diff(way, axis=0, prepend=way[:1])
        length = np.linalg.norm(move, axis=1, keepdims=True)
        height = way[:, 1:]
        yield np.hstack([2 * move, move / (length + 0.1), length, height, np.array(down)[:, None]]), labels


def _spoken_in_mind(count: int, draw: np.random.Generator) -> _Utterances:
    """Rates of many channels that follow few latents. A phoneme is a way through them, and runs into the next."""
    fixed = np.random.default_rng(67)
    ways = fixed.normal(0, 1, (SIXTH_CLASSES["cortex"] + 1, 3, _LATENTS))
    mixing = fixed.normal(0, 0.5, (_LATENTS, SIXTH_FEATURES["cortex"]))
    words = [fixed.choice(SIXTH_CLASSES["cortex"], size=fixed.integers(2, 5), replace=False) + 1 for _ in range(_WORDS)]
    shares = 1 / np.arange(1, _WORDS + 1) ** 0.5
    quiet = np.zeros((2, _LATENTS))
    for _ in range(count):
        labels: list[int] = []
        for word in draw.choice(_WORDS, size=draw.integers(1, 4), p=shares / shares.sum()):
            labels += [label for label in words[word].tolist() if labels[-1:] != [label]]
        latents = np.concatenate([_along(ways[label], int(draw.integers(4, 7))) for label in labels])
        rates = np.concatenate([quiet, latents, quiet]) @ mixing + draw.normal(0, 0.2, SIXTH_FEATURES["cortex"])
        yield 2 * np.log1p(np.exp(rates)) - 1.4, labels


def _dialled(count: int, draw: np.random.Generator) -> _Utterances:
    """Numbers that are read out. Digits may be doubled, and there is a pause after each."""
    features = SIXTH_FEATURES["dialled"]
    spectra = np.random.default_rng(71).normal(0, 1.2, (SIXTH_CLASSES["dialled"] + 1, 3, features))
    for _ in range(count):
        labels = (draw.integers(SIXTH_CLASSES["dialled"], size=draw.integers(3, 8)) + 1).tolist()
        frames = [np.zeros((int(draw.integers(1, 4)), features))]
        for label in labels:
            frames.append(_along(spectra[label], int(draw.integers(4, 8))))
            frames.append(np.zeros((int(draw.integers(2, 4)), features)))
        yield np.concatenate(frames) * draw.uniform(0.7, 1.3), labels


def sixth_encoder(r: FieldRecipe, features: int) -> nn.Module:
    """Make an encoder of (B, T, F), with outputs (B, T / 2, units). Its last part has inputs as wide as its outputs."""
    h = r.units
    match r.model:
        case "tdnn":
            return nn.Sequential(_Spliced(features, h, 2), _Spliced(h, h, 1))
        case "ssm":
            free = (r.fault or "").startswith("unstable_state")
            front = nn.Sequential(_TwoFrames(), nn.Linear(2 * features, h))
            return nn.Sequential(front, _StateSpace(h, free=free), _StateSpace(h, free=free))
        case _:
            return nn.Sequential(
                _TwoFrames(),
                nn.Linear(2 * features, h),
                _Recurrent(nn.LSTM(h, h // 2, 2, batch_first=True, bidirectional=True)),
            )


class _Spliced(nn.Module):
    """A layer of a TDNN: five frames, a linear layer, batch norm."""

    def __init__(self, inputs: int, units: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(5 * inputs, units)
        self.norm = nn.BatchNorm1d(units)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T / stride, units) from (B, T, F)."""
        windows = F.pad(x, (0, 0, 2, 2)).unfold(1, 5, self.stride).flatten(2)
        y: Tensor = self.norm(F.relu(self.linear(windows)).transpose(1, 2))
        return y.transpose(1, 2)


class _StateSpace(nn.Module):
    """A state in each channel that decays, half of them backwards in time; a gate, and the input added.

    Args:
        units: The number of channels.
        free: Whether nothing keeps the decay from becoming growth.
    """

    def __init__(self, units: int, *, free: bool) -> None:
        super().__init__()
        self.free = free
        self.decay = nn.Parameter(torch.linspace(0.05, 2, units // 2).repeat(2))
        self.norm = nn.LayerNorm(units)
        self.out = nn.Linear(units, 2 * units)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to (B, T, H)."""
        place = torch.arange(x.shape[1])
        since = place[:, None] - place  # of one frame at another
        decay = self.decay if self.free else self.decay.abs()
        forth, back = decay.chunk(2)
        kernel = torch.cat(
            [
                torch.exp(-since.clamp(min=0)[..., None] * forth) * (since >= 0)[..., None],
                torch.exp(since.clamp(max=0)[..., None] * back) * (since <= 0)[..., None],
            ],
            -1,
        )
        states = torch.einsum("tsh,bsh->bth", kernel, self.norm(x))
        return x + F.glu(self.out(F.gelu(states)), -1)


def sixth_optimizer(r: FieldRecipe, parameters: list[Any]) -> torch.optim.Optimizer | None:
    """Make the optimizer of a recipe; None if it is one of the halves before."""
    match r.optimizer:
        case "muon":
            return Orthogonal(parameters, r.lr)
        case "prodigy":
            return Prodigy(parameters, r.lr, grows=r.fault != "small_step")
    return None


class Orthogonal(torch.optim.Optimizer):
    """Muon: momentum whose matrices are made orthogonal; that of a vector gets the same length."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                average.lerp_(p.grad, 0.1)
                direction = average.reshape(len(p), -1) if p.ndim > 1 else average[None]
                direction = direction / (direction.norm() + 1e-12)
                for _ in range(5):  # Newton and Schulz
                    square = direction @ direction.T
                    direction = 3.4445 * direction + (2.0315 * square @ square - 4.775 * square) @ direction
                p.sub_(0.2 * group["lr"] * max(direction.shape) ** 0.5 * direction.view_as(p))


class Prodigy(torch.optim.Optimizer):
    """Adam that estimates its own rate; `lr` is what it is multiplied by, usually 1.

    Args:
        parameters: What it trains.
        lr: The multiple.
        grows: Whether the estimate may grow from where it begins.
    """

    def __init__(self, parameters: Any, lr: float, *, grows: bool) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.grows = grows
        self.start = self.distance = 1e-6
        self.numerator = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each weight."""
        d, ratio, total = self.distance, self.distance / self.start, 0.0
        self.numerator *= 0.999**0.5
        held = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, group in held:
            state = self.state[p]
            if not state:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq", "sum")}
                state |= {"step": 0, "first": p.clone(), **zeros}
            state["step"] += 1
            self.numerator += ratio * d * group["lr"] * float((p.grad * (state["first"] - p)).sum())
            state["exp_avg"].mul_(0.9).add_(0.1 * d * p.grad)
            state["exp_avg_sq"].mul_(0.999).add_(0.001 * d**2 * p.grad.square())
            state["sum"].mul_(0.999**0.5).add_(ratio * d * group["lr"] * p.grad)
            total += float(state["sum"].abs().sum())
        for p, group in held:
            state = self.state[p]
            p.sub_(d * group["lr"] * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + d * group["eps"]))
        if self.grows and total > 0:
            self.distance = max(d, self.numerator / total)
