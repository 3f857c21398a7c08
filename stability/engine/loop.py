"""The one training loop: a stack of trials, in lock-step. A plain run is a stack of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stability.config.schema import Config
from stability.core.device import sent
from stability.core.errors import StabilityError
from stability.core.streams import torch_stream
from stability.data.augment import add_noise, draw_cut, smooth
from stability.data.batches import Batch, training_batch, validation_batches
from stability.data.records import Split
from stability.diagnosis.signals import EXPENSIVE_EVERY, signals_of
from stability.diagnosis.table import Table
from stability.engine import measure
from stability.engine.decoder import Dropout, Parameters, Watch, forward, frames_of, unwatched
from stability.engine.loss import collapse, ctc_losses, edit_distance, without_blanks
from stability.engine.memory import if_memory_allows
from stability.engine.optimizer import (
    DAY_LAYER,
    Moments,
    adamw_step,
    clip_coefficients,
    gradient_norms,
    zero_moments,
)
from stability.engine.packing import Packing, pack
from stability.engine.schedule import learning_rate

_GROWTH_INTERVAL = 2000  # fp16: steps without an overflow after which the loss scale doubles
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Stack:
    """Trials that are trained together, and all that changes while they are. Tensors lead with the trial axis K.

    They may differ in optimizer, schedule, augmentation, loss, seed and step; not in model, batch or precision.
    """

    configs: list[Config]
    parameters: Parameters
    moments: Moments
    steps: list[int]  # (K,) each trial's next one
    failed: Tensor  # (K,) 1.0 once a loss or gradient was not finite: that trial is never stepped again
    loss_scale: Tensor  # (K,) 1 but in fp16
    steps_since_overflow: Tensor  # (K,)
    micro_batches: int = field(default=1, kw_only=True)  # parts in which a batch is passed, for want of memory

    @property
    def step(self) -> int:
        """The next step of a stack of one."""
        (step,) = self.steps
        return step

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.failed.device

    @property
    def dtype(self) -> torch.dtype:
        """What it is kept in: float32, or float64 to make steps again."""
        return self.parameters["h0"].dtype


class Examination(NamedTuple):
    """The next step of a stack of one, looked at and not made. Its B utterances are the batch's, in order."""

    x: Tensor  # (B, T, F) what the decoder reads, noise included
    frames: Tensor  # (B,) output frames
    nll: Tensor  # (B,) each utterance's own loss
    not_finite: list[str]  # modules by their outputs, in forward order, then gradients, in backward order


def new_stack(configs: Sequence[Config], parameters: Sequence[Parameters], device: torch.device) -> Stack:
    """A stack before its first step. The parameters come without the trial axis."""
    stacked = {name: torch.stack([p[name] for p in parameters]).to(device) for name in parameters[0]}
    half = compute_dtype(configs[0], device) == torch.float16
    scale = torch.tensor([c.precision.initial_loss_scale if half else 1.0 for c in configs], device=device)
    failed, steps_since_overflow = torch.zeros_like(scale), torch.zeros_like(scale)
    steps = [0] * len(configs)
    return Stack(list(configs), stacked, zero_moments(stacked), steps, failed, scale, steps_since_overflow)


def select(stack: Stack, places: Sequence[int]) -> Stack:
    """A copy of some trials of a stack, in this order."""
    index = torch.tensor(places, device=stack.device)

    def chosen(tensors: Parameters) -> Parameters:
        return {name: t.index_select(0, index) for name, t in tensors.items()}

    return Stack(
        [stack.configs[k] for k in places],
        chosen(stack.parameters),
        Moments(*map(chosen, stack.moments)),
        [stack.steps[k] for k in places],
        *(t.index_select(0, index) for t in (stack.failed, stack.loss_scale, stack.steps_since_overflow)),
        micro_batches=stack.micro_batches,
    )


def join(stacks: Sequence[Stack]) -> Stack:
    """One stack of the trials of several, in their order."""

    def joined(tensors: Sequence[Parameters]) -> Parameters:
        return {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}

    return Stack(
        [c for s in stacks for c in s.configs],
        joined([s.parameters for s in stacks]),
        Moments(*(joined(kind) for kind in zip(*(s.moments for s in stacks), strict=True))),
        [step for s in stacks for step in s.steps],
        *(torch.cat([getattr(s, n) for s in stacks]) for n in ("failed", "loss_scale", "steps_since_overflow")),
        micro_batches=max(s.micro_batches for s in stacks),
    )


def precision_on(config: Config, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision of the forward pass. `auto` is the official bf16 on a GPU that has it, and fp32 elsewhere.

    Raises StabilityError where bf16 is asked of a GPU without it, which would be slow and say nothing.
    """
    dtype = config.precision.dtype
    if dtype == "auto":
        return "bf16" if device.type == "cuda" and _has_bf16(device) else "fp32"
    if dtype == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise StabilityError(
            f"precision=bf16, but {torch.cuda.get_device_name(device)} has no bf16: "
            "give precision=fp32, which has the same mathematics, or precision=fp16, which is faster."
        )
    return dtype


@cache  # it is asked at every step
def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass."""
    return _DTYPES[precision_on(config, device)]


def train_steps(stack: Stack, split: Split, count: int) -> list[Table]:
    """Train every trial of the stack up to `count` steps further. The host waits for the device once, at the end.

    If a step fails, return the signals of the steps before it; the next call meets the error again.

    Returns:
        The signals of each trial, in the order of the stack, one row a step.

    Raises:
        Exception: whatever made the first of these steps fail. The stack is then as it was.
    """
    signals = signals_of(stack.configs[0].model.layers)
    rows: list[dict[str, Tensor]] = []
    for _ in range(count):
        try:
            rows.append(_train_step(stack, split))
        except Exception:
            if not rows:
                raise
            break
    names = tuple(signal.name for signal in signals)
    missing = torch.full_like(stack.failed, torch.nan)
    columns = [torch.stack([row.get(name, missing) for row in rows]) for name in names]
    values = torch.stack(columns, 2).transpose(0, 1).cpu().numpy()  # (K, steps, names)
    steps = np.array(stack.steps)[:, None] + np.arange(-len(rows), 0)  # (K, steps)
    # What is expensive is computed for the whole stack if it is due in one of its trials: the others leave it out, so
    # that a trial has the same signals alone and in any stack.
    measured = steps[..., None] % [signal.every for signal in signals] == 0
    measured &= np.array([[name in row for name in names] for row in rows])
    values[~measured] = np.nan
    return [Table(names, *of_trial) for of_trial in zip(steps, values, measured, strict=True)]


def examine(stack: Stack, split: Split) -> Examination:
    """Look at the next step of a stack of one, which stays as it is."""
    not_finite: list[str] = []

    def watch(name: str, output: Tensor) -> None:
        if not output.isfinite().all():
            not_finite.append(name)

    inputs, _, nll, loss, _, gradients = _pass(stack, split, watch)
    watch("loss", loss)
    for name, gradient in reversed(gradients.items()):
        watch(f"gradient of {name}", gradient)
    return Examination(inputs.x[0], inputs.frames[0], nll[0].detach(), not_finite)


def gradients_of(stack: Stack, split: Split) -> Parameters:
    """The gradient of each trial's loss at its weights, on the batch, noise and dropout of its next step.

    {name: (K, ...)}, like the parameters and in their dtype, neither clipped nor scaled; zero in the layers of days
    that are not in the batch. Nothing is stepped.
    """
    inputs, *_, gradients = _pass(stack, split)
    trial, day = torch.arange(len(stack.configs)).unsqueeze(1), torch.tensor(inputs.days)
    whole = {}
    for name, gradient in gradients.items():
        gradient = gradient / stack.loss_scale.view(-1, *(1,) * (gradient.ndim - 1))
        if name in DAY_LAYER:
            gradient = torch.zeros_like(stack.parameters[name]).index_put((trial, day), gradient)
        whole[name] = gradient
    return whole


def evaluate(stack: Stack, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Phoneme error rate and loss of each trial on a whole split: two arrays (K,).

    The rate is total edit distance over total label length. The loss, as configured, is averaged over the
    utterances of a batch and then over the batches, one day each, as the official trainer does. Decoding is on
    the device; what it says is fetched at the end.
    """
    configs = stack.configs
    losses: list[Tensor] = []  # (K,) by batch
    said: list[tuple[tuple[int, ...], Tensor]] = []  # trials, and the classes (K, B, T') of each
    for batch in validation_batches(split, configs[0].batch.size):
        features = batch.features.to(stack.device)
        with torch.no_grad(), _autocast(stack):
            smoothed = {std: smooth(features, std) for std in {c.aug.smooth_std for c in configs}}
            x = torch.stack([smoothed[c.aug.smooth_std] for c in configs])
            inputs = _inputs(stack, x, [batch] * len(configs), [0] * len(configs))
            logits, nll = _predict(stack, _select_days(stack.parameters, inputs.days), inputs, None)
        losses.append(_configured(stack, nll, inputs)[0])
        classes = logits.argmax(-1).transpose(1, 2)
        said.append((batch.utterances, collapse(classes, sent(inputs.frames, stack.device)).to(torch.int8)))
    errors, label_count = np.zeros(len(configs), np.int64), 0
    for trials, spoken in said:
        targets = [split.labels(i).tolist() for i in trials]
        label_count += sum(map(len, targets))
        for k, rows in enumerate(spoken.cpu()):
            errors[k] += sum(map(edit_distance, without_blanks(rows), targets))
    return errors / label_count, np.mean(torch.stack(losses).cpu().numpy(), 0)


def _train_step(stack: Stack, split: Split) -> dict[str, Tensor]:
    configs, device = stack.configs, stack.device
    inputs, logits, _, loss, loss_per_label, gradients = _pass(stack, split)
    norms = {name: norm / stack.loss_scale for name, norm in gradient_norms(gradients).items()}
    signals = {"loss": loss.detach(), "loss_per_label": loss_per_label.detach()} | measure.norms_by_part(norms)
    norm = signals["grad_norm"]
    limit = torch.tensor([torch.inf if c.optimizer.clip_norm is None else c.optimizer.clip_norm for c in configs])
    limit = sent(limit, device)
    signals["loss_scale"] = stack.loss_scale
    clipped_norm = norm * stack.loss_scale if configs[0].precision.clip_before_unscale else norm
    coefficients = clip_coefficients(clipped_norm, limit)
    signals["clipped"] = (clipped_norm > limit).float()
    frames, label_counts = sent(inputs.frames, device), sent(inputs.label_counts, device)
    signals |= measure.output_signals(logits, frames)
    signals["input_max"] = measure.input_max(inputs.x)
    signals["infeasible_targets"] = measure.infeasible_targets(inputs.labels, label_counts, frames).sum(1).float()
    signals["labels"] = label_counts.float().mean(1)

    skip, after = _judge_finiteness(stack, loss.detach(), norm)
    signals["applied_norm"] = torch.where(skip > 0, 0, norm * coefficients)
    divisors = signals["loss_scale"] / coefficients
    rates = [learning_rates(c, step) for c, step in zip(configs, stack.steps, strict=True)]
    signals["lr"] = sent(torch.tensor([rate for rate, _ in rates]), device)
    expensive = any(step % EXPENSIVE_EVERY == 0 for step in stack.steps)
    if expensive:
        signals["frame_information"] = measure.frame_information(logits, frames)
    before = {n: p.clone() for n, p in stack.parameters.items()} if expensive else {}
    optimizers = [c.optimizer for c in configs]
    # Until here the stack is as it was: a step that fails, as for want of memory, is made again.
    adamw_step(stack.parameters, stack.moments, gradients, inputs.days, optimizers, rates, divisors, skip)
    stack.failed, stack.loss_scale, stack.steps_since_overflow = after
    stack.steps = [step + 1 for step in stack.steps]
    if expensive:
        # The step is made: what cannot be measured of it is missing, and no row of other signals is lost.
        with if_memory_allows():
            signals |= measure.update_signals(before, stack.parameters)
            signals |= measure.epsilon_signals(stack.moments, optimizers, [rate for rate, _ in rates])
    return signals


class _Pass(NamedTuple):
    """A step's way forward and back, before any weight is touched."""

    inputs: "_Inputs"
    logits: Tensor  # (K, T', B, C)
    nll: Tensor  # (K, B)
    loss: Tensor  # (K,) as configured
    loss_per_label: Tensor  # (K,)
    gradients: Parameters  # of loss times loss scale; the day layers' are of the days in the batch


def _pass(stack: Stack, split: Split, watch: Watch = unwatched) -> _Pass:
    with _autocast(stack):
        inputs = _augmented(stack, split)
    leaves = {n: p.detach().requires_grad_() for n, p in _select_days(stack.parameters, inputs.days).items()}
    return reduce(_added, (_pass_rows(stack, leaves, inputs, rows, watch) for rows in _parts(stack, inputs)))


def _pass_rows(stack: Stack, leaves: Parameters, inputs: "_Inputs", rows: slice, watch: Watch) -> _Pass:
    """What some rows of a batch add to its loss, a mean over all of them, and to its gradients."""
    part = _select_rows(inputs, rows)
    with _autocast(stack):
        logits, nll = _predict(stack, leaves, part, _dropout(stack, inputs, rows), watch)
    share = part.frames.shape[1] / inputs.frames.shape[1]
    loss, loss_per_label = (share * mean for mean in _configured(stack, nll, part))
    gradients = dict(zip(leaves, torch.autograd.grad((loss * stack.loss_scale).sum(), [*leaves.values()]), strict=True))
    return _Pass(inputs, logits.detach(), nll.detach(), loss.detach(), loss_per_label.detach(), gradients)


def _added(first: _Pass, second: _Pass) -> _Pass:
    """The passes of two parts of a batch, whose rows follow one another, as one. Overwrites the first's gradients."""
    for name, gradient in second.gradients.items():
        first.gradients[name].add_(gradient)
    logits, nll = torch.cat([first.logits, second.logits], 2), torch.cat([first.nll, second.nll], 1)
    loss, loss_per_label = first.loss + second.loss, first.loss_per_label + second.loss_per_label
    return _Pass(first.inputs, logits, nll, loss, loss_per_label, first.gradients)


class _Inputs(NamedTuple):
    """What the K trials of a stack read at one step. All but x and labels stay on the host."""

    x: Tensor  # (K, B, T, F)
    frames: Tensor  # (K, B) output frames of each utterance
    labels: Tensor  # (K, B, L)
    label_counts: Tensor  # (K, B)
    days: list[list[int]]  # (K, D) the days in the batch
    rows_per_day: tuple[int, ...]
    bins: list[int]  # (K,) the length of each trial's own batch, without the padding to the stack's longest


def _inputs(stack: Stack, x: Tensor, batches: Sequence[Batch], cuts: Sequence[int]) -> _Inputs:
    model = stack.configs[0].model
    longest = max(b.labels.shape[1] for b in batches)
    labels = torch.stack([F.pad(b.labels, (0, longest - b.labels.shape[1])) for b in batches])
    return _Inputs(
        x,
        torch.stack([frames_of(b.bins - cut, model) for b, cut in zip(batches, cuts, strict=True)]),
        sent(labels, stack.device),
        torch.stack([b.label_counts for b in batches]),
        [b.days for b in batches],
        batches[0].rows_per_day,
        [b.features.shape[1] - cut for b, cut in zip(batches, cuts, strict=True)],
    )


def _augmented(stack: Stack, split: Split) -> _Inputs:
    """Batches with noise, cut and smoothing. Trials of one seed at one step share all but the noise's scale."""
    configs = stack.configs
    groups: dict[tuple[int, int, int, float], list[int]] = {}
    for k, (c, step) in enumerate(zip(configs, stack.steps, strict=True)):
        groups.setdefault((c.seed, step, c.aug.max_cut, c.aug.smooth_std), []).append(k)
    batches: dict[int, Batch] = {}
    cuts: dict[int, int] = {}
    x: dict[int, Tensor] = {}
    for (seed, step, max_cut, smooth_std), members in groups.items():
        batch = training_batch(split, configs[0].batch.size, configs[0].batch.days, seed=seed, step=step)
        cut = draw_cut(max_cut, seed, step)
        aug = [configs[k].aug for k in members]
        white, offset = ([getattr(a, f"{kind}_std") for a in aug] for kind in ("white_noise", "constant_offset"))
        noisy = add_noise(
            batch.features.to(stack.device, stack.dtype), white_stds=white, offset_stds=offset, seed=seed, step=step
        )
        smoothed = smooth(noisy[:, :, cut:], smooth_std)
        for k, own in zip(members, smoothed, strict=True):
            batches[k], cuts[k], x[k] = batch, cut, own
    longest = max(own.shape[1] for own in x.values())
    order = range(len(configs))
    stacked = torch.stack([F.pad(x[k], (0, 0, 0, longest - x[k].shape[1])) for k in order])
    stacked = stacked.to(stack.parameters["h0"].dtype)
    return _inputs(stack, stacked, [batches[k] for k in order], [cuts[k] for k in order])


def _parts(stack: Stack, inputs: _Inputs) -> list[slice]:
    """The rows of each micro-batch."""
    size = inputs.frames.shape[1]
    count = min(stack.micro_batches, size)
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


def _select_rows(inputs: _Inputs, rows: slice) -> _Inputs:
    """Some rows of a batch; a day to which none of them belongs has 0 rows."""
    days = torch.arange(len(inputs.rows_per_day))
    counts = days.repeat_interleave(torch.tensor(inputs.rows_per_day))[rows].bincount(minlength=len(days))
    tensors = {name: getattr(inputs, name)[:, rows] for name in ("x", "frames", "labels", "label_counts")}
    return inputs._replace(**tensors, rows_per_day=tuple(counts.tolist()))


def _dropout(stack: Stack, inputs: _Inputs, rows: slice = slice(None)) -> Dropout:
    """Dropout of some rows of a batch, whose masks depend on (seed, purpose, step) and the trial's own whole batch.

    So neither its neighbours nor micro-batches change them.
    """
    size = inputs.frames.shape[1]
    slots = _slots(inputs.frames, rows)

    def draw(k: int, shape: Sequence[int], purpose: str, p: float) -> Tensor:
        stream = torch_stream(stack.configs[k].seed, f"dropout {purpose}", stack.steps[k], stack.device)
        return torch.rand(shape, generator=stream, device=stack.device).ge_(p).div_(1 - p)

    def dropout(x: Tensor, purpose: str, p: float, packing: Packing | None) -> Tensor:
        masks: dict[tuple[int, int, int], Tensor] = {}
        keys = [(c.seed, s, bins) for c, s, bins in zip(stack.configs, stack.steps, inputs.bins, strict=True)]
        for k, key in enumerate(keys):
            if key in masks:
                continue
            if packing is None:  # (K, B, T, F)
                mask = draw(k, (size, inputs.bins[k], x.shape[3]), purpose, p)[rows]
                masks[key] = F.pad(mask, (0, 0, 0, x.shape[2] - inputs.bins[k]))
            else:  # (K, N, H), of which a trial's own slots are some
                own = sent(packing.own_slots[k], x.device)
                mask = draw(k, (int(inputs.frames[k].sum()), x.shape[2]), purpose, p)[slots[k]]
                masks[key] = mask if len(own) == x.shape[1] else mask.new_zeros(x.shape[1:]).index_copy(0, own, mask)
        whole = masks[keys[0]].unsqueeze(0) if len(masks) == 1 else torch.stack([masks[key] for key in keys])
        return x * whole.to(x.dtype)

    return dropout


def _slots(frames: Tensor, rows: slice) -> list[Tensor | slice]:
    """Which of the slots of each trial's packed batch are of these rows. Packed alone, those have the same order."""
    chosen = torch.zeros(frames.shape[1], dtype=torch.bool)
    chosen[rows] = True
    if chosen.all():
        return [slice(None)] * len(frames)
    packing = pack(frames)
    return [chosen[packing.row[k, own]] for k, own in enumerate(packing.own_slots)]


def _predict(
    stack: Stack, parameters: Parameters, inputs: _Inputs, dropout: Dropout | None, watch: Watch = unwatched
) -> tuple[Tensor, Tensor]:
    """Logits (K, T', B, C) and each utterance's negative log-likelihood (K, B)."""
    parts = _parts(stack, inputs)
    if dropout is None and len(parts) > 1:  # in validation; in training each part goes back before the next
        whole = replace(stack, micro_batches=1)
        predicted = [_predict(whole, parameters, _select_rows(inputs, rows), None) for rows in parts]
        return torch.cat([logits for logits, _ in predicted], 2), torch.cat([nll for _, nll in predicted], 1)
    logits = forward(parameters, inputs.x, inputs.frames, inputs.rows_per_day, stack.configs[0].model, dropout, watch)
    return logits, ctc_losses(logits, inputs.frames, inputs.labels, inputs.label_counts)


def _configured(stack: Stack, nll: Tensor, inputs: _Inputs) -> tuple[Tensor, Tensor]:
    """Each trial's loss as its configuration reduces it, and per label: two tensors (K,)."""
    per_label = (nll / sent(inputs.label_counts, nll.device)).mean(1)
    by_label = [c.loss.reduction == "per_label_mean" for c in stack.configs]
    return torch.where(sent(torch.tensor(by_label), nll.device), per_label, nll.mean(1)), per_label


def _select_days(parameters: Parameters, days: list[list[int]]) -> Parameters:
    """The parameters, with the day layers of only the days in the batch: (K, D, ...)."""
    index = sent(torch.tensor(days), parameters["day_weights"].device)
    trial = torch.arange(len(days), device=index.device).unsqueeze(1)
    return {name: p[trial, index] if name in DAY_LAYER else p for name, p in parameters.items()}


def _judge_finiteness(stack: Stack, loss: Tensor, norm: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Which trials (K,) must not be stepped, 1.0 or 0.0; and what the stack has after the step.

    That is who has failed, fp16's loss scale, and the steps since its last overflow.
    """
    finite = loss.isfinite() & norm.isfinite()
    # In fp16 a gradient overflows now and then; it is a fault only when no smaller scale is left.
    overflow = loss.isfinite() & ~norm.isfinite() & (stack.loss_scale > 1)
    failed = torch.maximum(stack.failed, (~finite & ~overflow).float())
    # All that a failed trial has stays as it was before its failed step.
    going_on = failed == 0
    overflow &= going_on
    scale, since_overflow = stack.loss_scale, torch.where(overflow, 0, stack.steps_since_overflow + going_on)
    if compute_dtype(stack.configs[0], stack.device) == torch.float16:
        grow = going_on & (since_overflow > 0) & (since_overflow % _GROWTH_INTERVAL == 0)
        scale = torch.where(overflow, scale / 2, scale)
        scale = torch.where(grow, scale * 2, scale)
    return torch.maximum(failed, overflow.float()), (failed, scale, since_overflow)


def learning_rates(config: Config, step: int) -> tuple[float, float]:
    """The learning rate at a step, and that of the day layers."""
    s = config.schedule
    main = learning_rate(step, s.lr_max, s.lr_min, s.warmup_steps, s.decay_steps)
    return main, learning_rate(step, s.lr_max_day, s.lr_min_day, s.warmup_steps, s.decay_steps)


def _autocast(stack: Stack) -> torch.autocast:
    dtype = compute_dtype(stack.configs[0], stack.device)
    return torch.autocast(stack.device.type, dtype, enabled=dtype != torch.float32)
