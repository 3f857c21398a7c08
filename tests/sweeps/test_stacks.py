"""Which trials share a stack."""

from stability.sweeps.stacks import stack_key
from tests.support.configs import tiny


def test_trials_with_different_data_do_not_share_a_stack() -> None:
    """With `exclude`, utterances that are too short after the longest cut are left out of the data."""
    kinds = [
        stack_key(tiny(f"data.on_bad_utterance={how}", f"aug.max_cut={cut}"))
        for how in ("exclude", "error")
        for cut in (0, 3)
    ]
    assert len({*kinds}) == 3
    assert kinds[2] == kinds[3]
