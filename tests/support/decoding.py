"""Plain versions of decoding and edit distance."""

import itertools

import numpy as np


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Merge repeats and drop blanks (0)."""
    return [c for c, before in zip(path, (None, *path), strict=False) if c != before and c != 0]


def levenshtein(a: list[int], b: list[int]) -> int:
    """Compute the edit distance from the whole table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0, :] = range(len(a) + 1), range(len(b) + 1)
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        substituted = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
        table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, substituted)
    return int(table[-1, -1])
