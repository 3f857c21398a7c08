"""Count which phoneme was heard as which, by aligning what was decoded with what was spoken."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stability.data.phonemes import BLANK, PHONEMES

CLASSES = len(PHONEMES)


def count_confusions(decoded: Sequence[int], target: Sequence[int]) -> NDArray[np.int64]:
    """Align two sequences with the fewest edits, and count what stands for what.

    Where several alignments are equally short, a substitution is preferred to a deletion with an insertion.

    Args:
        decoded: Class ids of the decoded phonemes.
        target: Class ids of the spoken phonemes.

    Returns:
        Counts by spoken and heard phoneme, (41, 41). Blank stands for none: column 0 counts the phonemes that were
        deleted, row 0 those that were inserted. All that is not on the diagonal adds up to the edit distance.
    """
    table = [[*range(len(decoded) + 1)]]  # the edit distance of the first i labels and the first j phonemes
    for i, spoken in enumerate(target, 1):
        before, row = table[-1], [i]
        for j, heard in enumerate(decoded):
            row.append(min(before[j] + (spoken != heard), before[j + 1] + 1, row[j] + 1))
        table.append(row)
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    i, j = len(target), len(decoded)
    while i or j:
        if i and j and table[i][j] == table[i - 1][j - 1] + (target[i - 1] != decoded[j - 1]):
            i, j = i - 1, j - 1
            counts[target[i], decoded[j]] += 1
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            counts[target[i], BLANK] += 1
        else:
            j -= 1
            counts[BLANK, decoded[j]] += 1
    return counts
