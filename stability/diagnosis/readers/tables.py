"""A recording in a trial's folder: `signals.csv` and `validation.csv`, and `recording.json` if a log was its source."""

import json
from pathlib import Path
from typing import get_args

from stability.core.errors import StabilityError
from stability.core.files import RECORDING, SIGNALS_FILE, VALIDATION_FILE, write_atomically
from stability.core.text import load_json
from stability.diagnosis.readers.recording import Recording, Unit
from stability.diagnosis.table import read_table, write_table


def read_tables(folder: Path) -> Recording:
    """Read the recording in a trial's folder. Tables that are missing are empty.

    Raises:
        StabilityError: A file is damaged.
    """
    name, path = folder.resolve().name, folder / RECORDING
    signals, validation = read_table(folder / SIGNALS_FILE), read_table(folder / VALIDATION_FILE)
    if not path.exists():
        return Recording(name, signals, validation)
    try:
        found = load_json(path.read_text())
        metric, unit, notes = found["metric"], found["unit"], found["notes"]
        if not isinstance(metric, str) or unit not in get_args(Unit) or not all(isinstance(n, str) for n in notes):
            raise ValueError("a value is of another kind")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StabilityError(f"{path} is damaged, or another version of the program wrote it ({error}).") from None
    return Recording(name, signals, validation, notes=(*notes,), metric=metric, unit=unit)


def write_tables(folder: Path, recording: Recording) -> None:
    """Write a recording into a trial's folder. It replaces what is there.

    Raises:
        OSError: It could not be written.
    """
    write_table(folder / SIGNALS_FILE, recording.signals)
    write_table(folder / VALIDATION_FILE, recording.validation)
    facts = {"metric": recording.metric, "unit": recording.unit, "notes": [*recording.notes]}
    write_atomically(folder / RECORDING, json.dumps(facts, indent=2).encode())
