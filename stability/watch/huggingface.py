"""The callback for Hugging Face's Trainer: `Trainer(..., callbacks=[StabilityCallback()])`."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK
from stability.diagnosis.verdict import FATAL, Fault
from stability.watch.loop_monitor import LoopMonitor, MonitorOwner, loggable, mean_over_ranks

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError:
    raise ImportError(
        "stability.huggingface needs transformers and accelerate, which are not installed. "
        "Run: pip install transformers accelerate"
    ) from None

_SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "DataParallel")
_LENGTH_METHODS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")  # a model has one or none


class StabilityCallback(MonitorOwner, TrainerCallback):
    """Watches a training by the Trainer, stops it before an update that would spoil it, and gives a verdict at the end.

    Loss and logits are taken from the model's output. In a …ForCTC model the CTC blank is watched too, and what the
    loss is given is checked, as by `Monitor.step`: the labels in the model's inputs, of which negative ones are
    padding, and the frames of each utterance, which the model computes from `input_lengths` or `attention_mask`.
    `names` in the model's inputs or output name the utterances in the evidence. The error rate is taken from the
    metrics of an evaluation. The verdict is printed, and added to the log history.

    A step is an optimizer step. If batches are accumulated, it has the loss of all of them and the last logits.
    Gradient norms are measured before the Trainer clips. In fp16 a step that the scaler skips is not counted. With DDP
    the loss and the norms are means over all processes, so that they stop together; the other signals are those of
    each process. Process 0 prints.

    FSDP, DeepSpeed, DataParallel and a loss that is computed outside the model cannot be watched: the training raises
    `StabilityError` at its first step.

    Args:
        error_rate: The name of the metric, a fraction or in percent. By default the first whose name ends in per,
            wer, cer or error_rate.
        blank: The index of CTC's blank among the classes of the logits, `[batch, frames, classes]`. By default the
            `pad_token_id` of a …ForCTC model; other models are watched for blank only if it is given.
        stop_on: The kinds of findings that end the training, as for `Monitor`.
    """

    def __init__(
        self, error_rate: str | None = None, *, blank: int | None = None, stop_on: Collection[Fault] = FATAL
    ) -> None:
        self._error_rate, self._blank, self._stop_on = error_rate, blank, stop_on
        self._summed = False
        self._hooks: list[RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the Monitor and its hooks."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        mode = "DataParallel" if args.n_gpu > 1 else str(optimizer.accelerator_state.distributed_type.value)
        if mode in _SHARDED:
            raise StabilityError(
                f"StabilityCallback needs the whole model in each process, but {mode} splits it or its batches. Start "
                "the training with torchrun (DDP) or on one device (CUDA_VISIBLE_DEVICES=0), or remove the callback."
            )
        self._remove_hooks()  # left by a training that did not reach its end
        blank = _ctc_blank(model) if self._blank is None else self._blank
        self._monitor = monitor = _UnclippedMonitor(
            model,
            optimizer,
            blank=BLANK if blank is None else blank,
            error_rate=self._error_rate,
            stop_on=self._stop_on,
        )
        # With num_items_in_batch the loss of a batch is its share of the step's loss, also over processes.
        shares = args.world_size if args.average_tokens_across_devices else 1

        def read_output(module: nn.Module, _: Any, inputs: Mapping[str, Any], output: Any) -> None:
            if not module.training:
                return
            self._summed = inputs.get("num_items_in_batch") is not None
            loss = _loss(output)
            given = _given(module, inputs, output) if blank is not None and isinstance(output, Mapping) else {}
            monitor.add_batch(loss * shares if self._summed else loss, **given)

        self._hooks = [model.register_forward_hook(read_output, with_kwargs=True), *monitor.hooks]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the step."""
        if self.monitor.must_skip_update(summed=self._summed):
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the metrics of the evaluation."""
        if self._monitor is not None:
            self._monitor.add_metrics(kwargs["metrics"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log and print the verdict."""
        self._remove_hooks()
        verdict = self.monitor.end(show=state.is_world_process_zero)
        if verdict is not None:
            state.log_history.append({"step": state.global_step, **loggable(verdict)})  # type: ignore[dict-item]  # some are text

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _UnclippedMonitor(LoopMonitor):
    """Measures gradients in the backward pass: when the Trainer calls its callbacks, it has already clipped."""

    def __init__(
        self, model: nn.Module, optimizer: Any, blank: int, error_rate: str | None, stop_on: Collection[Fault] = FATAL
    ) -> None:
        super().__init__(
            model,
            optimizer.optimizer,
            blank=blank,
            error_rate=error_rate,
            scaler=optimizer.scaler,
            stop_on=stop_on,
        )
        self._gradient_state = optimizer.gradient_state
        trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self._zero = torch.zeros((), device=next(self._model.parameters()).device)
        self._norm_of = dict.fromkeys(trained, self._zero)
        self.hooks: list[RemovableHandle] = []
        for name, p in trained.items():
            self.hooks.append(p.register_post_accumulate_grad_hook(partial(self._keep_norm, name)))  # type: ignore[no-untyped-call]

    def must_skip_update(self, *, summed: bool = False) -> bool:
        skip = super().must_skip_update(summed=summed)
        self._norm_of = dict.fromkeys(self._norm_of, self._zero)  # not every step reaches every parameter
        return skip

    def _keep_norm(self, name: str, p: Tensor) -> None:
        if p.grad is not None and self._gradient_state.sync_gradients:  # the last of the step's batches
            self._norm_of[name] = torch.linalg.vector_norm(p.grad.float()).to(self._zero.device)

    def _norms(self) -> tuple[list[str], Tensor]:
        norms = torch.stack([*self._norm_of.values()])
        if self._scaler is not None:
            norms = norms / self._scaler.scale(torch.ones_like(self._zero))
        return [*self._norm_of], mean_over_ranks(norms)


def _loss(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if loss is None:
        raise StabilityError(
            "The model's output has no loss, but StabilityCallback reads it from there. Let the model compute it from "
            "its labels (no compute_loss_func, no label smoothing), or remove the callback."
        )
    assert isinstance(loss, Tensor)
    return loss


def _ctc_blank(model: nn.Module) -> int | None:
    """Return the class of blank in a …ForCTC model, also if it is wrapped; None for any other model."""
    if not any(type(module).__name__.endswith("ForCTC") for module in model.modules()):
        return None
    blank: int | None = getattr(getattr(model, "config", None), "pad_token_id", None)
    return blank


def _given(model: nn.Module, inputs: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Monitor.step` that are in a model's inputs and output."""
    logits, labels = output.get("logits"), inputs.get("labels")
    found = {"logits": logits, "batch": output.get("names", inputs.get("names", ()))}
    if isinstance(logits, Tensor):
        found["lengths"] = _lengths(model, inputs, logits.shape[1])
    if isinstance(labels, Tensor) and labels.ndim == 2:
        found |= _without_padding(labels)
    return found


def _lengths(model: nn.Module, inputs: Mapping[str, Any], frames: int) -> Tensor | None:
    """Return the number of frames of each utterance, if the model or its inputs tell it."""
    mask = inputs.get("attention_mask")
    samples = inputs.get("input_lengths")
    if samples is None and isinstance(mask, Tensor):
        samples = mask.sum(-1)
    if samples is None:
        return None
    for name in _LENGTH_METHODS:
        if hasattr(model, name):
            lengths: Tensor = getattr(model, name)(samples)
            return lengths
    is_by_frame = isinstance(mask, Tensor) and mask.shape[-1] == frames
    return samples if is_by_frame else None


def _without_padding(labels: Tensor) -> dict[str, Tensor]:
    """Return labels with the negative ones, which are padding, behind the others, and the counts of the others."""
    padding = labels < 0
    order = padding.int().argsort(dim=1, stable=True)
    return {"labels": labels.gather(1, order), "label_counts": (~padding).sum(1)}
