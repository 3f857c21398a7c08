"""The callback for Hydra apps: `hydra.callbacks.stability: {_target_: stability.hydra.StabilityCallback}`."""

from stability.app.callback import StabilityCallback

__all__ = ["StabilityCallback"]
