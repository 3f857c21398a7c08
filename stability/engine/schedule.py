"""The learning rate at a step."""

import math

from stability.config.schema import Schedule


def learning_rates(schedule: Schedule, step: int) -> tuple[float, float]:
    """Return the learning rate at a step, and that of the day layers."""
    s = schedule
    return (
        learning_rate(step, s.lr_max, s.lr_min, warmup_steps=s.warmup_steps, decay_steps=s.decay_steps),
        learning_rate(step, s.lr_max_day, s.lr_min_day, warmup_steps=s.warmup_steps, decay_steps=s.decay_steps),
    )


def learning_rate(step: int, lr_max: float, lr_min: float, *, warmup_steps: int, decay_steps: int) -> float:
    """Compute the rate: linear from 0 over the warm-up, cosine to `lr_min` at `decay_steps`, constant after.

    With a warm-up, step 0 has rate 0. `decay_steps` counts from step 0, so it includes the warm-up.
    """
    if step < warmup_steps:
        return lr_max * step / warmup_steps
    if step >= decay_steps:
        return lr_min
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    return lr_min + (lr_max - lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
