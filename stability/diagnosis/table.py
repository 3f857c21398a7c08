"""Tables of signals, and the files in a trial's folder that keep them.

A trial's folder holds `signals.csv` (one row a training step) and `validation.csv` (one row a validation).
Both start with a column `step`; numbers are written so that they read back as the same float32. An empty
field is a signal that was not measured at that step; `nan` was measured, and was not a number.
What the columns mean is in `stability/diagnosis/signals.py`.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stability.core.errors import StabilityError
from stability.core.files import SIGNALS_FILE as SIGNALS_FILE
from stability.core.files import VALIDATION_FILE as VALIDATION_FILE
from stability.core.files import write_atomically

_TAIL = 1 << 16  # bytes first looked at from the end of a file
_PIECE = 1 << 18  # bytes parsed at once


@dataclass(frozen=True)
class Table:
    """Rows of a file of signals, in the order of their steps.

    `names` are the columns but `step`; `steps` is int64 `[rows]`; `values` is float32 `[rows, names]`, NaN
    where not measured; `measured` is bool `[rows, names]`.
    """

    names: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float32]
    measured: NDArray[np.bool_]

    def take(self, rows: "slice | NDArray[np.bool_]") -> "Table":
        """Some of the rows."""
        return Table(self.names, self.steps[rows], self.values[rows], self.measured[rows])

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The column `name`, `[rows]`. A name that is not there raises `KeyError`."""
        if name not in self.names:
            raise KeyError(name)
        return self.values[:, self.names.index(name)]


def append_table(path: Path, table: Table) -> None:
    """Append the rows of `table`, whose steps come after those in the file.

    A file that does not exist, or is empty, first gets its header. A field that was not measured stays empty.
    """
    # Nine digits distinguish every float32 from its neighbours.
    rows = "".join(
        f"{step}," + ",".join(f"{n:.9g}" if m else "" for n, m in zip(row, measured, strict=True)) + "\n"
        for step, row, measured in zip(
            table.steps.tolist(), table.values.tolist(), table.measured.tolist(), strict=True
        )
    )
    with path.open("ab") as file:
        if file.tell() == 0:
            rows = ",".join(("step", *table.names)) + "\n" + rows
        file.write(rows.encode())


def append_rows(path: Path, names: Sequence[str], steps: ArrayLike, values: ArrayLike) -> None:
    """Append rows in which everything was measured: see `append_table`. steps: `[rows]`; values: `[rows, names]`."""
    numbers = np.asarray(values, np.float32)
    append_table(path, Table((*names,), np.asarray(steps, np.int64), numbers, np.ones(numbers.shape, bool)))


def read_table(path: Path, after: int = -1, only: Collection[str] | None = None) -> Table:
    """Read the rows of `path` whose step is greater than `after`, from as little of its end as holds them.

    With `only`, of its columns those, as far as they are there, which takes a fraction of the time.

    A last line that a crash cut short is left out. A file that is missing, or lacks a whole header, is a
    table without rows and names. A file that is no table of numbers raises `StabilityError`.
    """
    try:
        header, body = _lines(path, after)
        every = header.split(",")
        kept = [place for place, name in enumerate(every) if place and (only is None or name in only)]
        pieces = [_parsed(piece, len(every), kept) for piece in (b"", *_pieces(body))]
        steps, values, measured = (np.concatenate(column) for column in zip(*pieces, strict=True))
    except ValueError as error:
        raise StabilityError(f"{path} is not a table of signals: {error}.") from None
    names, wanted = tuple(every[place] for place in kept), steps > after
    return Table(names, steps[wanted], values[wanted], measured[wanted])


def truncate(path: Path, step: int, names: Sequence[str]) -> None:
    """Keep the rows of `path` whose step is below `step`, atomically, for more of the columns `names` to follow.

    A missing file stays missing; one of which no row is left is emptied. Rows with other columns raise
    `StabilityError`, and stay as they are.
    """
    if not path.exists():
        return
    whole = path.read_bytes()
    end = start = whole.find(b"\n") + 1
    while (stop := whole.find(b"\n", end) + 1) and int(whole[end : whole.index(b",", end)]) < step:
        end = stop
    if end == start:
        end = 0
    elif (found := whole[: start - 1].decode().split(",")[1:]) != [*names]:
        differ = [f"no {name}" for name in names if name not in found]
        differ += [f"{name} beyond them" for name in found if name not in names]
        raise StabilityError(
            f"{path} has other columns than this trial writes ({', '.join(differ) or 'in another order'}): another "
            "version of the program began it. Go on with that version, or train the trial anew: fresh=true"
        )
    if end < len(whole):
        write_atomically(path, whole[:end])


def _lines(path: Path, after: int) -> tuple[str, bytes]:
    """The header of `path`, and its whole lines from some step at or before `after + 1` on."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return "step", b""
    with file:
        header = file.readline()
        if not header.endswith(b"\n"):
            return "step", b""
        start, end = file.tell(), file.seek(0, os.SEEK_END)
        size = _TAIL if after >= 0 else end
        while True:
            begin = max(start, end - size)
            file.seek(begin)
            tail = file.read(end - begin)
            if begin > start:
                tail = tail[tail.find(b"\n") + 1 :]  # the line it begins in may not be whole
            whole = tail[: tail.rfind(b"\n") + 1]
            if begin == start or (whole and int(whole[: whole.index(b",")]) <= after):
                return header.decode().rstrip("\n"), whole
            size *= 4


def _pieces(body: bytes) -> Iterator[bytes]:
    """Whole lines, some at a time: cells take many times the memory of their text."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin + _PIECE) + 1 or len(body)
        yield body[begin:end]
        begin = end


def _parsed(
    lines: bytes, width: int, kept: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Steps, and of the columns `kept` of so many, the values and what was measured, of whole lines."""
    flat = lines.replace(b"\n", b",").split(b",")[:-1]
    if len(flat) % width:
        raise ValueError(f"its rows are not of {width} fields")
    rows = len(flat) // width
    cells = np.array([flat[place::width] for place in kept], dtype=bytes).reshape(len(kept), rows).T
    measured = cells != b""
    values = np.where(measured, cells, b"nan").astype(np.float64).astype(np.float32)
    return np.array(flat[::width], dtype=bytes).astype(np.int64), values, measured
