"""Choices that are measured once on a kind of GPU, and remembered for later processes."""

import json
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from stability.core.files import cache_folder, write_atomically
from stability.engine.memory import is_out_of_memory

STACK = 4  # trials in the stack that is timed, for stacks of all sizes
COUNTS = [64] * 60  # rows of each frame of the batch that is timed

_ROUNDS = 5
_FILE = "measured.json"  # {device, versions and what is chosen: choice}


def remembered_choice(device: torch.device, what: str, choices: Sequence[str], measure: Callable[[], str]) -> str:
    """Return the choice that was made on such a device before; else measure, and remember it.

    Args:
        device: A GPU.
        what: What is chosen.
        choices: What can be chosen. A file with anything else is not believed.
        measure: Returns one of the choices.
    """
    key = f"{what} on {torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    choice = _remembered().get(key, "")
    if choice not in choices:
        choice = measure()
        try:  # without a place for the file each process measures again
            cache_folder().mkdir(parents=True, exist_ok=True)
            write_atomically(cache_folder() / _FILE, json.dumps(_remembered() | {key: choice}, indent=2).encode())
        except (OSError, RuntimeError):
            pass
    return choice


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of five rounds, after one that may compile; infinity if the work cannot be done there.

    Raises:
        RuntimeError: Memory ran out.
    """
    times = []
    try:
        for _ in range(_ROUNDS + 1):
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return float("inf")
    return median(times[1:])


def _remembered() -> dict[str, str]:
    try:
        content = json.loads((cache_folder() / _FILE).read_text())
        return dict(content)
    except (OSError, ValueError, TypeError, RuntimeError):  # RuntimeError: no home folder
        return {}
