"""Count which phoneme was heard as which, by aligning what was decoded with what was spoken."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stability.data.phonemes import BLANK, PHONEMES

CLASSES = len(PHONEMES)
_EDIT, _MATCH = 1 << 20, -1  # costs: the fewest edits, and then the most matches


def count_confusions(decoded: Sequence[int], target: Sequence[int]) -> NDArray[np.int64]:
    """Align two sequences with the fewest edits, and count what stands for what.

    Of several such alignments it is one with the most matches.

    Args:
        decoded: Class ids of the decoded phonemes.
        target: Class ids of the spoken phonemes.

    Returns:
        Counts by spoken and heard phoneme, (41, 41). Blank stands for none: column 0 counts the phonemes that were
        deleted, row 0 those that were inserted. All that is not on the diagonal adds up to the edit distance.
    """
    table = [[_EDIT * j for j in range(len(decoded) + 1)]]  # the cost of the first i labels and the first j phonemes
    for i, spoken in enumerate(target, 1):
        before, row = table[-1], [_EDIT * i]
        for j, heard in enumerate(decoded):
            paired = before[j] + (_MATCH if spoken == heard else _EDIT)
            row.append(min(paired, before[j + 1] + _EDIT, row[j] + _EDIT))
        table.append(row)
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    i, j = len(target), len(decoded)
    while i or j:
        spoken = target[i - 1] if i else BLANK
        heard = decoded[j - 1] if j else BLANK
        if i and j and table[i][j] == table[i - 1][j - 1] + (_MATCH if spoken == heard else _EDIT):
            i, j = i - 1, j - 1
        elif i and table[i][j] == table[i - 1][j] + _EDIT:
            i, heard = i - 1, BLANK
        else:
            j, spoken = j - 1, BLANK
        counts[spoken, heard] += 1
    return counts
