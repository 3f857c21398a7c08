"""Confusions against editdistance, plain counts, and an example made by hand."""

import editdistance
import numpy as np

from stability.engine.confusion import count_confusions


def test_an_alignment_by_hand() -> None:
    counts = count_confusions([5, 2, 4, 9], [1, 2, 3, 4])  # 1 as 5, 2, 3 deleted, 4, 9 inserted
    assert {(*place,): counts[*place] for place in np.argwhere(counts).tolist()} == {
        **{(1, 5): 1, (2, 2): 1, (3, 0): 1},
        **{(4, 4): 1, (0, 9): 1},
    }
    assert count_confusions([7], [8])[8, 7] == 1  # and not deleted and inserted
    assert not count_confusions([], []).any()


def test_edits_are_the_distance_and_margins_are_the_sequences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        decoded, target = (rng.integers(1, 6, rng.integers(0, 12)).tolist() for _ in range(2))
        counts = count_confusions(decoded, target)
        assert counts.sum() - np.trace(counts) == editdistance.eval(decoded, target)
        np.testing.assert_array_equal(counts[1:].sum(1), np.bincount(target, minlength=41)[1:])
        np.testing.assert_array_equal(counts[:, 1:].sum(0), np.bincount(decoded, minlength=41)[1:])
