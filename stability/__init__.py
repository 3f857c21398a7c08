"""Finds out, by controlled experiment, why a training run blew up or never got going."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stability.watch.monitor import Monitor

__all__ = ["Monitor"]


def __getattr__(name: str) -> Any:
    if name == "Monitor":
        from stability.watch.monitor import Monitor  # late: PyTorch takes seconds, and not every command needs it

        return Monitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
