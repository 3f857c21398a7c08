"""Lists, counts and durations in words; foreign names on the terminal; numbers in strict JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def listed(parts: Iterable[str]) -> str:
    """Join parts as in a sentence: `a`, `a and b`, `a, b and c`."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def first_of(parts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first `most` parts and count the rest: `a, b and 7 more`."""
    text = separator.join(parts[:most])
    return f"{text} and {len(parts) - most:,} more" if len(parts) > most else text


def counted(count: int, noun: str) -> str:
    """Return a number with its noun in the right form: `1 trial`, `2 trials`, `12,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a time in its largest unit with a count of two or more: `90 s`, `5 min`, `3 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def printable(text: object) -> str:
    r"""Return a text that came from a file on one line, with `\n`, `\x1b` and the like in place of characters that
    would break the line, command the terminal or not be printed at all.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def pace_text(steps_a_second: float) -> str:
    """Return a pace in words: `0.25 steps/s`, `4.1 steps/s`, `230 steps/s`; empty for 0, which is not known yet."""
    if not steps_a_second:
        return ""
    return f"{steps_a_second:.0f} steps/s" if steps_a_second >= 10 else f"{steps_a_second:.2g} steps/s"


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file. A spreadsheet would run a text that begins like a formula."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def load_json(text: str | bytes) -> Any:
    """Parse JSON. Whatever is wrong with it is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def plain(value: Any) -> Any:
    """Return a value for strict JSON, which has no NaN and no infinity: as the texts "nan", "inf" and "-inf".

    In mappings and lists each value is replaced. `float` reads the texts.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {name: plain(own) for name, own in value.items()}
    return [plain(own) for own in value] if isinstance(value, list) else value
