"""AllenNLP's folder of a training, with a file per epoch: `metrics_epoch_0.json`, `metrics_epoch_1.json`, …"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from stability.diagnosis.readers.columns import flat, read_row
from stability.diagnosis.readers.log import DamagedLogError
from stability.diagnosis.readers.recording import Recording, RowCollector

_EPOCH = re.compile(r"metrics_epoch_(\d+)\.json")


def group_by_run(files: Sequence[Path]) -> dict[Path, list[Path]]:
    """Group such files by their folder, in the order of the epochs."""
    numbers = {file: int(match[1]) for file in files if (match := _EPOCH.fullmatch(file.name))}
    runs = dict[Path, list[Path]]()
    for file in sorted(numbers, key=numbers.__getitem__):
        runs.setdefault(file.parent, []).append(file)
    return runs


def read(run: Path, files: Sequence[Path], name: str, progress: Callable[[int, int], None]) -> list[Recording]:
    """Read the files of one training. Each is short, so that there is no progress to report.

    Raises:
        StabilityError: A file is damaged.
        OSError: A file cannot be read.
    """
    rows = RowCollector()
    for number, file in enumerate(files):
        try:
            metrics = json.loads(file.read_text(errors="replace"))
            if not isinstance(metrics, dict):
                raise ValueError("expected an object with the metrics of an epoch")
            row = {"epoch": number} | flat(metrics)
            rows.add_row(read_row(tuple(row), tuple(row.values())))
        except (ValueError, RecursionError) as error:
            raise DamagedLogError(f"{file}: {error}.") from None
    return rows.recordings(name)
