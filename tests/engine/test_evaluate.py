"""Validation against a decoder in float64 and plain counts, and without side effects."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.data.batches import validation_batches
from stability.data.records import Dataset
from stability.engine.evaluate import evaluate
from stability.engine.stack import Stack
from tests.support.configs import tiny
from tests.support.decoding import collapsed, levenshtein
from tests.support.reference import reference, smoothed
from tests.support.stacks import copied, trained


def naive_logits(stack: Stack, k: int, x: Tensor, day: int) -> Tensor:
    """Logits (T', 41) of one utterance (T, F), smoothed, without a batch around it."""
    logits: Tensor = reference(copied(stack.parameters, k), 2, torch.float64)(smoothed(x[None]), [day])
    return logits[0]


def test_validation_counts_all_edits_over_all_labels(dataset: Dataset) -> None:
    """Batches of two leave a ragged one a day. The loss is the mean over batches of the mean over utterances."""
    configs = [
        tiny("seed=1", "batch.size=2", "batch.days=2", "schedule.lr_max=0.02"),
        tiny("seed=2", "batch.size=2", "batch.days=2", "loss=per_label_mean", "optimizer=adam_default"),
    ]
    stack, _ = trained(configs, dataset, 20)
    stack.parameters["out.bias"][0, 0] -= 3  # says something
    rates, losses = evaluate(stack, dataset.val)
    for k, config in enumerate(configs):
        edits = labels = 0
        of_batches = []
        for batch in validation_batches(dataset.val, 2):
            of_utterances = []
            for i in batch.utterances:
                record = dataset.val.records[i]
                assert record.labels is not None
                with torch.no_grad():
                    logits = naive_logits(stack, k, torch.from_numpy(dataset.val.read(i).copy()), record.day)
                target = record.labels.tolist()
                edits += levenshtein(collapsed(tuple(logits.argmax(-1).tolist())), target)
                labels += len(target)
                lengths = torch.tensor([len(logits)]), torch.tensor([len(target)])
                log_probs = logits.log_softmax(-1).unsqueeze(1)
                nll = F.ctc_loss(log_probs, torch.tensor([target]), *lengths, reduction="sum").item()
                of_utterances.append(nll / len(target) if config.loss.reduction == "per_label_mean" else nll)
            of_batches.append(np.mean(of_utterances))
        assert rates[k] == edits / labels
        assert losses[k] == pytest.approx(np.mean(of_batches), rel=1e-5)
    assert rates[0] != rates[1]


def test_evaluation_changes_nothing(dataset: Dataset) -> None:
    stack, _ = trained([tiny()], dataset, 3)
    before = copied(stack.parameters, 0)
    first, second = evaluate(stack, dataset.val), evaluate(stack, dataset.val)
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(p[0], before[n]) for n, p in stack.parameters.items())
    assert stack.steps == [3] * len(stack.configs)
