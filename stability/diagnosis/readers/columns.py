"""Finds our signals under the names that other programs give them, and reads their numbers."""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Names are compared in lower case, without what stands before a slash. If a log has several names for one signal, the
# one that comes first here counts.
_ALIASES = {
    "step": ("global_step", "step", "_step", "train_step", "iteration", "iter", "batch"),
    "loss": ("loss", "train_loss", "training_loss", "ctc_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "grad norm", "total_norm", "grad_norm_total"),
    "lr": ("lr", "learning_rate"),
    "blank_fraction": ("blank_fraction", "blank_share", "blank_rate"),
    "per": ("per", "val_per", "eval_per", "wer", "val_wer", "cer", "val_cer"),
    "val_loss": ("val_loss", "eval_loss", "validation_loss", "valid_loss"),
}
_RANKS = {alias: (name, rank) for name, aliases in _ALIASES.items() for rank, alias in enumerate(aliases)}
TRAINING = ("loss", "grad_norm", "lr", "blank_fraction")  # what is measured in a training step
VALIDATION = ("per", "val_loss")  # and in a validation

_NAN_IN_C = re.compile(r"[-+]?nan\(\w*\)", re.IGNORECASE)
_NOT_MEASURED = ("", "none", "null", "na")
_LARGEST_STEP = 2**53  # not every whole number beyond it is a float

Row = tuple[int | None, dict[str, float]]
"""The step of a row, None if it has none, and its numbers under our names."""


@lru_cache(maxsize=64)
def find_columns(titles: tuple[str, ...]) -> dict[str, int]:
    """Find the step and the signals that are known.

    Returns:
        The index of each in `titles`, under our name for it.
    """
    found: dict[str, tuple[int, int]] = {}
    for index, title in enumerate(titles):
        *prefixes, plain = title.strip().lower().split("/")
        name, rank = _RANKS.get(plain, ("", 0))
        validating = any(prefix.startswith(("val", "eval", "test")) for prefix in prefixes)
        training = any(prefix.startswith("train") for prefix in prefixes)
        if name == "loss" and validating:
            name = "val_loss"
        known = name and not (validating and name in TRAINING) and not (training and name in VALIDATION)
        if known and (name not in found or rank < found[name][0]):
            found[name] = (rank, index)
    return {name: index for name, (_, index) in found.items()}


def read_row(titles: tuple[str, ...], cells: Sequence[object]) -> Row:
    """Read the step and the numbers of a row. Columns that are not known (a message, a date) are ignored.

    Raises:
        ValueError: A known column holds no number. The message names the column and what was found.
    """
    step, values = None, dict[str, float]()
    for name, index in find_columns(titles).items():
        try:
            number = _read_number(cells[index])
            if name == "step":
                step = read_step(number)
            elif number is not None:
                values[name] = number
        except ValueError as error:
            raise ValueError(f"column {titles[index]!r}: {error}, found {str(cells[index])[:40]!r}") from None
    return step, values


def read_step(number: float | None) -> int | None:
    """Turn a number into a step; None and NaN are no step. ValueError if it is not a whole number."""
    if number is None or math.isnan(number):
        return None
    if abs(number) > _LARGEST_STEP or not number.is_integer():
        raise ValueError("expected a whole number")
    return int(number)


def _read_number(cell: Any) -> float | None:
    """The number in a cell; None if it is empty or holds an object. ValueError if it holds other text."""
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except TypeError:  # an object, a list, null
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.copysign(math.inf, cell > 0 or -1)
    except ValueError:
        text = str(cell).strip()
    if text.lower() in _NOT_MEASURED:
        return None
    if _NAN_IN_C.fullmatch(text):
        return math.nan
    raise ValueError("expected a number or nothing")
