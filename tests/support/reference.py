"""The official decoder and trainer once more, plainly from the published facts, to check ours against.

Of the code under test, it uses the data reader, the drawing of batches and the named random streams.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from stability.config.schema import Config, Schedule
from stability.core.streams import numpy_stream, torch_stream
from stability.data.batches import Batch, training_batch
from stability.data.records import Split

CLASSES = 41
# Normalised Gaussian of std 2; the taps beyond 4 bins are below 0.01.
SMOOTHING = np.exp(-0.5 * (np.arange(-4, 5) / 2.0) ** 2) / np.exp(-0.5 * (np.arange(-4, 5) / 2.0) ** 2).sum()

Masks = Callable[[str, Tensor], Tensor]  # purpose and activations in, activations after dropout out


class ReferenceDecoder(nn.Module):
    """Day layer, patches, GRU, head, under the names that public checkpoints use."""

    def __init__(
        self, features: int, days: int, layers: int, units: int, patch_size: int = 14, patch_stride: int = 4
    ) -> None:
        super().__init__()
        self.patch_size, self.patch_stride = patch_size, patch_stride
        self.day_weights = nn.ParameterList([nn.Parameter(torch.eye(features)) for _ in range(days)])
        self.day_biases = nn.ParameterList([nn.Parameter(torch.zeros(1, features)) for _ in range(days)])
        self.gru = nn.GRU(features * patch_size, units, layers, batch_first=True)
        self.out = nn.Linear(units, CLASSES)
        self.h0 = nn.Parameter(torch.zeros(1, 1, units))

    def forward(self, x: Tensor, days: Sequence[int], dropout: Masks = lambda _, h: h) -> Tensor:
        """Logits (B, T', 41) of features (B, T, F); `days` names the day of each row."""
        rows = [F.softsign(x[i] @ self.day_weights[d] + self.day_biases[d]) for i, d in enumerate(days)]
        x = dropout("input", torch.stack(rows))
        starts = range(0, x.shape[1] - self.patch_size + 1, self.patch_stride)
        h = torch.stack([x[:, s : s + self.patch_size].flatten(1) for s in starts], 1)
        for layer in range(self.gru.num_layers):
            if layer > 0:
                h = dropout(f"layer {layer}", h)
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(self.gru, f"{kind}_l{layer}") for kind in kinds]
            initial = self.h0.expand(1, len(days), -1).contiguous()
            h, _ = torch.gru(h, initial, weights, True, 1, 0.0, False, False, True)
        logits: Tensor = self.out(h)
        return logits


def reference(parameters: Mapping[str, Tensor], layers: int, dtype: torch.dtype) -> ReferenceDecoder:
    """The reference with one trial's parameters, whose day layers are one tensor each."""
    days, _, features = parameters["day_weights"].shape
    model = ReferenceDecoder(features, days, layers, parameters["h0"].shape[-1]).to(dtype)
    model.load_state_dict(by_official_name(parameters), strict=True)
    return model


def by_official_name(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one trial's tensors under their official names: one tensor for each day."""
    named = {n: p for n, p in parameters.items() if not n.startswith("day_")}
    for name in ("day_weights", "day_biases"):
        named |= {f"{name}.{day}": p for day, p in enumerate(parameters[name])}
    return named


def days_of_rows(batch: Batch) -> list[int]:
    return [day for day, n in zip(batch.days, batch.rows_per_day, strict=True) for _ in range(n)]


def smoothed(x: Tensor) -> Tensor:
    """Features (B, T, F) convolved in float64 with the official kernel; what lies outside is zero."""
    flat = x.double().numpy()
    out = np.zeros_like(flat)
    for b, f in np.ndindex(flat.shape[0], flat.shape[2]):
        out[b, :, f] = np.convolve(flat[b, :, f], SMOOTHING, mode="full")[4:-4]
    return torch.from_numpy(out)


class ReferenceTrainer:
    """One trial, trained as the official trainer does, on the batches and random numbers of our streams."""

    def __init__(self, config: Config, model: ReferenceDecoder) -> None:
        self.config, self.model = config, model
        self.dtype = model.h0.dtype
        self.optimizer = official_optimizer(config, model)
        self.scheduler = official_scheduler(config.schedule, self.optimizer)

    def step(self, split: Split, step: int) -> tuple[float, float]:
        """Train on the batch of that step. Return the loss, and the gradient's norm before the clip."""
        c = self.config
        batch = training_batch(split, c.batch.size, c.batch.days, seed=c.seed, step=step)
        x, cut = self._augmented(batch, step)
        frames = torch.tensor([math.floor((n - cut - 14) / 4 + 1) for n in batch.bins.tolist()])
        logits = self.model(x.to(self.dtype), days_of_rows(batch), self._dropout(step, frames.tolist()))
        losses = F.ctc_loss(
            logits.log_softmax(2).transpose(0, 1), batch.labels, frames, batch.label_counts, reduction="none"
        )
        if c.loss.reduction == "per_label_mean":
            losses = losses / batch.label_counts
        loss = losses.mean()
        self.optimizer.zero_grad()
        norm = self.update(loss)
        self.scheduler.step()
        return loss.item(), norm

    def update(self, loss: Tensor) -> float:
        """Run backward, clip and step. Return the gradient's norm before the clip."""
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm or math.inf)
        self.optimizer.step()
        return norm.item()

    def gradient_norm(self) -> float:
        """The norm of the gradient as it was applied."""
        gradients = [p.grad.double().flatten() for p in self.model.parameters() if p.grad is not None]
        return float(torch.cat(gradients).norm())

    def _augmented(self, batch: Batch, step: int) -> tuple[Tensor, int]:
        c, cpu = self.config, torch.device("cpu")
        b, _, f = batch.features.shape
        white = torch.randn(batch.features.shape, generator=torch_stream(c.seed, "white noise", step, cpu))
        offset = torch.randn(b, 1, f, generator=torch_stream(c.seed, "offset", step, cpu))
        x = batch.features + c.aug.white_noise_std * white + c.aug.constant_offset_std * offset
        cut = int(numpy_stream(c.seed, "cut", step).integers(0, c.aug.max_cut + 1))
        return smoothed(x[:, cut:]), cut

    def _dropout(self, step: int, frames: list[int]) -> Masks:
        c = self.config
        longest_first = sorted(range(len(frames)), key=lambda row: -frames[row])
        slots = [(row, t) for t in range(max(frames)) for row in longest_first if frames[row] > t]

        def dropout(purpose: str, h: Tensor) -> Tensor:
            p = c.model.input_dropout if purpose == "input" else c.model.rnn_dropout
            # Ours draws a mask for the real frames of the GRU's activations only, one after another in time.
            shape = h.shape if purpose == "input" else (len(slots), h.shape[2])
            stream = torch_stream(c.seed, f"dropout {purpose}", step, h.device)
            kept = (torch.rand(shape, generator=stream) >= p).to(h.dtype) / (1 - p)
            if purpose == "input":
                return h * kept
            mask = torch.ones_like(h)
            for slot, (row, t) in enumerate(slots):
                mask[row, t] = kept[slot]
            return h * mask

        return dropout


def official_optimizer(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """AdamW with the three official groups, in the official order."""
    o, s = config.optimizer, config.schedule
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "day": [], "other": []}
    for name, p in model.named_parameters():
        name = name.removeprefix("_orig_mod.")
        is_bias = name.startswith("gru.bias") or name == "out.bias"
        groups["day" if name.startswith("day_") else "bias" if is_bias else "other"].append(p)
    settings: list[dict[str, Any]] = [
        {"params": groups["bias"], "weight_decay": 0.0},
        {"params": groups["day"], "weight_decay": o.weight_decay_day, "lr": s.lr_max_day},
        {"params": groups["other"]},
    ]
    return torch.optim.AdamW(
        settings,
        lr=s.lr_max,
        betas=(o.beta1, o.beta2),
        eps=o.epsilon,
        weight_decay=o.weight_decay,
        fused=o.fused,
    )


def official_scheduler(s: Schedule, optimizer: torch.optim.Optimizer) -> LambdaLR:
    def factor(peak: float, floor: float) -> Callable[[int], float]:
        return lambda step: scheduled(step, peak, floor, s.warmup_steps, s.decay_steps) / peak

    main = factor(s.lr_max, s.lr_min)
    return LambdaLR(optimizer, [main, factor(s.lr_max_day, s.lr_min_day), main])


def scheduled(step: int, peak: float, floor: float, warmup: int, decay: int) -> float:
    """Learning rate at a step, by the half-angle form of the cosine."""
    if step < warmup:
        return peak / warmup * step
    share = min(1.0, (step - warmup) / (decay - warmup))
    return float(floor + (peak - floor) * np.cos(np.pi / 2 * share) ** 2)
