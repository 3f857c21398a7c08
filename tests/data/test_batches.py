"""Which utterances a batch contains, and how they are padded."""

import math
from collections import Counter

import numpy as np
import pytest

from stability.data.batches import training_batch, validation_batches
from stability.data.records import Dataset


@pytest.mark.parametrize(("size", "days", "shares"), [(6, 3, {2}), (8, 3, {2, 3}), (20, 2, {10}), (4, 4, {1})])
def test_training_batches_draw_days_then_utterances(dataset: Dataset, size: int, days: int, shares: set[int]) -> None:
    split = dataset.train
    met: Counter[int] = Counter()
    drawn: Counter[int] = Counter()
    repeated = False
    for step in range(60):
        batch = training_batch(split, size, days, seed=0, step=step)
        of_rows = [split.records[i].day for i in batch.utterances]
        assert len(set(batch.days)) == len(batch.days) == days
        assert sum(batch.rows_per_day) == size
        assert set(batch.rows_per_day) == shares
        assert of_rows == [d for d, n in zip(batch.days, batch.rows_per_day, strict=True) for _ in range(n)]
        met.update(batch.days)
        drawn.update(batch.utterances)
        repeated |= len(set(batch.utterances)) < size
        for row, i in enumerate(batch.utterances):
            features, labels = split.read(i), split.records[i].labels
            assert labels is not None
            n = len(features)
            assert batch.bins[row] == n
            np.testing.assert_array_equal(batch.features[row, :n], features)
            assert not batch.features[row, n:].any()
            assert batch.labels[row, : batch.label_counts[row]].tolist() == labels.tolist()
            assert not batch.labels[row, batch.label_counts[row] :].any()
    assert repeated or size == 4  # with replacement
    assert len(drawn) == len(split.records)
    expected = 60 * days / 4
    assert all(abs(met[d] - expected) <= 5 * math.sqrt(60 * days / 4 * (1 - days / 4)) for d in range(4))


def test_training_batches_depend_on_seed_and_step_alone(dataset: Dataset) -> None:
    split = dataset.train
    assert (
        training_batch(split, 6, 3, seed=0, step=5).utterances == training_batch(split, 6, 3, seed=0, step=5).utterances
    )
    distinct = {training_batch(split, 6, 3, seed=seed, step=step).utterances for seed in range(3) for step in range(3)}
    assert len(distinct) == 9


@pytest.mark.parametrize("size", [2, 5, 64])
def test_validation_batches_contain_each_utterance_once_and_one_day_each(dataset: Dataset, size: int) -> None:
    batches = [*validation_batches(dataset.val, size)]
    assert sorted(i for b in batches for i in b.utterances) == [*range(len(dataset.val.records))]
    for batch in batches:
        assert len(batch.utterances) <= size
        assert [dataset.val.records[i].day for i in batch.utterances] == batch.days * len(batch.utterances)
    assert len({d for b in batches for d in b.days}) == 3  # one of the four days has no utterances to validate on
