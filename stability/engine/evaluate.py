"""The validation of a stack: phoneme error rate and loss of each trial on a whole split; and the logits of a trial."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stability.core.device import to_device
from stability.data.batches import validation_batches
from stability.data.records import Split
from stability.engine.batch import validation_inputs
from stability.engine.decoder import forward
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


def decode(stack: Stack, split: Split) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield each utterance of a split once: its position, and its logits (frames, classes). It needs no labels.

    Only one batch is in memory.

    Args:
        stack: A stack of one, which stays as it is.
        split: The utterances.
    """
    (config,) = stack.configs
    for batch in validation_batches(split, config.batch.size):
        with torch.no_grad(), stack.autocast():
            inputs = validation_inputs(stack, batch)
            parameters = select_days(stack.parameters, inputs.days)
            logits = forward(
                parameters, inputs.x, inputs.frames, inputs.rows_per_day, model=config.model, engine=stack.engine
            )
        of_batch = logits[0].float().cpu().numpy()
        for row, (utterance, frames) in enumerate(zip(batch.utterances, inputs.frames[0].tolist(), strict=True)):
            yield utterance, of_batch[:frames, row]
