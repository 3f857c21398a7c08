"""A folder: of one of our own trials, or with logs of other programs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.table import read_table

_LOGS = (".csv", ".jsonl", ".json", ".log", ".txt")
_NAMES = ("training_log",)
_MOST = 200  # files that are tried


def read(path: Path, read_file: Callable[[Path], list[Recording]]) -> list[Recording]:
    """Read a trial's signals and validations, or the trainings in the files of another folder.

    Files without a training are ignored. Of Hugging Face's checkpoints the last one is read: it repeats the others.
    """
    if (path / SIGNALS_FILE).exists():
        return [_read_trial(path)]
    files = sorted(file for file in path.rglob("*") if file.suffix in _LOGS or file.name in _NAMES)
    checkpoints = [file for file in files if file.name == "trainer_state.json"]
    checkpoints.sort(key=lambda file: file.stat().st_size)
    runs = list[Recording]()
    for file in [file for file in files if file not in checkpoints[:-1]][:_MOST]:
        with suppress(StabilityError):
            inside = str(file.relative_to(path).parent)
            prefix = "" if inside == "." else f"{inside}/"
            runs += [replace(run, name=f"{prefix}{run.name}") for run in read_file(file)]
    if not runs:
        raise StabilityError(
            f"{path} has no {SIGNALS_FILE} with rows: it is not a trial's folder, or no step has been trained. It "
            "contains no other log that can be read."
        )
    return runs


def _read_trial(path: Path) -> Recording:
    signals = read_table(path / SIGNALS_FILE)
    if not len(signals.steps):
        raise StabilityError(
            f"{path} has no {SIGNALS_FILE} with rows: it is not a trial's folder, or no step has been trained."
        )
    return Recording(path.resolve().name, signals, read_table(path / VALIDATION_FILE))
