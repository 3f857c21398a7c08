"""The signals of a training of any length, in memory that does not grow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.table import Table

CAPACITY = 4096  # rows, at most
_RECENT = CAPACITY // 16
_PAST = CAPACITY - 2 * _RECENT
_PINNED = CAPACITY // 4


class History:
    """Rows of signals as they come: the newest as they were, of the older ones an even sample.

    The newest 256 rows are whole, always. The older ones are whole until they no longer fit; then one row of every two
    stays, later of every four, and so on, over the whole past alike: its last million steps do not push out a
    training's first thousand. Which row of such a group stays is drawn by lot, so a signal that is measured at every
    tenth step cannot be missed by always looking at another step; and a row's chance grows with the rarity of what it
    measures, so that rare signals get as many of the places as common ones, as far as they were measured. The lots are
    seeded: the same rows give the same history, in whatever blocks they come.

    The first row stays, and so does each signal's first row that is not finite (for the first 1,024 such rows).
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._steps = np.zeros(CAPACITY, np.int64)
        self._values = np.zeros((CAPACITY, 0), np.float32)
        self._measured = np.zeros((CAPACITY, 0), bool)
        self._places = np.zeros(CAPACITY, np.int64)  # how many rows came before
        self._lots = np.zeros(CAPACITY)
        self._pinned = np.zeros(CAPACITY, bool)
        self._length = 0
        self._past = 0  # of these rows: those that were thinned last time
        self._stride = 1  # places of the past that share one row
        self._thinned = False
        self._seen = 0
        self._counts = np.zeros(0, np.int64)  # rows that measured each signal
        self._broken = np.zeros(0, bool)  # signals whose first row that is not finite has been pinned
        self._draw = np.random.default_rng(0)

    def __len__(self) -> int:
        """How many rows are held."""
        return self._length

    @property
    def thinned(self) -> bool:
        """Whether any row was left out."""
        return self._thinned

    def append(self, rows: Table) -> None:
        """Append rows, in the order of their steps.

        A signal that is new was not measured before, and one that is missing is not measured in these rows.
        """
        steps, measured = rows.steps, rows.measured
        values = np.where(measured, rows.values, np.float32(np.nan))
        columns = self._columns(rows.names)
        while len(steps):
            room = self._past + 2 * _RECENT - self._length
            self._take(columns, steps[:room], values[:room], measured[:room])
            steps, values, measured = steps[room:], values[room:], measured[room:]
            if self._length - self._past == 2 * _RECENT:
                self._thin()

    def truncate(self, step: int) -> None:
        """Keep the rows whose step is below `step`, as when a training goes on from there."""
        kept = np.flatnonzero(self._steps[: self._length] < step)
        self._past = int(np.searchsorted(kept, self._past))
        self._keep(kept)
        self._stride = 1  # there may be room again

    def table(self) -> Table:
        """The rows held, as a table of their own."""
        held = slice(self._length)
        return Table(self._names, self._steps[held].copy(), self._values[held].copy(), self._measured[held].copy())

    def _columns(self, names: Sequence[str]) -> list[int]:
        """Where these signals are kept; a new one gets a column, empty so far."""
        new = [name for name in names if name not in self._names]
        if new:
            wider = ((0, 0), (0, len(new)))
            self._names += tuple(new)
            self._values = np.pad(self._values, wider, constant_values=np.nan)
            self._measured = np.pad(self._measured, wider)
            self._counts, self._broken = np.pad(self._counts, wider[1]), np.pad(self._broken, wider[1])
        return [self._names.index(name) for name in names]

    def _take(
        self, columns: list[int], steps: NDArray[np.int64], values: NDArray[np.float32], measured: NDArray[np.bool_]
    ) -> None:
        """Put rows, for which there is room, behind the others."""
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
        """Pin among these rows the first of each signal that is not finite."""
        bad = self._measured[rows] & ~np.isfinite(self._values[rows])
        first = bad.any(axis=0) & ~self._broken
        if first.any() and self._pinned[: rows.start].sum() < _PINNED:
            self._pinned[rows.start + bad.argmax(axis=0)[first]] = True
            self._broken |= first

    def _thin(self) -> None:
        """Make room for the next rows: of all but the newest, leave the winner of every `_stride` places."""
        end = self._length - _RECENT
        rarity = self._seen / np.maximum(self._counts, 1)
        chances = np.where(self._measured[:end], rarity, 1).max(axis=1, initial=1)
        # The least of exponential lots over chances is each row's in proportion to its chance. Lots are drawn once, and
        # groups only ever merge, so whoever wins a group has won all that it was made of.
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
        self._keep(np.r_[np.flatnonzero(stays), end : self._length])

    def _keep(self, rows: NDArray[np.int64]) -> None:
        for column in (self._steps, self._values, self._measured, self._places, self._lots, self._pinned):
            column[: len(rows)] = column[rows]
        self._length = len(rows)
