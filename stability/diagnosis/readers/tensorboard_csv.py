"""What TensorBoard's page exports for one chart, as CSV: `Wall time,Step,Value`."""

from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import find_name
from stability.diagnosis.readers.recording import Recording, record_lines

_HEADER = ("wall time", "step", "value")


def read(log: Log) -> list[Recording] | None:
    """Read a file with that header. The name of the metric stands at most in the name of the file."""
    if _cells(log.first.lower()) != _HEADER:
        return None
    notes = list[str]()
    title = log.path.stem.rpartition("-tag-")[2].replace("_", "/", 1) if "-tag-" in log.path.stem else log.path.stem
    names = (
        name for name in ("value", title, title.replace("/", "_")) if (n := find_name(name)) and n.signal != "step"
    )
    if not (title := next(names, "")):
        title = "loss"
        notes.append("The file does not name its metric. Its values were taken for the training loss.")

    def read_line(line: str) -> Row | None:
        cells = _cells(line)
        if cells == _HEADER or cells == _cells(log.first):
            return None
        if len(cells) != len(_HEADER):
            raise ValueError(f"expected {len(_HEADER)} cells, as in the header, found {len(cells)}")
        return read_row(("step", title), cells[1:])

    return record_lines(log, read_line, notes=notes)


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip().strip('"') for cell in line.strip().split(","))
