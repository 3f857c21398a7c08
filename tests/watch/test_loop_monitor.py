"""A Monitor in the loop of another package."""

import weakref

import torch

from stability.watch.loop_monitor import LoopMonitor
from tests.support.toy_ctc import Toy


def test_only_the_logits_of_a_steps_last_batch_are_kept() -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = LoopMonitor(model, optimizer, blank=0, error_rate=None, scaler=None)
    kept = []
    for value in (1.0, 0.0):
        logits = torch.full((2, 7, 5), value)
        logits[..., 3] = 2.0 - value
        kept.append(weakref.ref(logits.untyped_storage()))
        monitor.add_batch(torch.tensor(2.0), logits=logits, labels=[[1], [1, 1]])
        del logits
    assert [reference() is None for reference in kept] == [True, False]
    assert not monitor.must_skip_update()
    signals = monitor.signals()
    assert (signals["utterances"][0], signals["labels"][0]) == (4, 1.5)
    assert signals["distinct_phonemes"][0] == 1
