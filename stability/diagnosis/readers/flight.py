"""The folder in which a Monitor has left its flight recording."""

from pathlib import Path
from typing import Any

import numpy as np

from stability.core.errors import StabilityError
from stability.core.files import MONITOR_RECORD, MONITOR_SIGNALS, MONITOR_STATE
from stability.core.text import load_json
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.table import Table, read_table

_NUMBERS = ("nan", "inf", "-inf")  # as strict JSON writes them


def is_flight(folder: Path) -> bool:
    """Return whether the folder has a Monitor's recording."""
    return (folder / MONITOR_RECORD).exists() and (folder / MONITOR_SIGNALS).exists()


def read(folder: Path) -> Recording:
    """Read the signals and validations. The notes say what only the Monitor knew: utterances and modules.

    Raises:
        StabilityError: The recording is damaged.
    """
    path = folder / MONITOR_RECORD
    try:
        record = load_json(path.read_text())
        validations = np.array(
            [[float(row[name]) for name in ("step", "per", "loss")] for row in record["validations"]]
        ).reshape(-1, 3)
        signals = read_table(folder / MONITOR_SIGNALS)
        notes = _notes(record, folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StabilityError(f"{path} is not a Monitor's flight recording ({error!r}).") from None
    values = validations[:, 1:].astype(np.float32)
    validation = Table(("per", "loss"), validations[:, 0].astype(np.int64), values, ~np.isnan(values))
    return Recording(folder.resolve().name, signals, validation, tuple(notes))


def _notes(record: dict[str, Any], folder: Path) -> list[str]:
    verdict = record["verdict"]
    notes = [f"A Monitor recorded this at step {max(map(int, record['batches']), default=0)}."]
    if verdict is not None:
        told = {name: what for name, what in verdict["evidence"].items() if isinstance(what, str)}
        own = [name for name, what in told.items() if what not in _NUMBERS and not name.endswith(" expected")]
        notes += [f"{name}: {told[name]}" for name in own]
    return [*notes, f"The state before the update is in {folder / MONITOR_STATE}, for torch.load."]
