"""The learning rate at a step."""

import math


def learning_rate(step: int, lr_max: float, lr_min: float, warmup_steps: int, decay_steps: int) -> float:
    """Linear from 0 over the warm-up, cosine to `lr_min` at `decay_steps`, constant after. Step 0 has rate 0."""
    if step < warmup_steps:
        return lr_max * step / warmup_steps
    if step >= decay_steps:
        return lr_min
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    return lr_min + (lr_max - lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
