"""The callback for Lightning: `Trainer(callbacks=[StabilityCallback()])`."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK
from stability.diagnosis.verdict import FATAL, Fault
from stability.watch.loop_monitor import LoopMonitor, MonitorOwner, loggable

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        try:
            from pytorch_lightning import Callback
        except ModuleNotFoundError:
            raise ImportError(
                "stability.lightning needs Lightning, which is not installed. Run: pip install lightning"
            ) from None

_OF_BATCH = ("labels", "label_counts", "names")
_SHARDED = {"DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"}  # in either package


class StabilityCallback(MonitorOwner, Callback):
    """Watches a Lightning training, stops it before an update that would spoil it, and gives a verdict at the end.

    If `training_step` returns a dictionary with "logits", the CTC blank is watched too; with "lengths", "labels",
    "label_counts" and "names" as well, what the CTC loss was given is checked, as in `Monitor.step`, whose arguments
    they are ("names" is its `batch`). What the dictionary lacks of labels, their counts and names is taken from the
    batch, if that is a dictionary with these keys. The error rate is taken from the metrics that a validation logs.

    What the callback knows is saved in Lightning's checkpoints, and a training that is resumed from one goes on.

    A step is an optimizer step. If batches are accumulated, it has their mean loss and the last logits. In fp16 a step
    that the scaler skips is not counted. With DDP the loss is the mean over all processes, so that they stop together;
    the other signals are those of each process. Process 0 logs and prints.

    Manual optimization and sharded gradients (FSDP, DeepSpeed, model parallel) cannot be watched: the training raises
    `StabilityError` before its first step.

    Args:
        error_rate: The name of the metric, a fraction or in percent. By default the first whose name ends in per,
            wer, cer or error_rate.
        blank: The index of CTC's blank among the classes of the logits.
        stop_on: The kinds of findings that end the training, as for `Monitor`.
    """

    def __init__(
        self, error_rate: str | None = None, *, blank: int = BLANK, stop_on: Collection[Fault] = FATAL
    ) -> None:
        super().__init__()
        self._error_rate, self._blank, self._stop_on = error_rate, blank, stop_on
        self._restore_module: Callable[[], object] = lambda: None
        self._saved: dict[str, Any] | None = None  # the Monitor's state in the checkpoint that is resumed

    def state_dict(self) -> dict[str, Any]:
        """Return what the Monitor knows, for a checkpoint."""
        return {} if self._monitor is None else self._monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the Monitor's state from a checkpoint."""
        self._saved = state_dict or None

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Raise StabilityError if the training cannot be watched."""
        if not pl_module.automatic_optimization:
            raise StabilityError(
                "StabilityCallback needs automatic optimization. In manual optimization, make a stability.Monitor for "
                "each optimizer, and call its step(loss) between manual_backward(loss) and the optimizer's step."
            )
        if _SHARDED & {kind.__name__ for kind in type(trainer.strategy).__mro__}:
            raise StabilityError(
                f"With {type(trainer.strategy).__name__} each device has only a part of the gradients, but "
                "StabilityCallback needs all of them. Use one device or strategy='ddp', or remove the callback."
            )

    def on_sanity_check_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check that the error rate is logged, before anything is trained."""
        self._new_monitor(trainer, pl_module).add_metrics(trainer.callback_metrics, rehearsal=True)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Make the Monitor, and wrap the training step."""
        self._monitor = self._new_monitor(trainer, pl_module)
        if self._saved is not None:
            self._monitor.load_state_dict(self._saved)
            self._saved = None
        self._wrap_training_step(pl_module)

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the step. Here gradients are unscaled, but not clipped yet."""
        assert self._monitor is not None
        if self._monitor.must_skip_update():
            trainer.should_stop = True
            # Otherwise Lightning would go on, without updates, until the minimum that the user asked for.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Read the metrics of the validation."""
        if self._monitor is not None and not trainer.sanity_checking:
            self._monitor.add_metrics(trainer.callback_metrics)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log and print the verdict. Loggers take only numbers, so the outcome is logged as a name with the value 1."""
        verdict = self.monitor.end(show=trainer.is_global_zero)
        if verdict is None:
            return
        numbers = {name: value for name, value in loggable(verdict).items() if not isinstance(value, str)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers | {f"stability/{verdict.outcome}": 1.0}, step=trainer.global_step)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Leave the module as it was."""
        self._restore_module()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave the module as it was."""
        self._restore_module()

    def _new_monitor(self, trainer: "Trainer", pl_module: "LightningModule") -> LoopMonitor:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        optimizer = trainer.optimizers[0]
        return LoopMonitor(
            pl_module,
            optimizer,
            blank=self._blank,
            error_rate=self._error_rate,
            scaler=scaler,
            stop_on=self._stop_on,
        )

    def _wrap_training_step(self, pl_module: "LightningModule") -> None:
        """Wrap `training_step` to see what it returns: Lightning shows that to callbacks only after the update."""
        training_step, own, monitor = pl_module.training_step, vars(pl_module), self.monitor
        before = {name: own[name] for name in ("training_step",) if name in own}  # as in a compiled module

        @functools.wraps(training_step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            output = training_step(*args, **kwargs)
            loss, rest = (output.get("loss"), output) if isinstance(output, Mapping) else (output, {})
            if loss is not None:
                monitor.add_batch(loss, **_given(rest, args[0] if args else None))
            return output

        def restore() -> None:
            own.pop("training_step", None)
            own.update(before)
            self._restore_module = lambda: None

        own["training_step"] = wrapped
        self._restore_module = restore


def _given(output: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    """Return the arguments of `Monitor.step` that are in the output of a training step, or else in its batch."""
    found = {name: output[name] for name in ("logits", "lengths", *_OF_BATCH) if output.get(name) is not None}
    if isinstance(batch, Mapping) and ("label_counts" in batch or "label_counts" in found):
        found |= {name: batch[name] for name in ("labels", "label_counts") if name in batch and name not in found}
    if isinstance(batch, Mapping) and "names" in batch:
        found.setdefault("names", batch["names"])
    if "names" in found:
        found["batch"] = found.pop("names")
    return found
