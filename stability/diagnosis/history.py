"""The signals of a training of any length, in constant memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.table import Table

CAPACITY = 4096  # rows
_RECENT = CAPACITY // 16
_PAST = CAPACITY - 2 * _RECENT
_PINNED = CAPACITY // 4


class History:
    """Keeps the newest rows of signals, and an even sample of the older ones.

    The newest 256 rows are always complete. The older ones are complete until they no longer fit. Then one row of every
    two is kept, later one of every four, and so on, evenly over the whole past: a training's last million steps do not
    displace its first thousand.

    The row of a group that is kept is drawn at random. Otherwise a signal that is measured at every tenth step could
    always fall on the rows that are dropped. The chance of a row grows with the rarity of the signals that it
    measures, so that rare signals keep as many readings as common ones, as far as they were measured. The draw is
    seeded: the same rows give the same history, whatever blocks they are appended in.

    The first row is always kept, and so is each signal's first row that is not finite, up to 1,024 such rows.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._steps = np.zeros(CAPACITY, np.int64)
        self._values = np.zeros((CAPACITY, 0), np.float32)
        self._measured = np.zeros((CAPACITY, 0), bool)
        self._places = np.zeros(CAPACITY, np.int64)  # the number of each row among all that were appended
        self._lots = np.zeros(CAPACITY)
        self._pinned = np.zeros(CAPACITY, bool)
        self._length = 0
        self._past = 0  # the number of older rows, which have been thinned
        self._stride = 1  # the number of successive older rows in a group; one row of each group is kept
        self._thinned = False
        self._seen = 0
        self._counts = np.zeros(0, np.int64)  # rows that measured each signal
        self._broken = np.zeros(0, bool)  # whether a signal's first row that is not finite has been pinned
        self._draw = np.random.default_rng(0)

    def __len__(self) -> int:
        """The number of rows that are kept."""
        return self._length

    @property
    def thinned(self) -> bool:
        """Whether any row was dropped."""
        return self._thinned

    def append(self, rows: Table) -> None:
        """Append rows, in the order of their steps.

        A new signal counts as not measured in the earlier rows, and a missing one as not measured in these.
        """
        steps, measured = rows.steps, rows.measured
        values = np.where(measured, rows.values, np.float32(np.nan))
        columns = self._columns(rows.names)
        while len(steps):
            room = self._past + 2 * _RECENT - self._length
            self._add_rows(columns, steps[:room], values[:room], measured[:room])
            steps, values, measured = steps[room:], values[room:], measured[room:]
            if self._length - self._past == 2 * _RECENT:
                self._thin()

    def truncate(self, step: int) -> None:
        """Drop the rows from `step` on, because the training resumes there."""
        kept = np.flatnonzero(self._steps[: self._length] < step)
        self._past = int(np.searchsorted(kept, self._past))
        self._keep_rows(kept)
        self._stride = 1  # there may be room again

    def table(self) -> Table:
        """Return a copy of the rows that are kept."""
        held = slice(self._length)
        return Table(self._names, self._steps[held].copy(), self._values[held].copy(), self._measured[held].copy())

    def _columns(self, names: Sequence[str]) -> list[int]:
        """Return the columns of these signals. Add an empty column for each new signal."""
        new = [name for name in names if name not in self._names]
        if new:
            wider = ((0, 0), (0, len(new)))
            self._names += tuple(new)
            self._values = np.pad(self._values, wider, constant_values=np.nan)
            self._measured = np.pad(self._measured, wider)
            self._counts, self._broken = np.pad(self._counts, wider[1]), np.pad(self._broken, wider[1])
        return [self._names.index(name) for name in names]

    def _add_rows(
        self, columns: list[int], steps: NDArray[np.int64], values: NDArray[np.float32], measured: NDArray[np.bool_]
    ) -> None:
        """Add rows at the end. There must be room for them."""
        rows = slice(self._length, self._length + len(steps))
        self._steps[rows] = steps
        self._values[rows], self._measured[rows] = np.nan, False
        self._values[rows, columns], self._measured[rows, columns] = values, measured
        self._places[rows] = np.arange(self._seen, self._seen + len(steps))
        self._lots[rows] = self._draw.exponential(size=len(steps))
        self._pinned[rows] = self._places[rows] == 0
        self._pin(rows)
        self._counts += self._measured[rows].sum(axis=0)
        self._seen += len(steps)
        self._length = rows.stop

    def _pin(self, rows: slice) -> None:
        """Pin each signal's first row that is not finite, if it is among these rows."""
        bad = self._measured[rows] & ~np.isfinite(self._values[rows])
        first = bad.any(axis=0) & ~self._broken
        if first.any() and self._pinned[: rows.start].sum() < _PINNED:
            self._pinned[rows.start + bad.argmax(axis=0)[first]] = True
            self._broken |= first

    def _thin(self) -> None:
        """Make room: among all but the newest rows, keep only the winner of each group."""
        end = self._length - _RECENT
        rarity = self._seen / np.maximum(self._counts, 1)
        chances = np.where(self._measured[:end], rarity, 1).max(axis=1, initial=1)
        # The row with the least lot over chance wins. As lots are exponential, its odds are proportional to its chance.
        # Lots are drawn once and groups only merge, so a winner has won in every group that its group was merged from.
        lots = self._lots[:end] / chances
        while True:
            groups = np.flatnonzero(np.diff(self._places[:end] // self._stride, prepend=-1))
            least = np.repeat(np.minimum.reduceat(lots, groups), np.diff(groups, append=end))
            stays = self._pinned[:end] | (lots == least)
            if stays.sum() <= _PAST:
                break
            self._stride *= 2
        self._past = int(stays.sum())
        self._thinned |= self._past < end
        self._keep_rows(np.r_[np.flatnonzero(stays), end : self._length])

    def _keep_rows(self, rows: NDArray[np.int64]) -> None:
        for column in (self._steps, self._values, self._measured, self._places, self._lots, self._pinned):
            column[: len(rows)] = column[rows]
        self._length = len(rows)
