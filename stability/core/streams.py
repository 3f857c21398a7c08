"""Random streams, each derived from (seed, purpose, step), never from the order of execution.

So a trial draws the same numbers alone and in a stack, resumed or not. Trials with the same seed share their
batches, noise and dropout: they are paired.
"""

import hashlib

import numpy as np
import torch


def seed_of(seed: int, purpose: str, step: int = 0) -> int:
    """Return the 63-bit seed of one stream."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def torch_stream(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Make a PyTorch generator on the device, at the start of its stream."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, step))


def numpy_stream(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """Make a NumPy generator at the start of its stream."""
    return np.random.default_rng(seed_of(seed, purpose, step))
