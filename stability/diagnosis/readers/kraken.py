"""kraken's progress bars, one for each `stage`, which is an epoch: `stage 3/∞ ━━━ 80/80 0:08:14 … val_accuracy: 0.94`.

A narrow terminal breaks the metrics into several lines. A log may have each state of a bar.
"""

import re
from collections.abc import Iterator

from stability.diagnosis.readers.columns import read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RowCollector

_BAR = re.compile(r"\s*stage (\d{1,9})/\S+ +[━╸╺-]+ (\d+)/(\d+)\s")
_METRIC = re.compile(r"\b(\w+):\s+([-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf))(?![\w:/.])")
_LONGEST = 10_000  # characters of a bar with its metrics


def read(log: Log) -> list[Recording] | None:
    """Read a text file with such bars. Lines of other kinds are ignored."""
    rows = RowCollector()
    for stage, bar in _full_bars(log):
        titles, cells = zip(("epoch", stage), *_METRIC.findall(bar), strict=True)
        rows.add_row(read_row(titles, cells))
    return rows.recordings(log.path.name) or None


def _full_bars(log: Log) -> Iterator[tuple[int, str]]:
    """The last full bar of each stage, with its metrics. Beside other bars stand the metrics of the stage before."""
    stage, full, goes_on = -1, "", False
    for line in log:
        if bar := _BAR.match(line):
            if int(bar[1]) != stage and full:
                yield stage, full
                full = ""
            stage, goes_on = int(bar[1]), bar[2] == bar[3]
            full = line[:_LONGEST] if goes_on else full
        elif goes_on and line.startswith("  ") and len(full) < _LONGEST:
            full += line[:_LONGEST]
        else:
            goes_on = False
    if full:
        yield stage, full
