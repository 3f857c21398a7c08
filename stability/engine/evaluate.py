"""The validation of a stack: phoneme error rate and loss of each trial on a whole split."""

import numpy as np
import torch
from torch import Tensor

from stability.core.device import to_device
from stability.data.batches import validation_batches
from stability.data.records import Split
from stability.engine.batch import validation_inputs
from stability.engine.loss import collapse, edit_distance, without_blanks
from stability.engine.predict import predict, reduce_losses, select_days
from stability.engine.stack import Stack


def evaluate(stack: Stack, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Measure phoneme error rate and loss of each trial on a whole split. The stack stays as it is.

    Returns:
        The error rates (K,): total edit distance over total label length, of the greedy decoding. And the losses (K,),
        reduced as configured, averaged over the utterances of a batch and then over the batches (one day each), as the
        official trainer does.
    """
    losses: list[Tensor] = []  # (K,) of each batch
    decoded: list[tuple[tuple[int, ...], Tensor]] = []  # utterances of each batch, and their classes (K, B, T')
    for batch in validation_batches(split, stack.configs[0].batch.size):
        with torch.no_grad():
            inputs = validation_inputs(stack, batch)
            logits, nll = predict(stack, select_days(stack.parameters, inputs.days), inputs)
        losses.append(reduce_losses(stack, nll, inputs.label_counts)[0])
        classes = logits.argmax(-1).transpose(1, 2)
        frames = to_device(inputs.frames, stack.device)
        decoded.append((batch.utterances, collapse(classes, frames).to(torch.int8)))
    # Only here does the host wait for the device.
    errors, label_count = np.zeros(len(stack.configs), np.int64), 0
    for utterances, classes in decoded:
        targets = [split.labels(i).tolist() for i in utterances]
        label_count += sum(map(len, targets))
        for k, rows in enumerate(classes.cpu()):
            errors[k] += sum(map(edit_distance, without_blanks(rows), targets))
    return errors / label_count, np.mean(torch.stack(losses).cpu().numpy(), 0)
