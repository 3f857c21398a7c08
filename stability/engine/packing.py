"""Packing: the real frames of a batch, one after another in time, without the padding of short utterances.

As in PyTorch's PackedSequence, rows are sorted by length, longest first, and a frame has a slot for each row that has
not ended. In a stack a frame has as many slots as the trial with the most such rows needs, so some may be padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stability.core.device import to_device


@dataclass(frozen=True)
class Packing:
    """The row and frame of each of the N slots of K packed batches."""

    counts: list[int]  # slots of each frame; N is their sum
    own_slots: list[Tensor]  # for each trial, the slots that are not padding
    row: Tensor  # (K, N) the row of each slot
    frame: Tensor  # (N,) the frame of each slot


def pack(frames: Tensor) -> Packing:
    """Compute the packing of K batches of B rows. frames: (K, B) frames of each row, on the host."""
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
    """Unpack (K, N, C) to (K, longest, rows, C), with zeros where there is no slot."""
    k, _, c = packed.shape
    trial = torch.arange(k, device=packed.device).unsqueeze(1)
    place = (trial, to_device(packing.frame, packed.device), to_device(packing.row, packed.device))
    return packed.new_zeros(k, longest, rows, c).index_put(place, packed)
