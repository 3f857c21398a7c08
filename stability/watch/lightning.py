"""A `Monitor` for Lightning: `Trainer(callbacks=[StabilityCallback()])`."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK
from stability.diagnosis.verdict import FATAL, Fault
from stability.watch.loop_monitor import LoopMonitor, Watching, loggable

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        try:
            from pytorch_lightning import Callback
        except ModuleNotFoundError:
            raise ImportError("stability.watch.lightning needs Lightning: pip install lightning") from None

_SHARDED = {"DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"}  # in either package


class StabilityCallback(Watching, Callback):
    """Watches a Lightning training, stops it before the update that it would not survive, and rules on it at the end.

    `stop_on` names what else should stop it, as for `Monitor`.

    If `training_step` returns a dictionary with "logits" (B, T, C), and perhaps "lengths" (B,), blank is watched too;
    `blank` is its class. A validation's metrics are taken as they are logged: the error rate (1 for all wrong, no
    percent) is `error_rate`, or the first whose name ends in per, wer, cer or error_rate.

    One step is one optimizer step: of accumulated batches it has the mean loss and the last logits. In fp16 a step
    that the scaler skips is none. With DDP the loss is the mean over all processes, so that they stop together, and
    the rest is each process's own; process 0 logs and prints. Manual optimization and sharded gradients (FSDP,
    DeepSpeed, model parallel) raise `StabilityError` before the first step.
    """

    def __init__(
        self, error_rate: str | None = None, *, blank: int = BLANK, stop_on: Collection[Fault] = FATAL
    ) -> None:
        super().__init__()
        self._error_rate, self._blank, self._stop_on = error_rate, blank, stop_on
        self._stop_listening: Callable[[], object] = lambda: None

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse what cannot be watched."""
        if not pl_module.automatic_optimization:
            raise StabilityError(
                "StabilityCallback watches automatic optimization. In a manual one, keep a stability.Monitor for each "
                "optimizer and call its step(loss) between manual_backward(loss) and the optimizer's step."
            )
        if _SHARDED & {kind.__name__ for kind in type(trainer.strategy).__mro__}:
            raise StabilityError(
                f"With {type(trainer.strategy).__name__} each device has a part of the gradients only, and "
                "StabilityCallback needs them whole: train on one device or with strategy='ddp', or without it."
            )

    def on_sanity_check_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """See that the error rate is logged, before anything is trained."""
        self._watch(trainer, pl_module).logged(trainer.callback_metrics, rehearsal=True)

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Begin to watch."""
        self._monitor = self._watch(trainer, pl_module)
        self._listen(pl_module)

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the step's signals. Here gradients are unscaled, and not clipped yet."""
        assert self._monitor is not None
        if self._monitor.cannot_step():
            trainer.should_stop = True
            # Which would otherwise go on, without updates, for as long as the user has asked at least.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Take the validation's metrics."""
        if self._monitor is not None and not trainer.sanity_checking:
            self._monitor.logged(trainer.callback_metrics)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log and print the verdict. What takes numbers only gets the outcome's name with 1."""
        verdict = self.monitor.end(show=trainer.is_global_zero)
        if verdict is None:
            return
        numbers = {name: value for name, value in loggable(verdict).items() if not isinstance(value, str)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers | {f"stability/{verdict.outcome}": 1.0}, step=trainer.global_step)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Leave the module as it was."""
        self._stop_listening()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Leave the module as it was."""
        self._stop_listening()

    def _watch(self, trainer: "Trainer", pl_module: "LightningModule") -> LoopMonitor:
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

    def _listen(self, pl_module: "LightningModule") -> None:
        """Overhear what `training_step` returns: Lightning shows it to its callbacks only after the update."""
        training_step, own, monitor = pl_module.training_step, vars(pl_module), self.monitor
        before = {name: own[name] for name in ("training_step",) if name in own}  # there is one if it is compiled

        @functools.wraps(training_step)
        def overheard(*args: Any, **kwargs: Any) -> Any:
            output = training_step(*args, **kwargs)
            loss, rest = (output.get("loss"), output) if isinstance(output, Mapping) else (output, {})
            if loss is not None:
                monitor.took(loss, rest.get("logits"), rest.get("lengths"))
            return output

        def stop() -> None:
            own.pop("training_step", None)
            own.update(before)
            self._stop_listening = lambda: None

        own["training_step"] = overheard
        self._stop_listening = stop
