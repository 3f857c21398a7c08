"""Made-up signals, and what is found in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stability.diagnosis.table import Table, append_table

Values = Sequence[float] | NDArray[np.float64]


def table(steps: Sequence[int] | NDArray[np.int64] | None = None, every: int = 10, **signals: Values) -> Table:
    """Signals at the steps 0, 1, 2 … or those given. `x__y` is named x.y; one that has fewer values than the longest
    was measured at every `every`th step.
    """
    rows = max((len(values) for values in signals.values()), default=0)
    values, measured = np.full((rows, len(signals)), np.nan, np.float32), np.zeros((rows, len(signals)), bool)
    for column, own in enumerate(signals.values()):
        at = slice(None) if len(own) == rows else slice(None, None, every)
        values[at, column], measured[at, column] = own, True
    names = tuple(name.replace("__", ".") for name in signals)
    return Table(names, np.arange(rows) if steps is None else np.asarray(steps), values, measured)


NOTHING = table()


def blank_plateau(steps: int = 300, **changes: Any) -> Table:
    """The signals of a decoder that says only blank from the start, and learns nothing behind it."""
    signals: dict[str, Any] = {
        "loss": np.full(steps, 60.0),
        "loss_per_label": np.full(steps, 3.0),
        "blank_fraction": np.ones(steps),
        "distinct_phonemes": np.zeros(steps),
        "frame_information": np.full(steps // 10, 1e-3),
        "lr": np.full(steps, 2e-3),
        "update_ratio": np.full(steps // 10, 5e-4),
        "weight_norm": np.full(steps // 10, 20.0),
        "effective_lr": np.full(steps // 10, 0.02),
        "epsilon_dominance": np.full(steps // 10, 0.98),
    }
    return table(**(signals | changes))


def numbers(text: str) -> list[float]:
    """The numbers in a text, in their order; percentages as shares."""
    found = []
    for word in text.replace("=", " ").split():
        bare = word.strip("(),.:;")
        try:
            found.append(float(bare.removesuffix("%")) / (100 if bare.endswith("%") else 1))
        except ValueError:
            continue
    return found


def append_rows(path: Path, names: Sequence[str], steps: ArrayLike, values: ArrayLike) -> None:
    """Append rows in which every signal was measured. See `append_table`."""
    rows = np.asarray(values, np.float32)
    append_table(path, Table((*names,), np.asarray(steps, np.int64), rows, np.ones(rows.shape, bool)))
