"""Checkpoints as the official trainer writes them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Compiled(nn.Module):
    """A module as torch.compile wraps it: every name gets a prefix."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content
