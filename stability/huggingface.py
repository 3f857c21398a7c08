"""The callback for Hugging Face's Trainer: `from stability.huggingface import StabilityCallback`."""

from stability.watch.huggingface import StabilityCallback

__all__ = ["StabilityCallback"]
