"""How arrays are padded and how many frames CTC needs."""

import numpy as np
import pytest

from stability.data.records import frames_needed, pad


def test_arrays_are_padded_with_zeros_to_the_longest() -> None:
    arrays = [np.full((n, 2), n, np.float16) for n in (1, 3)]
    padded = pad(arrays)
    assert padded.dtype == np.float16
    assert padded.tolist() == [[[1, 1], [0, 0], [0, 0]], [[3, 3], [3, 3], [3, 3]]]


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([5], 1), ([5, 6, 5], 3), ([5, 5], 3), ([5, 5, 5, 6, 6], 8)])
def test_ctc_needs_a_frame_for_each_label_and_a_blank_between_equal_ones(labels: list[int], frames: int) -> None:
    assert frames_needed(labels) == frames
