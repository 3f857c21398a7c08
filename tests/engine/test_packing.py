"""Packing against plain loops."""

import torch

from stability.engine.packing import pack, unpack


def test_a_frame_has_a_slot_for_each_row_that_has_not_ended() -> None:
    packing = pack(torch.tensor([[2, 4, 1]]))
    assert packing.counts == [3, 2, 1, 1]
    assert packing.row.tolist() == [[1, 0, 2, 1, 0, 1, 1]]
    assert packing.frame.tolist() == [0, 0, 0, 1, 1, 2, 3]


def test_a_stack_has_room_for_the_trial_with_most_rows() -> None:
    packing = pack(torch.tensor([[3, 1], [2, 2]]))
    assert packing.counts == [2, 2, 1]
    assert [own.tolist() for own in packing.own_slots] == [[0, 1, 2, 4], [0, 1, 2, 3]]


def test_unpacking_puts_every_real_frame_back() -> None:
    frames = torch.randint(1, 9, (3, 5), generator=torch.Generator().manual_seed(0))
    dense = torch.randn(3, 9, 5, 2)
    packing = pack(frames)
    trial = torch.arange(3).unsqueeze(1)
    back = unpack(dense[trial, packing.frame, packing.row], packing, 5, 9)
    for k in range(3):
        for row, n in enumerate(frames[k].tolist()):
            assert torch.equal(back[k, :n, row], dense[k, :n, row])
