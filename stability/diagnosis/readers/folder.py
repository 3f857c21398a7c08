"""The folder of one of our own trials."""

from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.table import read_table


def read(path: Path) -> Recording:
    """Read the trial's signals and validations."""
    signals = read_table(path / SIGNALS_FILE)
    if not len(signals.steps):
        raise StabilityError(
            f"{path} has no {SIGNALS_FILE} with rows: it is not a trial's folder, or no step has been trained."
        )
    return Recording(path.resolve().name, signals, read_table(path / VALIDATION_FILE))
