"""What an optimizer that is not ours does with the parameters of a model: step sizes, and which ones it trains."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stability.engine.measure import sample_stride


def epsilon_signals(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Compute the signals of `engine.measure.epsilon_signals`, from the state that PyTorch's Adam and AdamW keep."""
    moments = [*_second_moments(optimizer)]
    if not moments:
        return {}
    stride = sample_stride([second.shape for second, _, _ in moments])
    samples: dict[tuple[float, float], list[Tensor]] = {}
    for second, correction, epsilon in moments:
        samples.setdefault((correction, epsilon), []).append(second.flatten()[::stride])
    roots = [(torch.cat(own).float() / correction).sqrt() for (correction, _), own in samples.items()]
    below = [root < epsilon for root, (_, epsilon) in zip(roots, samples, strict=True)]
    group = optimizer.param_groups[0]
    return {
        "epsilon_dominance": torch.cat(below).float().mean(),
        "effective_lr": float(group["lr"]) / (torch.cat(roots).median() + group["eps"]),
    }


def no_gradient(optimizer: torch.optim.Optimizer) -> float:
    """Compute the signal `no_gradient` after a backward pass."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return _size([p for p in held if p.grad is None]) / max(1, _size(held))


def frozen(parameters: list[nn.Parameter]) -> float:
    """Compute the signal `frozen` from all parameters of a model."""
    return _size([p for p in parameters if not p.requires_grad]) / max(1, _size(parameters))


class Unoptimized:
    """Measures the signal `unoptimized`: what no optimizer changes.

    A parameter that the known optimizer does not hold may belong to another one. So it counts only if the updates do
    not change it.

    Args:
        optimizer: The optimizer that is known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._others: list[nn.Parameter] = []
        self._norms = torch.zeros(0)

    def before_update(self, trained: list[nn.Parameter]) -> float | None:
        """Note the parameters that the optimizer does not hold. Return the signal if it needs no update: 0.

        Args:
            trained: The parameters of the model that are not frozen.
        """
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        self._others = [p for p in trained if id(p) not in held and p.grad is not None]
        if not self._others:
            return 0.0
        self._norms = self._norms_now()
        return None

    def after_update(self, trained: list[nn.Parameter]) -> float | None:
        """Return the signal after an update; None if `before_update` has returned it, or the learning rate is 0.

        Args:
            trained: What `before_update` was given.
        """
        if not self._others or not any(group["lr"] for group in self._optimizer.param_groups):
            return None
        same = (self._norms_now() == self._norms).tolist()
        unchanged = [p for p, is_same in zip(self._others, same, strict=True) if is_same]
        self._others = []
        return _size(unchanged) / _size(trained)

    def _norms_now(self) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(p.detach().float()) for p in self._others])


def _second_moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, float, float]]:
    """Yield second moment, bias correction and epsilon of each parameter that was updated at least once.

    An optimizer without Adam's betas, epsilon and count of steps, such as Adafactor, has none that compare.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            is_adam = "exp_avg_sq" in state and "betas" in group and isinstance(group.get("eps"), int | float)
            if is_adam and (steps := float(state.get("step", 0))) > 0:
                yield state["exp_avg_sq"], 1 - group["betas"][1] ** steps, float(group["eps"])


def _size(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
