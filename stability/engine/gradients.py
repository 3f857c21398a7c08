"""The forward and backward pass of a step: losses and gradients of a stack on its next batch. No weight is changed."""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from stability.data.records import Split
from stability.engine.batch import Inputs, micro_batches, select_rows, training_inputs
from stability.engine.decoder import OnOutput, Parameters, ignore_output
from stability.engine.optimizer import DAY_LAYER
from stability.engine.predict import dropout_of, predict, reduce_losses, select_days
from stability.engine.stack import Stack


class Pass(NamedTuple):
    """A forward and backward pass over the next batch of each trial."""

    inputs: Inputs
    logits: Tensor  # (K, T', B, C)
    nll: Tensor  # (K, B) negative log-likelihood of each utterance, in nats
    loss: Tensor  # (K,) as configured
    loss_per_label: Tensor  # (K,)
    gradients: Parameters  # of loss times loss scale; the day layers' are (K, D, ...), of the days in the batch


class Examination(NamedTuple):
    """The next step of a stack of one, computed but not applied. Its B utterances are those of the batch, in order."""

    x: Tensor  # (B, T, F) what the decoder reads, noise included
    frames: Tensor  # (B,) output frames
    nll: Tensor  # (B,) the loss of each utterance, in nats
    not_finite: list[str]  # modules by their outputs, in forward order; then gradients, in backward order


def forward_backward(stack: Stack, split: Split, on_output: OnOutput = ignore_output) -> Pass:
    """Compute losses and gradients of every trial on the batch, noise and dropout of its next step."""
    inputs = training_inputs(stack, split)
    leaves = {n: p.detach().requires_grad_() for n, p in select_days(stack.parameters, inputs.days).items()}
    parts = (_pass_rows(stack, leaves, inputs, rows, on_output=on_output) for rows in micro_batches(stack, inputs))
    return reduce(_add, parts)


def gradients_of(stack: Stack, split: Split) -> Parameters:
    """Compute the gradient of each trial's loss at its weights, on the batch, noise and dropout of its next step.

    Returns:
        `{name: (K, ...)}`, like the parameters and in their dtype, neither clipped nor scaled. It is zero in the
        layers of days that are not in the batch.
    """
    inputs, *_, gradients = forward_backward(stack, split)
    trial, day = torch.arange(len(stack.configs)).unsqueeze(1), torch.tensor(inputs.days)
    whole = {}
    for name, gradient in gradients.items():
        gradient = gradient / stack.loss_scale.view(-1, *(1,) * (gradient.ndim - 1))
        if name in DAY_LAYER:
            gradient = torch.zeros_like(stack.parameters[name]).index_put((trial, day), gradient)
        whole[name] = gradient
    return whole


def examine(stack: Stack, split: Split) -> Examination:
    """Compute the next step of a stack of one, and find what is not finite in it. The stack stays as it is."""
    not_finite: list[str] = []

    def check(name: str, output: Tensor) -> None:
        if not output.isfinite().all():
            not_finite.append(name)

    inputs, _, nll, loss, _, gradients = forward_backward(stack, split, check)
    check("loss", loss)
    for name, gradient in reversed(gradients.items()):
        check(f"gradient of {name}", gradient)
    return Examination(inputs.x[0], inputs.frames[0], nll[0], not_finite)


def _pass_rows(stack: Stack, leaves: Parameters, inputs: Inputs, rows: slice, *, on_output: OnOutput) -> Pass:
    """Compute the share of some rows of a batch in its mean loss, and in the gradients."""
    part = select_rows(inputs, rows)
    logits, nll = predict(stack, leaves, part, dropout_of(stack, inputs, rows), on_output=on_output)
    share = part.frames.shape[1] / inputs.frames.shape[1]
    loss, loss_per_label = (share * mean for mean in reduce_losses(stack, nll, part.label_counts))
    gradients = dict(zip(leaves, torch.autograd.grad((loss * stack.loss_scale).sum(), [*leaves.values()]), strict=True))
    return Pass(
        inputs=inputs,
        logits=logits.detach(),
        nll=nll.detach(),
        loss=loss.detach(),
        loss_per_label=loss_per_label.detach(),
        gradients=gradients,
    )


def _add(first: Pass, second: Pass) -> Pass:
    """Combine the passes over two parts of a batch. The rows of the second follow those of the first.

    The gradients of the first are changed in place.
    """
    for name, gradient in second.gradients.items():
        first.gradients[name].add_(gradient)
    return Pass(
        inputs=first.inputs,
        logits=torch.cat([first.logits, second.logits], 2),
        nll=torch.cat([first.nll, second.nll], 1),
        loss=first.loss + second.loss,
        loss_per_label=first.loss_per_label + second.loss_per_label,
        gradients=first.gradients,
    )
