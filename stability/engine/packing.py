"""Packing: the real frames of a batch, one after another in time, without the padding behind short utterances.

As in PyTorch's PackedSequence, rows are sorted by falling length, and the slots of a frame are the rows that are still
going on. In a stack the slots are those of the trial that has the most rows going on, so a few may be padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stability.core.device import to_device


@dataclass(frozen=True)
class Packing:
    """Where the N slots of K packed batches lie in (row, frame)."""

    counts: list[int]  # rows that are going on, by frame; N is their sum
    own_slots: list[Tensor]  # of each trial, the slots that are not padding
    row: Tensor  # (K, N) the row of each slot
    frame: Tensor  # (N,) its frame


def pack(frames: Tensor) -> Packing:
    """The packing of batches whose rows have that many frames: (K, B), on the host."""
    lengths, order = frames.sort(dim=1, descending=True, stable=True)
    times = torch.arange(int(lengths.max()))
    going_on = (lengths.unsqueeze(2) > times).sum(1)  # (K, T)
    counts = going_on.max(0).values
    frame = times.repeat_interleave(counts)
    position = torch.arange(len(frame)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    row = order[:, position]
    own_slots = [torch.nonzero(position < own[frame]).squeeze(1) for own in going_on]
    return Packing(counts.tolist(), own_slots, row, frame)


def unpack(packed: Tensor, packing: Packing, rows: int, longest: int) -> Tensor:
    """(K, N, C) as (K, longest, rows, C), zero where there is no slot."""
    k, _, c = packed.shape
    trial = torch.arange(k, device=packed.device).unsqueeze(1)
    place = (trial, to_device(packing.frame, packed.device), to_device(packing.row, packed.device))
    return packed.new_zeros(k, longest, rows, c).index_put(place, packed)
