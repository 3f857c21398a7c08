"""The callback for Lightning: `from stability.lightning import StabilityCallback`."""

from stability.watch.lightning import StabilityCallback

__all__ = ["StabilityCallback"]
