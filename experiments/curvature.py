"""Measure how close a trial is to the edge of stability: its preconditioned sharpness over Adam's threshold.

    python experiments/curvature.py [overrides]

Adam whose gradients are averaged with beta1 and divided by P = sqrt(v_hat) + epsilon is, with P held fixed, a linear
iteration near a minimum. Along an eigenvector of P^-1/2 H P^-1/2 with eigenvalue s it diverges when

    s > (2 + 2 beta1) / ((1 - beta1) lr)          which is 38 / lr for beta1 = 0.9

(Cohen et al. 2022, "Adaptive gradient methods at the edge of stability"). Where epsilon dominates, P is epsilon, and
this is the threshold of gradient descent with averaged momentum at the rate lr / epsilon: an eigenvalue of H of
38 epsilon / lr. The program prints the ratio of the two sides. Above 1, by the quadratic model of the loss, training
is unstable.

The eigenvalue is found by Lanczos iterations. CTC has no double backward, so a product with the Hessian is a central
difference of two gradients in float64, of the same batches with the same noise and dropout.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.config.schema import Config
from stability.data.records import Split
from stability.engine.decoder import Parameters, init_parameters
from stability.engine.gradients import gradients_of
from stability.engine.optimizer import DAY_LAYER
from stability.engine.schedule import learning_rates
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials.setup import open_data

EVERY = 10  # steps from one measurement to the next
RELATIVE_STEP = 1e-6  # of the weights' norm: half the distance between two gradients
PROBE_SEEDS = (1_000_000, 1_000_001)  # of the fixed batches; no trial has them
_TOLERANCE = 0.02  # of the eigenvalue
_KRYLOV = 6  # vectors kept; the largest eigenvalue is well separated, and few are needed
_RESTARTS = 20

Vector = NDArray[np.float64]
Gradients = Callable[[Tensor], Tensor]  # weights (M, N) to gradients (M, N), both in float64


class Sharpness(NamedTuple):
    """A largest eigenvalue; NaN if gradients are not finite or the iteration did not converge."""

    ratio: float  # of the eigenvalue to the threshold
    direction: Vector | None  # (N,) its eigenvector, where the next measurement starts
    products: int  # with the Hessian; each takes two gradients


def threshold(lr: float, beta1: float) -> float:
    """The preconditioned sharpness above which Adam with averaged momentum diverges on a quadratic."""
    return (2 + 2 * beta1) / ((1 - beta1) * lr)


def measure(
    stack: Stack,
    split: Split,
    *,
    own: bool = False,
    start: Vector | None = None,
    relative_step: float = RELATIVE_STEP,
) -> Sharpness:
    """Measure the one trial of a stack before its next step.

    On fixed training batches without noise, cut and dropout, or on the `own` batch of its next step with all of them.
    The iteration begins at `start`, the direction of an earlier measurement; `relative_step` times the weights' norm is
    half the distance between the two gradients of a difference.
    """
    c = stack.configs[0]
    exact = replace(c, precision=replace(c.precision, dtype="fp32"))  # no autocast: the dtype of the weights
    if own:
        gradients = _gradients([exact], stack, split, stack.step)
    else:
        aug = replace(c.aug, white_noise_std=0.0, constant_offset_std=0.0, max_cut=0)
        quiet = replace(exact, aug=aug, model=replace(c.model, input_dropout=0.0, rnn_dropout=0.0))
        gradients = _gradients([replace(quiet, seed=seed) for seed in PROBE_SEEDS], stack, split, 0)
    weights, scale = _flat(stack.parameters), step_scale(stack)
    eigenvalue, direction, products = largest_eigenvalue(gradients, weights, scale, start, relative_step)
    return Sharpness(eigenvalue / threshold(1.0, c.optimizer.beta1), direction, products)


def step_scale(stack: Stack) -> Tensor:
    """How far the next step moves each weight for a unit of averaged gradient: lr / P, (N,), float64.

    It uses the second moments before that step. It is 0 in the layers of days that were in no batch yet.
    """
    c = stack.configs[0]
    rate, day_rate = learning_rates(c.schedule, stack.step)
    scales = {}
    for name, second in stack.moments.second.items():
        steps = stack.moments.steps[name].double()
        correction = (1 - c.optimizer.beta2**steps).view(*steps.shape, *(1,) * (second.ndim - steps.ndim))
        scale = (day_rate if name in DAY_LAYER else rate) / ((second / correction).sqrt() + c.optimizer.epsilon)
        scales[name] = torch.where(correction > 0, scale, 0.0)
    return _flat(scales)


def largest_eigenvalue(
    gradients: Gradients,
    weights: Tensor,
    scale: Tensor,
    start: Vector | None = None,
    relative_step: float = RELATIVE_STEP,
) -> tuple[float, Vector | None, int]:
    """The largest eigenvalue of S^1/2 H S^1/2, its eigenvector (N,), and how many products with H it took.

    H is the Hessian at `weights` (N,) of the loss whose `gradients` are given, S = diag(scale), (N,), not all 0.
    The eigenvalue is NaN where gradients are not finite, or the iteration does not converge.
    """
    root = scale.sqrt()
    distance = relative_step * weights.norm()
    products = 0

    def product(x: Vector) -> Vector:
        nonlocal products
        products += 1
        direction = root * torch.from_numpy(np.ravel(x)).to(root.device)
        length = direction.norm()
        shift = direction * (distance / length)
        ahead, behind = gradients(torch.stack([weights + shift, weights - shift]))
        change: Vector = (root * (ahead - behind) * (length / (2 * distance))).cpu().numpy()
        if not np.isfinite(change).all():
            raise FloatingPointError
        return change

    size = len(weights)
    if start is None:
        start = np.random.default_rng(0).standard_normal(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    settings: dict[str, Any] = {"ncv": min(_KRYLOV, size), "tol": _TOLERANCE, "maxiter": _RESTARTS}
    try:
        (value,), vectors = eigsh(operator, 1, which="LA", v0=start, **settings)
    except (ArpackError, FloatingPointError):
        return float("nan"), None, products
    return float(value), vectors[:, 0], products


def _gradients(configs: Sequence[Config], stack: Stack, split: Split, step: int) -> Gradients:
    """The mean over `configs` of the gradient on batch number `step`. All weights and batches are one stack."""
    shapes = {name: p.shape[1:] for name, p in stack.parameters.items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def at(weights: Tensor) -> Tensor:
        parameters = [
            {n: part.view(shapes[n]) for n, part in zip(shapes, w.split(sizes), strict=True)}
            for w in weights
            for _ in configs
        ]
        probe = new_stack([*configs] * len(weights), parameters, stack.device)
        probe.steps = [step] * len(probe.configs)
        gradients = torch.cat([g.flatten(1) for g in gradients_of(probe, split).values()], 1)
        return gradients.view(len(weights), len(configs), -1).mean(1)

    return at


def _flat(parameters: Parameters) -> Tensor:
    return torch.cat([p[0].flatten() for p in parameters.values()]).double()


def compose_trial(overrides: Sequence[str]) -> Config:
    """Compose the configuration of a trial from the defaults and these overrides."""
    register_schema()
    with initialize_config_dir(config_dir=str(conf_folder())):
        return resolve_config(compose("config", overrides=list(overrides)))


def main() -> None:
    """Train the trial, and print its ratio during training."""
    c = compose_trial(sys.argv[1:])
    torch.set_flush_denormal(True)
    dataset = open_data(c, torch.device("cpu"))
    parameters = init_parameters(c.model, dataset.n_features, len(dataset.sessions), c.seed)
    stack = new_stack([c], [parameters], torch.device("cpu"))
    start = own_start = None
    print("  step      loss  grad norm        lr   ratio   own ratio   products")
    while stack.step < c.steps and not stack.failed.any():
        (signals,) = train_steps(stack, dataset.train, min(EVERY, c.steps - stack.step))
        loss, norm = (float(signals[name][-1]) for name in ("loss", "grad_norm"))
        _, start, products = fixed = measure(stack, dataset.train, start=start)
        _, own_start, own_products = own = measure(stack, dataset.train, own=True, start=own_start)
        rate, _ = learning_rates(c.schedule, stack.step)
        ratios = f"{fixed.ratio:7.3f} {own.ratio:11.3f} {products + own_products:10d}"
        print(f"{stack.step:6d} {loss:9.3f} {norm:10.3g} {rate:9.2g} {ratios}")


if __name__ == "__main__":
    main()
