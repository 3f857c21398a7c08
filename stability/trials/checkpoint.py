"""Checkpoints in the official layout, so that public ones load here and ours load there.

A file holds `model_state_dict`, `optimizer_state_dict`, `scheduler_state_dict`, `val_PER` and `val_loss` as the
official trainer writes them, and under `stability` what a resume needs beyond that.
"""

import inspect
import operator
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from stability.config.schema import Config
from stability.core.device import Precision, choose_precision
from stability.core.errors import StabilityError
from stability.core.files import LAST, PREVIOUS, replacing
from stability.core.text import first_of
from stability.engine.decoder import Parameters
from stability.engine.memory import is_out_of_memory
from stability.engine.optimizer import DAY_LAYER, Moments, group_of
from stability.engine.recurrent import Engine
from stability.engine.schedule import learning_rates
from stability.engine.stack import Stack
from stability.trials.requests import Validation

_STACK_STATE = ("failed", "loss_scale", "steps_since_overflow")  # one number for each trial
_PREFIX = "_orig_mod."  # what torch.compile puts before each name; the official trainer expects it


@dataclass
class Best:
    """The best validation so far: the lowest phoneme error rate; among equal rates the lowest loss.

    Attributes:
        validations: How many there were; None if an earlier version wrote the checkpoint.
    """

    per: float = float("inf")
    loss: float = float("inf")
    validations: int | None = 0

    def improve(self, validation: Validation) -> bool:
        """Count a validation, and take it over if it is better; return whether it was."""
        if self.validations is not None:
            self.validations += 1
        better = validation < (self.per, self.loss)
        if better:
            self.per, self.loss = validation
        return better


Save = Callable[[Path, Stack, int, Best], None]


def save(path: Path, stack: Stack, k: int, best: Best) -> None:
    """Write a checkpoint atomically: a reader finds the old file or the new one, never a part.

    Args:
        path: The checkpoint's file; its folder is made if need be.
        stack: The stack that holds the trial.
        k: The trial's place in the stack.
        best: The trial's best validation so far.
    """
    _write(path, _content(stack, k, best))


@contextmanager
def in_background() -> Iterator[Save]:
    """Save checkpoints in a thread while training goes on.

    Returns:
        A context manager. It gives a function like `save` that copies the trial to the host's memory and returns; a
        thread writes the file. The next call, and the end of the `with` statement, wait until the previous file is
        written. If it could not be written, they raise the OSError.
    """
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread:

        def save_in_background(path: Path, stack: Stack, k: int, best: Best) -> None:
            nonlocal writing
            if writing is not None:
                writing.result()
            writing = thread.submit(_write, path, _content(stack, k, best))

        try:
            yield save_in_background
        finally:
            if writing is not None:
                writing.result()


def _content(stack: Stack, k: int, best: Best) -> dict[str, Any]:
    """The content of trial `k`'s file: copies in the host's memory, and plain numbers."""
    own = {name: p[k] for name, p in stack.parameters.items()}
    moments = Moments(*({name: t[k] for name, t in kind.items()} for kind in stack.moments))
    optimizer, scheduler = _torch_states(stack.configs[k], own, moments, stack.steps[k])
    return {
        "model_state_dict": {_PREFIX + name: _host_copy(p) for name, p in split_days(own).items()},
        "optimizer_state_dict": optimizer,
        "scheduler_state_dict": scheduler,
        "val_PER": best.per,
        "val_loss": best.loss,
        "stability": {
            "step": stack.steps[k],
            "validations": best.validations,
            "precision": stack.precision,
            "engine": stack.engine,
            **{name: getattr(stack, name)[k].item() for name in _STACK_STATE},
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # such as a full disk: PyTorch raises its own error instead
                raise error.__context__ from None
            raise
        if path.name == LAST.name and path.exists():
            path.replace(path.with_name(PREVIOUS.name))


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def restore(path: Path, stack: Stack, k: int) -> Best:
    """Restore a trial from its checkpoint: weights, optimizer state, loss scale, step, precision and engine.

    With `precision=auto` the trial keeps the precision that it began with, on whatever device it goes on.

    Args:
        path: A file that `save` wrote.
        stack: The stack to restore into.
        k: The trial's place in the stack.

    Returns:
        The best validation so far.

    Raises:
        StabilityError: The file cannot be read, belongs to another model, was written by another program, or in a
            precision that the device does not have.
    """
    content = _read(path)
    if "stability" not in content:
        raise StabilityError(
            f"{path} was not written by this program, so training cannot be resumed from it. "
            f"To start from its weights, give init_from={path}"
        )
    own = {name: p[k] for name, p in stack.parameters.items()}
    weights = fit_weights(_weights(content), path, own)
    try:
        stack.precision, stack.engine = _arithmetic(content, path, stack, k)
        return _put(content, weights, stack, k)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise StabilityError(
            f"{path} is no checkpoint of a trial, or it is damaged ({reason}). Train from the start: fresh=true"
        ) from None


def _put(content: Mapping[str, Any], weights: Parameters, stack: Stack, k: int) -> Best:
    own = {name: p[k] for name, p in stack.parameters.items()}
    for name, p in weights.items():
        own[name].copy_(p)
    saved = content["optimizer_state_dict"]["state"]
    for kind, key in zip(stack.moments, ("exp_avg", "exp_avg_sq", "step"), strict=True):
        places = split_days({name: t[k] for name, t in kind.items()})  # views
        for index, name in enumerate(chain(*_by_group(own).values())):
            places[name].copy_(saved[index][key]) if index in saved else places[name].zero_()
    further = content["stability"]
    stack.steps[k] = operator.index(further["step"])
    for name in _STACK_STATE:
        getattr(stack, name)[k] = further[name]
    validations = further.get("validations")
    return Best(
        float(content["val_PER"]),
        float(content["val_loss"]),
        None if validations is None else operator.index(validations),
    )


def _arithmetic(content: Mapping[str, Any], path: Path, stack: Stack, k: int) -> tuple[Precision, Engine]:
    """Return the precision and the engine that a trial began with. Earlier versions did not write them."""
    begun = {"precision": stack.precision, "engine": stack.engine} | content["stability"]
    precision, engine = begun["precision"], begun["engine"]
    if precision not in get_args(Precision) or engine not in get_args(Engine):
        raise ValueError(f"precision {precision!r}, engine {engine!r}")
    if stack.configs[k].precision.dtype != "auto":
        return stack.precision, engine
    try:
        return choose_precision(precision, stack.device), engine
    except StabilityError:
        raise StabilityError(
            f"{path} was written in {precision}, which {stack.device} does not have. Continue on a device that has it, "
            "or train from the start: fresh=true"
        ) from None


def load_weights(path: Path, like: Parameters) -> Parameters:
    """Read the weights of a checkpoint, ours or a public one.

    Args:
        path: The checkpoint's file.
        like: Parameters, without the trial axis, of the model that the weights must fit.

    Returns:
        Parameters with the names and shapes of `like`.

    Raises:
        StabilityError: The file cannot be read, or names and shapes differ; the message names them.
    """
    return fit_weights(read_weights(path), path, like)


def read_weights(path: Path) -> Parameters:
    """Read the weights of a checkpoint, ours or a public one, whatever their shapes.

    Args:
        path: The checkpoint's file.

    Returns:
        Parameters under their official names: in the day layers, one tensor for each day.

    Raises:
        StabilityError: The file cannot be read.
    """
    return _weights(_read(path, mend="Give another file."))


def split_days(parameters: Mapping[str, Tensor]) -> Parameters:
    """Return the parameters of one trial under their official names: in the day layers, one tensor for each day."""
    named: Parameters = {}
    for name, p in parameters.items():
        named |= {f"{name}.{day}": own for day, own in enumerate(p)} if name in DAY_LAYER else {name: p}
    return named


def fit_weights(found: Parameters, path: Path, like: Parameters) -> Parameters:
    """Return weights as a model has them, if they are of such a model.

    Args:
        found: The weights under their official names, as `read_weights` returns them.
        path: Where they are from, for the message.
        like: Parameters, without the trial axis, of the model that the weights must fit.

    Raises:
        StabilityError: Names and shapes differ; the message names them.
    """
    wanted = split_days(like)
    problems = [f"{n} is missing" for n in wanted.keys() - found.keys()]
    problems += [f"{n} is not in the model" for n in found.keys() - wanted.keys()]
    problems += [
        f"{n} is {tuple(found[n].shape)} and should be {tuple(wanted[n].shape)}"
        for n in wanted.keys() & found.keys()
        if found[n].shape != wanted[n].shape
    ]
    if problems:
        raise StabilityError(
            f"{path} is a checkpoint of another model: {first_of(sorted(problems), 4, '; ')}. "
            "Choose the model, the features and the days that it was trained with."
        )
    days = {name: torch.stack([found[f"{name}.{d}"] for d in range(len(like[name]))]) for name in DAY_LAYER}
    return {name: days[name] if name in DAY_LAYER else found[name] for name in like}


def _weights(content: Mapping[str, Any]) -> Parameters:
    weights = content["model_state_dict"].items()
    return {name.removeprefix(_PREFIX): p.float() for name, p in weights}  # public ones may be saved in half precision


def _read(path: Path, mend: str = "Give another file, or train from the start: fresh=true") -> dict[str, Any]:
    scalar = np.float64(0).__reduce__()[0]  # official checkpoints hold their loss as a NumPy number
    allowed: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype]
    allowed += [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    try:
        if path.exists() and not path.is_file():  # a named pipe: reading would wait for ever
            raise ValueError("it is not a regular file")
        _check_sums(path)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StabilityError(f"There is no checkpoint at {path}.") from None
    except Exception as error:  # torch raises a different kind for each way a file can be broken
        reason = str(error).partition("\n")[0]
        if isinstance(error, EOFError | LookupError):  # their texts are empty, or a number
            reason = "it is empty, or no file of PyTorch"
        if isinstance(error, pickle.UnpicklingError):  # PyTorch advises to read it all the same
            reason = "it is damaged, or holds more than tensors and numbers, which could run code"
        raise StabilityError(f"{path} cannot be read as a checkpoint ({reason}). {mend}") from None
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    weights = found.get("model_state_dict")
    if not isinstance(weights, dict) or not all(
        isinstance(n, str) and isinstance(p, Tensor) for n, p in weights.items()
    ):
        raise StabilityError(f"{path} is not a checkpoint of a decoder: it has no model_state_dict of tensors.")
    return found


def _check_sums(path: Path) -> None:
    """Compare a file with the checksums in it, which PyTorch writes and does not read."""
    if zipfile.is_zipfile(path):  # not so in PyTorch's old format
        with zipfile.ZipFile(path) as records:
            if damaged := records.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")


def _by_group(parameters: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Group the official names of the parameters, in the order in which the official optimiser numbers them."""
    groups: dict[str, list[str]] = {"bias": [], "day_layer": [], "other": []}
    for name in parameters:
        groups[group_of(name)] += split_days({name: parameters[name]})
    return groups


class _AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without a decorator that imports PyTorch's compiler, which takes seconds."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)


def _torch_states(
    config: Config, own: Parameters, moments: Moments, step: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dictionaries of torch.optim.AdamW and LambdaLR, made by these classes themselves."""
    o, s = config.optimizer, config.schedule
    names = _by_group(own)
    decays = {"bias": 0.0, "day_layer": o.weight_decay_day, "other": o.weight_decay}
    groups = [
        {
            "params": [torch.empty(0, requires_grad=True) for _ in members],
            "lr": s.lr_max_day if group == "day_layer" else s.lr_max,
            "weight_decay": decays[group],
            "group_type": group,
        }
        for group, members in names.items()
    ]
    optimizer = _AdamW(groups, betas=(o.beta1, o.beta2), eps=o.epsilon, fused=o.fused or None)
    scheduler = LambdaLR(optimizer, [lambda _: 1.0] * len(groups)).state_dict()
    rate, day_rate = learning_rates(config.schedule, step)
    last = [day_rate if group == "day_layer" else rate for group in names]
    scheduler |= {"last_epoch": step, "_step_count": step + 1, "_last_lr": last}
    for group, lr in zip(optimizer.param_groups, last, strict=True):
        group["lr"] = lr
    first, second, steps = (split_days(kind) for kind in moments)
    state = {
        index: {
            "step": _host_copy(steps[n]),
            "exp_avg": _host_copy(first[n]),
            "exp_avg_sq": _host_copy(second[n]),
        }
        for index, n in enumerate(chain(*names.values()))
        if steps[n] > 0  # AdamW has no state for a day that was in no batch yet
    }
    return optimizer.state_dict() | {"state": state}, scheduler
