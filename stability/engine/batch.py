"""The inputs of a stack at a step: the batch of each trial, augmented, with the trial axis in front."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stability.core.device import to_device
from stability.data.augment import add_noise, draw_cut, smooth
from stability.data.batches import Batch, training_batch
from stability.data.records import Split
from stability.engine.decoder import frames_of
from stability.engine.stack import Stack


class Inputs(NamedTuple):
    """The inputs of the K trials of a stack at a step. `x` and `labels` are on the device, the rest on the host."""

    x: Tensor  # (K, B, T, F)
    frames: Tensor  # (K, B) output frames of each utterance
    labels: Tensor  # (K, B, L)
    label_counts: Tensor  # (K, B)
    days: list[list[int]]  # (K, D) the days in the batch
    rows_per_day: tuple[int, ...]
    bins: list[int]  # (K,) the length of each trial's own batch, without the padding to the longest of the stack


def training_inputs(stack: Stack, split: Split) -> Inputs:
    """Make the batch of each trial at its next step, with noise, cut and smoothing.

    Trials with the same seed, at the same step, share their batch and their noise, which is drawn once. Each scales it.
    """
    configs = stack.configs
    groups: dict[tuple[int, int, int, float], list[int]] = {}
    for k, (c, step) in enumerate(zip(configs, stack.steps, strict=True)):
        groups.setdefault((c.seed, step, c.aug.max_cut, c.aug.smooth_std), []).append(k)
    batches: dict[int, Batch] = {}
    cuts: dict[int, int] = {}
    x: dict[int, Tensor] = {}
    with stack.autocast():
        for (seed, step, max_cut, smooth_std), members in groups.items():
            batch = training_batch(split, configs[0].batch.size, configs[0].batch.days, seed=seed, step=step)
            cut = draw_cut(max_cut, seed, step)
            aug = [configs[k].aug for k in members]
            white, offset = ([getattr(a, f"{kind}_std") for a in aug] for kind in ("white_noise", "constant_offset"))
            features = batch.features.to(stack.device, stack.dtype)
            noisy = add_noise(features, white_stds=white, offset_stds=offset, seed=seed, step=step)
            smoothed = smooth(noisy[:, :, cut:], smooth_std)
            for k, own in zip(members, smoothed, strict=True):
                batches[k], cuts[k], x[k] = batch, cut, own
        order = range(len(configs))
        longest = max(own.shape[1] for own in x.values())
        stacked = torch.stack([F.pad(x[k], (0, 0, 0, longest - x[k].shape[1])) for k in order])
    stacked = stacked.to(stack.dtype)
    return _inputs(stack, stacked, [batches[k] for k in order], [cuts[k] for k in order])


def validation_inputs(stack: Stack, batch: Batch) -> Inputs:
    """Give every trial the same batch, smoothed as in its training, without noise and cut."""
    configs = stack.configs
    features = batch.features.to(stack.device)
    with stack.autocast():
        smoothed = {std: smooth(features, std) for std in {c.aug.smooth_std for c in configs}}
        x = torch.stack([smoothed[c.aug.smooth_std] for c in configs])
    return _inputs(stack, x, [batch] * len(configs), [0] * len(configs))


def micro_batches(stack: Stack, inputs: Inputs) -> list[slice]:
    """Divide the batch into parts, at most one for each row. Return the rows of each part."""
    size = inputs.frames.shape[1]
    count = min(stack.micro_batches, size)
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


def select_rows(inputs: Inputs, rows: slice) -> Inputs:
    """Select some rows of the batch. A day without any of these rows stays in the list, with 0 rows."""
    days = torch.arange(len(inputs.rows_per_day))
    counts = days.repeat_interleave(torch.tensor(inputs.rows_per_day))[rows].bincount(minlength=len(days))
    tensors = {name: getattr(inputs, name)[:, rows] for name in ("x", "frames", "labels", "label_counts")}
    return inputs._replace(**tensors, rows_per_day=tuple(counts.tolist()))


def _inputs(stack: Stack, x: Tensor, batches: Sequence[Batch], cuts: Sequence[int]) -> Inputs:
    model = stack.configs[0].model
    longest = max(b.labels.shape[1] for b in batches)
    labels = torch.stack([F.pad(b.labels, (0, longest - b.labels.shape[1])) for b in batches])
    return Inputs(
        x=x,
        frames=torch.stack([frames_of(b.bins - cut, model) for b, cut in zip(batches, cuts, strict=True)]),
        labels=to_device(labels, stack.device),
        label_counts=torch.stack([b.label_counts for b in batches]),
        days=[b.days for b in batches],
        rows_per_day=batches[0].rows_per_day,
        bins=[b.features.shape[1] - cut for b, cut in zip(batches, cuts, strict=True)],
    )
