"""Where a Hugging Face user finds the callback: `from stability.huggingface import StabilityCallback`."""

from stability.watch.huggingface import StabilityCallback

__all__ = ["StabilityCallback"]
