"""A small CTC training: its model, its batches and its loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stability import Monitor


class Toy(nn.Module):
    """A CTC decoder of made-up frames."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16, dtype=dtype)
        self.head = nn.Linear(16, 5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(x)))
        return logits


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Frames `[6, 12, 8]` and labels `[6, 3]`: each label has three frames, followed by one empty frame."""
    labels = torch.randint(1, 5, (6, 3), generator=torch.Generator().manual_seed(step))
    x = torch.zeros(6, 12, 8)
    for i in range(3):
        x[:, 4 * i : 4 * i + 3] = F.one_hot(labels[:, i], 8).unsqueeze(1).float() * 3
    return x, labels


def ctc(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch: CTC, summed over labels, mean over utterances."""
    frames, counts = torch.full((6,), 12), torch.full((6,), 3)
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, frames, counts, reduction="sum") / 6


def assert_same_signals(found: Monitor, wanted: Monitor, *, but: str = "") -> None:
    """Check that two monitors have measured the same in all signals but one."""
    one, other = found.signals(), wanted.signals()
    assert one.steps.tolist() == other.steps.tolist()
    for name in {*one.names} - {but}:
        assert one[name] == pytest.approx(other[name], rel=1e-5, nan_ok=True), name
