"""The levels of a factor: their order, and how they are written."""

import json
from collections.abc import Iterable
from typing import Any

MOST_LEVELS = 12  # of a grid's factor; a search draws a level for each trial, and no two of its trials match

Level = Any  # a configuration's value: a number, a string, True, False, None, or a tuple of them


def ordered(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Sort the different levels: numbers by size, then the others by name."""

    def key(level: Level) -> tuple[bool, float, str]:
        number = is_number(level)
        return not number, level if number else 0.0, repr(level)

    return tuple(sorted(set(levels), key=key))


def is_number(level: Level) -> bool:
    """Return whether the level is a number. True and False are not."""
    return isinstance(level, int | float) and not isinstance(level, bool)


def level_text(level: Level) -> str:
    """Write a level as it is typed on the command line: 1e-8, true, null, [a,b]."""
    if isinstance(level, float):
        text = f"{level:.6g}"
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else text
    if isinstance(level, tuple):
        return f"[{','.join(map(level_text, level))}]"
    return level if isinstance(level, str) else json.dumps(level)
