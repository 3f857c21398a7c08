"""A log file as lines of text, one at a time."""

import codecs
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import open_to_read

_COLORS = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")  # what tells a terminal to change its colors
_LONGEST = 1 << 22  # characters of a line
_REPORT_EVERY = 10_000  # lines


class DamagedLogError(StabilityError):
    """A log, or a line in it, cannot be read. A file that is no log, or contains no training, is not damaged."""


class Log(AbstractContextManager["Log"]):
    """The lines of a file that are not blank. The text is UTF-8, or UTF-16 if the file begins with its mark.

    Attributes:
        path: The file.
        number: The number of the line that was read last, from 1.
        cut: Whether that line lacks its end. Then it is the file's last, and may be incomplete.
    """

    def __init__(self, path: Path, progress: Callable[[int, int], None]) -> None:
        self.path = path
        self.number, self.cut = 0, False
        self._progress = progress
        self._begun = False
        file = open_to_read(path)
        utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        # A byte that is no text must not end the reading.
        self._file = io.TextIOWrapper(file, "utf-16" if utf16 else "utf-8-sig", errors="replace")
        self._lines = self._read_lines()

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @cached_property
    def first(self) -> str:
        """The first line. A format is recognised by it."""
        line = next(self._lines, None)
        if line is None:
            raise StabilityError(f"{self.path} is empty.")
        return line

    def __iter__(self) -> Iterator[str]:
        """All lines from the first one on, also if they have been read before."""
        first = self.first
        if self._begun:
            self._file.seek(0)
            self.number, self.cut = 0, False
            self._lines = self._read_lines()
            first = next(self._lines)
        self._begun = True
        yield first
        yield from self._lines

    def _read_lines(self) -> Iterator[str]:
        read, size = 0, os.fstat(self._file.fileno()).st_size
        while line := self._file.readline(_LONGEST):
            self.number += 1
            self.cut = not line.endswith("\n")
            if self.cut and len(line) == _LONGEST:
                raise DamagedLogError(
                    f"{self.path}, line {self.number} is longer than {_LONGEST:,} characters, too long for a log."
                )
            read += len(line)
            if self.number % _REPORT_EVERY == 0:
                self._progress(read, size)
            if "\x1b" in line:
                line = _COLORS.sub("", line)
            line = line.replace("\0", "")  # of UTF-16 without its mark, or of a disk that was full
            if not line.isspace():
                yield line
