"""Where a Lightning user finds the callback: `from stability.lightning import StabilityCallback`."""

from stability.watch.lightning import StabilityCallback

__all__ = ["StabilityCallback"]
