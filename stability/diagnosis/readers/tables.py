"""A recording in a trial's folder: `signals.csv` and `validation.csv`, and `recording.json` if a log was its source."""

import json
from pathlib import Path
from typing import NamedTuple, get_args

from stability.core.errors import StabilityError
from stability.core.files import RECORDING, SIGNALS_FILE, VALIDATION_FILE, write_atomically
from stability.core.text import load_json
from stability.diagnosis.readers.recording import Recording, Unit
from stability.diagnosis.table import read_table, write_table


class Facts(NamedTuple):
    """What the tables do not say of a recording: see `Recording`."""

    metric: str = "PER"
    unit: Unit = "step"
    notes: tuple[str, ...] = ()


def read_tables(folder: Path) -> Recording:
    """Read the recording in a trial's folder. Tables that are missing are empty.

    Raises:
        StabilityError: A file is damaged.
    """
    signals, validation = read_table(folder / SIGNALS_FILE), read_table(folder / VALIDATION_FILE)
    return Recording(folder.resolve().name, signals, validation, **read_facts(folder)._asdict())


def read_facts(folder: Path) -> Facts:
    """Read what the tables in a trial's folder do not say.

    Raises:
        StabilityError: The file is damaged.
    """
    path = folder / RECORDING
    if not path.exists():
        return Facts()
    try:
        found = load_json(path.read_text())
        facts = Facts(found["metric"], found["unit"], (*found["notes"],))
        if not isinstance(facts.metric, str) or facts.unit not in get_args(Unit):
            raise ValueError("a value is of another kind")
        if not all(isinstance(note, str) for note in facts.notes):
            raise ValueError("a note is no text")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StabilityError(f"{path} is damaged, or another version of the program wrote it ({error}).") from None
    return facts


def write_tables(folder: Path, recording: Recording) -> None:
    """Write a recording into a trial's folder. It replaces what is there.

    Raises:
        OSError: It could not be written.
    """
    write_table(folder / SIGNALS_FILE, recording.signals)
    write_table(folder / VALIDATION_FILE, recording.validation)
    facts = {"metric": recording.metric, "unit": recording.unit, "notes": [*recording.notes]}
    write_atomically(folder / RECORDING, json.dumps(facts, indent=2).encode())
