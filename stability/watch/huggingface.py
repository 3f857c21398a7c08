"""A `Monitor` for Hugging Face's Trainer: `Trainer(..., callbacks=[StabilityCallback()])`."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK
from stability.diagnosis.verdict import FATAL, Fault
from stability.watch.loop_monitor import LoopMonitor, Watching, loggable, mean_over_ranks

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError:
    raise ImportError("stability.watch.huggingface needs the Trainer: pip install transformers accelerate") from None

_SPREAD = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "DataParallel")
_FRAMES = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")  # whichever the model has


class StabilityCallback(Watching, TrainerCallback):
    """Watches a Trainer's training, stops it before the update that it would not survive, and rules on it at the end.

    `stop_on` names what else should stop it, as for `Monitor`.

    Loss and logits are those of the model's output. The logits of a …ForCTC model are watched for blank, whose class
    is its `pad_token_id`; for any other CTC model with logits (B, T, C), say it with `blank`. The error rate (1 for
    all wrong, no percent) is the evaluation's metric `error_rate`, or the first whose name ends in per, wer, cer or
    error_rate. The verdict is added to the log history.

    One step is one optimizer step: of accumulated batches it has the loss that is stepped on and the last logits.
    Gradient norms are those before the Trainer clips. In fp16 a step that the scaler skips is none. With DDP loss and
    norms are means over all processes, so that they stop together, and the rest is each process's own; process 0
    prints. What cannot be watched (FSDP, DeepSpeed, DataParallel; a loss that is computed outside the model) raises
    `StabilityError` at the first step.
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
        """Begin to watch."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        spread = "DataParallel" if args.n_gpu > 1 else str(optimizer.accelerator_state.distributed_type.value)
        if spread in _SPREAD:
            raise StabilityError(
                f"StabilityCallback needs one whole model in each process, and {spread} spreads it: start the training "
                "with torchrun (DDP) or on one device (CUDA_VISIBLE_DEVICES=0), or leave this callback out."
            )
        self._stop_listening()  # to a training that did not come to its end
        blank = _ctc_blank(model) if self._blank is None else self._blank
        self._monitor = monitor = _UnclippedMonitor(
            model, optimizer, BLANK if blank is None else blank, self._error_rate, self._stop_on
        )
        # With num_items_in_batch each batch's loss is a share of the step's, and adds up over processes, too.
        shares = args.world_size if args.average_tokens_across_devices else 1

        def overhear(module: nn.Module, _: Any, inputs: Mapping[str, Any], output: Any) -> None:
            if not module.training:
                return
            self._summed = inputs.get("num_items_in_batch") is not None
            loss, logits, lengths = _loss(output), None, None
            if blank is not None and isinstance(output, Mapping):
                logits, lengths = output.get("logits"), _lengths(module, inputs.get("attention_mask"))
            monitor.took(loss * shares if self._summed else loss, logits, lengths)

        self._hooks = [model.register_forward_hook(overhear, with_kwargs=True), *monitor.hooks]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the step's signals."""
        if self.monitor.cannot_step(summed=self._summed):
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the evaluation's metrics."""
        if self._monitor is not None:
            self._monitor.logged(kwargs["metrics"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log and print the verdict."""
        self._stop_listening()
        verdict = self.monitor.end(show=state.is_world_process_zero)
        if verdict is not None:
            state.log_history.append({"step": state.global_step, **loggable(verdict)})  # type: ignore[dict-item]  # text, too

    def _stop_listening(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _UnclippedMonitor(LoopMonitor):
    """Measures gradients as the backward pass leaves them: the Trainer clips before it calls its callbacks."""

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
        self._seen = dict.fromkeys(trained, self._zero)
        self.hooks: list[RemovableHandle] = []
        for name, p in trained.items():
            self.hooks.append(p.register_post_accumulate_grad_hook(partial(self._see, name)))  # type: ignore[no-untyped-call]

    def cannot_step(self, *, summed: bool = False) -> bool:
        cannot = super().cannot_step(summed=summed)
        self._seen = dict.fromkeys(self._seen, self._zero)  # not every step reaches every parameter
        return cannot

    def _see(self, name: str, p: Tensor) -> None:
        if p.grad is not None and self._gradient_state.sync_gradients:  # the last of the step's batches
            self._seen[name] = torch.linalg.vector_norm(p.grad.float()).to(self._zero.device)

    def _norms(self) -> Iterator[tuple[str, Tensor]]:
        norms = torch.stack([*self._seen.values()])
        if self._scaler is not None:
            norms = norms / self._scaler.scale(torch.ones_like(self._zero))
        return zip(self._seen, mean_over_ranks(norms).unbind(), strict=True)


def _loss(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if loss is None:
        raise StabilityError(
            "The model's output has no loss, and StabilityCallback takes it from there: let the model compute it from "
            "its labels (no compute_loss_func, no label smoothing), or train without this callback."
        )
    assert isinstance(loss, Tensor)
    return loss


def _ctc_blank(model: nn.Module) -> int | None:
    """The class of blank of a …ForCTC model, whatever wraps it; None of any other."""
    if not any(type(module).__name__.endswith("ForCTC") for module in model.modules()):
        return None
    blank: int | None = getattr(getattr(model, "config", None), "pad_token_id", None)
    return blank


def _lengths(model: nn.Module, attention_mask: Tensor | None) -> Tensor | None:
    """Frames of each utterance, from its samples, where the model can say."""
    for name in _FRAMES:
        if attention_mask is not None and hasattr(model, name):
            lengths: Tensor = getattr(model, name)(attention_mask.sum(-1))
            return lengths
    return None
