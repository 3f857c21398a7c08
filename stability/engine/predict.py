"""The forward pass of a stack: logits and losses of a batch, with dropout in training. Validation uses it too."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stability.core.device import to_device
from stability.core.streams import torch_stream
from stability.engine.batch import Inputs, micro_batches, select_rows
from stability.engine.decoder import Dropout, OnOutput, Parameters, forward, ignore_output
from stability.engine.loss import ctc_losses
from stability.engine.optimizer import DAY_LAYER
from stability.engine.packing import Packing, pack
from stability.engine.stack import Stack


def predict(
    stack: Stack,
    parameters: Parameters,
    inputs: Inputs,
    dropout: Dropout | None = None,
    on_output: OnOutput = ignore_output,
) -> tuple[Tensor, Tensor]:
    """Run the decoder of every trial on its batch, in the precision of the stack.

    Args:
        stack: The trials.
        parameters: Their weights; the day layers are those that `select_days` returns.
        inputs: Their batches, or some rows of them.
        dropout: See `dropout_of`. None in validation; then a batch is divided into the stack's micro-batches here.
        on_output: Called with each module's name and output.

    Returns:
        Logits (K, T', B, C), and the negative log-likelihood of each utterance (K, B), in nats.
    """
    parts = micro_batches(stack, inputs)
    # In training the caller divides the batch: each part goes backward before the next goes forward.
    if dropout is None and len(parts) > 1:
        undivided = replace(stack, micro_batches=1)
        predicted = [predict(undivided, parameters, select_rows(inputs, rows)) for rows in parts]
        return torch.cat([logits for logits, _ in predicted], 2), torch.cat([nll for _, nll in predicted], 1)
    with stack.autocast():
        logits = forward(
            parameters,
            inputs.x,
            inputs.frames,
            inputs.rows_per_day,
            model=stack.configs[0].model,
            dropout=dropout,
            on_output=on_output,
            engine=stack.engine,
        )
        return logits, ctc_losses(logits, inputs.frames, inputs.labels, inputs.label_counts)


def reduce_losses(stack: Stack, nll: Tensor, label_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each trial's mean loss over the utterances of a batch.

    Args:
        stack: The trials, whose configurations say how the loss is reduced.
        nll: (K, B) negative log-likelihoods, in nats.
        label_counts: (K, B), on the host.

    Returns:
        The loss as configured (K,), and the loss per label (K,).
    """
    per_label = (nll / to_device(label_counts, nll.device)).mean(1)
    by_label = torch.tensor([c.loss.reduction == "per_label_mean" for c in stack.configs])
    return torch.where(to_device(by_label, nll.device), per_label, nll.mean(1)), per_label


def select_days(parameters: Parameters, days: list[list[int]]) -> Parameters:
    """Return the parameters, with the day layers reduced to the days in the batch: (K, D, ...)."""
    index = to_device(torch.tensor(days), parameters["day_weights"].device)
    trial = torch.arange(len(days), device=index.device).unsqueeze(1)
    return {name: p[trial, index] if name in DAY_LAYER else p for name, p in parameters.items()}


def dropout_of(stack: Stack, inputs: Inputs, rows: slice = slice(None)) -> Dropout:
    """Make the function that says what dropout keeps of some rows of a batch.

    A mask depends on the trial's seed, the purpose, the step and the trial's own whole batch. So neither its
    neighbours in the stack nor micro-batches change it, and trials with the same seed share it. On a GPU it is bool,
    for a quarter of the memory; on a CPU it is float32, which is faster there.
    """
    size = inputs.frames.shape[1]
    slots = _slots_of(inputs.frames, rows)

    def draw(k: int, shape: Sequence[int], purpose: str, p: float) -> Tensor:
        stream = torch_stream(stack.configs[k].seed, f"dropout {purpose}", stack.steps[k], stack.device)
        drawn = torch.rand(shape, generator=stream, device=stack.device)
        return drawn.ge(p) if drawn.is_cuda else drawn.ge_(p)

    def dropout(x: Tensor, purpose: str, p: float, packing: Packing | None) -> Tensor:
        masks: dict[tuple[int, int, int], Tensor] = {}
        keys = [(c.seed, s, bins) for c, s, bins in zip(stack.configs, stack.steps, inputs.bins, strict=True)]
        for k, key in enumerate(keys):
            if key in masks:
                continue
            if packing is None:  # x is (K, B, T, F)
                mask = draw(k, (size, inputs.bins[k], x.shape[3]), purpose, p)[rows]
                padding = x.shape[2] - inputs.bins[k]
                masks[key] = F.pad(mask, (0, 0, 0, padding)) if padding else mask  # it would be copied
            else:  # x is (K, N, H), and some of the N slots are the trial's own
                own = to_device(packing.own_slots[k], x.device)
                mask = draw(k, (int(inputs.frames[k].sum()), x.shape[2]), purpose, p)[slots[k]]
                masks[key] = mask if len(own) == x.shape[1] else mask.new_zeros(x.shape[1:]).index_copy(0, own, mask)
        return masks[keys[0]].unsqueeze(0) if len(masks) == 1 else torch.stack([masks[key] for key in keys])

    return dropout


def _slots_of(frames: Tensor, rows: slice) -> list[Tensor | slice]:
    """Find the slots of these rows in each trial's packed whole batch. Packing the rows alone keeps their order."""
    chosen = torch.zeros(frames.shape[1], dtype=torch.bool)
    chosen[rows] = True
    if chosen.all():
        return [slice(None)] * len(frames)
    packing = pack(frames)
    return [chosen[packing.row[k, own]] for k, own in enumerate(packing.own_slots)]
