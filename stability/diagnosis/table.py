"""Tables of signals, and the files in a trial's folder that keep them.

A trial's folder has `signals.csv` with a row per training step, and `validation.csv` with a row per validation. Both
begin with a column `step`. Numbers are written so that they read back as the same float32. An empty field means that
the signal was not measured at that step; `nan` means that it was measured and is not a number. The registry in
`stability/diagnosis/signals.py` explains the columns.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.core.files import open_to_read, write_atomically
from stability.core.text import printable

_TAIL = 1 << 16  # bytes that are read first from the end of a file
_PIECE = 1 << 18  # bytes that are parsed at once


@dataclass(frozen=True)
class Table:
    """Signals by step: the one form of signals in the whole program.

    Attributes:
        names: The signals, in the order of the columns.
        steps: `[rows]`, ascending.
        values: `[rows, names]`, NaN if not measured.
        measured: `[rows, names]`, whether the signal was measured at that step.
    """

    names: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    measured: NDArray[np.bool_]

    def take(self, rows: "slice | NDArray[np.bool_]") -> "Table":
        """Return some of the rows: a slice, or a mask of all rows."""
        return Table(self.names, self.steps[rows], self.values[rows], self.measured[rows])

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return the column of a signal, `[rows]`. KeyError if the table does not have it."""
        if name not in self.names:
            raise KeyError(name)
        return self.values[:, self.names.index(name)]


def append_table(path: Path, table: Table) -> None:
    """Append the rows of `table` to a file. Their steps must come after those in the file.

    A file that does not exist, or is empty, gets its header first. A field that was not measured stays empty.
    """
    with path.open("ab") as file:
        header = _header(table) if file.tell() == 0 else ""
        file.write((header + _rows(table)).encode())


def write_table(path: Path, table: Table) -> None:
    """Replace a file by the rows of `table`, atomically."""
    write_atomically(path, (_header(table) + _rows(table)).encode())


def _header(table: Table) -> str:
    return ",".join(("step", *table.names)) + "\n"


def _rows(table: Table) -> str:
    # Nine digits distinguish every float32 from its neighbours.
    return "".join(
        ",".join([str(step), *(f"{n:.9g}" if m else "" for n, m in zip(row, measured, strict=True))]) + "\n"
        for step, row, measured in zip(
            table.steps.tolist(), table.values.tolist(), table.measured.tolist(), strict=True
        )
    )


def read_table(path: Path, after: int = -1, only: Collection[str] | None = None) -> Table:
    """Read the rows of a file.

    A last line that a crash cut short is ignored. A file that is missing, or has no complete header, gives a table
    without rows and names.

    Args:
        path: The file.
        after: Only rows with a greater step are read, from the end of the file, so that a long file costs little.
        only: Only these columns are read, as far as the file has them. This takes a fraction of the time.

    Raises:
        StabilityError: The file is not a table of numbers.
    """
    try:
        header, body = _lines(path, after)
        every = header.split(",")
        kept = [place for place, name in enumerate(every) if place and (only is None or name in only)]
        if every[0] != "step" or len({*every}) < len(every) or not all(name and name.isprintable() for name in every):
            raise ValueError(f"its header is {printable(header[:100])}")
        pieces = [_parsed(piece, len(every), kept) for piece in (b"", *_pieces(body))]
        steps, values, measured = (np.concatenate(column) for column in zip(*pieces, strict=True))
        if (np.diff(steps, prepend=-1) <= 0).any():
            raise ValueError("its steps do not ascend from 0")
    except (ValueError, OverflowError) as error:
        raise _no_table(path, error) from None
    names, wanted = tuple(every[place] for place in kept), steps > after
    return Table(names, steps[wanted], values[wanted], measured[wanted])


def count_rows(path: Path, step: int, names: Sequence[str]) -> int:
    """Count the rows of a file before `step`; 0 if there is no file.

    Args:
        path: The file.
        step: The first step that is not counted.
        names: The columns that the trial writes.

    Raises:
        StabilityError: The file has other columns, or is no table.
    """
    return _rows_before(path, step, names)[0]


def truncate(path: Path, step: int, names: Sequence[str]) -> None:
    """Drop the rows of a file from `step` on, atomically, so that a resumed trial can append its rows.

    A missing file stays missing. If no row is left, the file becomes empty.

    Args:
        path: The file.
        step: The first step that is dropped.
        names: The columns that the trial writes.

    Raises:
        StabilityError: The file has other columns, or is no table. It is left as it is.
    """
    _, end, whole = _rows_before(path, step, names)
    if end < len(whole):
        write_atomically(path, whole[:end])


def _rows_before(path: Path, step: int, names: Sequence[str]) -> tuple[int, int, bytes]:
    """The number of rows before `step`, where they end in the file, and all of the file."""
    if not path.exists():
        return 0, 0, b""
    whole = path.read_bytes()
    end = start = whole.find(b"\n") + 1
    rows = 0
    try:
        header = whole[: start - 1].decode()
        while (stop := whole.find(b"\n", end) + 1) and int(whole[end : whole.index(b",", end)]) < step:
            end, rows = stop, rows + 1
    except ValueError as error:
        raise _no_table(path, error) from None
    if not rows:
        return 0, 0, whole
    if (found := header.split(",")[1:]) != [*names]:
        differ = [f"no {name}" for name in names if name not in found]
        differ += [f"also {printable(name)}" for name in found if name not in names]
        raise StabilityError(
            f"{path} has other columns than this trial writes ({', '.join(differ) or 'in another order'}): another "
            "version of the program wrote it. Continue with that version, or train the trial from scratch: fresh=true"
        )
    return rows, end, whole


def sync(path: Path) -> None:
    """Wait until the rows of a file are on the disk, if there is the file."""
    if path.exists():
        with path.open("ab") as file:
            os.fsync(file.fileno())


def _no_table(path: Path, error: Exception) -> StabilityError:
    return StabilityError(f"{path} is not a table of signals: {printable(error)}.")


def _lines(path: Path, after: int) -> tuple[str, bytes]:
    """The header, and the complete lines from some step at or before `after + 1` on."""
    try:
        file = open_to_read(path)
    except FileNotFoundError:
        return "step", b""
    with file:
        header = file.readline()
        if not header.endswith(b"\n"):
            if not header.decode().isprintable():
                raise ValueError(f"it begins with {header[:20]!r}")
            return "step", b""
        start, end = file.tell(), file.seek(0, os.SEEK_END)
        size = _TAIL if after >= 0 else end
        while True:
            begin = max(start, end - size)
            file.seek(begin)
            tail = file.read(end - begin)
            if begin > start:
                tail = tail[tail.find(b"\n") + 1 :]  # the first line may be incomplete
            whole = tail[: tail.rfind(b"\n") + 1]
            if begin == start or (whole and int(whole[: whole.index(b",")]) <= after):
                return header.decode().rstrip("\n"), whole
            size *= 4


def _pieces(body: bytes) -> Iterator[bytes]:
    """The lines, a part at a time, because parsed cells take many times the memory of their text."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin + _PIECE) + 1 or len(body)
        yield body[begin:end]
        begin = end


def _parsed(
    lines: bytes, width: int, kept: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """The steps in lines of `width` fields; and of the columns `kept`, the values and whether they were measured."""
    flat = lines.replace(b"\n", b",").split(b",")[:-1]
    if len(flat) % width:
        raise ValueError(f"not every row has {width} fields")
    rows = len(flat) // width
    cells = np.array([flat[place::width] for place in kept], dtype=bytes).reshape(len(kept), rows).T
    measured = cells != b""
    values = np.where(measured, cells, b"nan").astype(np.float64).astype(np.float32)
    return np.array(flat[::width], dtype=bytes).astype(np.int64), values, measured
