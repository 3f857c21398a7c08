"""AdamW and clipping along the trial axis against PyTorch's own, trial by trial; and the learning rates."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stability.config.schema import Config
from stability.engine.decoder import Parameters, init_parameters
from stability.engine.measure import norms_by_part
from stability.engine.optimizer import (
    Moments,
    adamw_step,
    clip_coefficients,
    gradient_norms,
    group_of,
    zero_moments,
)
from stability.engine.schedule import learning_rate, learning_rates
from tests.support.configs import composed, tiny
from tests.support.reference import ReferenceDecoder, by_official_name, official_optimizer, reference, scheduled

N_DAYS, FEATURES = 4, 6


def stacked(configs: Sequence[Config], dtype: torch.dtype = torch.float32) -> tuple[Parameters, list[Parameters]]:
    """Parameters of a stack, and of each trial alone."""
    trials = [
        {n: p.to(dtype) for n, p in init_parameters(c.model, FEATURES, N_DAYS, seed).items()}
        for seed, c in enumerate(configs)
    ]
    return {n: torch.stack([t[n] for t in trials]) for n in trials[0]}, trials


def drawn_gradients(parameters: Parameters, days: int, generator: torch.Generator) -> Parameters:
    """Of every size that training knows, for the days of a batch only."""

    def shape(name: str, p: Tensor) -> tuple[int, ...]:
        return (p.shape[0], days, *p.shape[2:]) if name.startswith("day_") else tuple(p.shape)

    return {
        n: torch.randn(shape(n, p), generator=generator, dtype=p.dtype)
        * 10 ** (4 * torch.rand(shape(n, p), generator=generator, dtype=p.dtype) - 4)
        for n, p in parameters.items()
    }


def set_gradients(model: nn.Module, gradients: Parameters, days: Sequence[int]) -> None:
    """One trial's gradients; the days that are not in the batch have none, as in the official trainer."""
    place = {day: i for i, day in enumerate(days)}
    for name, p in model.named_parameters():
        stem, _, day = name.partition(".")
        if not stem.startswith("day_"):
            p.grad = gradients[name].clone()
        else:
            p.grad = gradients[stem][place[int(day)]].clone() if int(day) in place else None


CONFIGS = {
    "alike": [["optimizer=official"]],
    "adam_default": [["optimizer=adam_default"]],
    "stack": [
        ["optimizer=official", "schedule.lr_max_day=0.002"],
        ["optimizer=adam_default", "optimizer.weight_decay_day=0.01", "optimizer.weight_decay=0.1"],
        ["optimizer.epsilon=1e-3", "schedule.lr_max=0.05", "optimizer.beta1=0.8", "optimizer.beta2=0.99"],
    ],
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CONFIGS)
def test_fifty_steps_agree_with_pytorch(case: str, fused: bool) -> None:
    configs = [tiny(*overrides, f"optimizer.fused={fused}") for overrides in CONFIGS[case]]
    parameters, trials = stacked(configs)
    moments = zero_moments(parameters)
    models = [reference(t, 2, torch.float32) for t in trials]
    optimizers = [official_optimizer(c, m) for c, m in zip(configs, models, strict=True)]
    generator = torch.Generator().manual_seed(0)
    nothing, one = torch.zeros(len(configs)), torch.ones(len(configs))
    for step in range(50):
        days = [torch.randperm(N_DAYS - 1, generator=generator)[:2].tolist() for _ in configs]
        gradients = drawn_gradients(parameters, 2, generator)
        rates = [learning_rates(c.schedule, step) for c in configs]
        for k, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            set_gradients(model, {n: g[k] for n, g in gradients.items()}, days[k])
            rate, day_rate = rates[k]
            for group, lr in zip(optimizer.param_groups, (rate, day_rate, rate), strict=True):
                group["lr"] = lr
            optimizer.step()
        adamw_step(parameters, moments, gradients, days, [c.optimizer for c in configs], rates, one, nothing)
    for k, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        _assert_same_state(parameters, moments, k, model, optimizer)
        # The last day is in no batch: it has neither state nor a new weight.
        assert torch.equal(parameters["day_weights"][k, -1], trials[k]["day_weights"][-1])
        assert not moments.steps["day_weights"][k, -1]
        assert not moments.first["day_weights"][k, -1].any()


def _assert_same_state(
    parameters: Parameters, moments: Moments, k: int, model: nn.Module, optimizer: torch.optim.AdamW
) -> None:
    ours, first, second, steps = (
        by_official_name({n: t[k] for n, t in kind.items()}) for kind in (parameters, *moments)
    )
    for name, p in model.named_parameters():
        state: dict[str, Any] = optimizer.state[p]
        pairs = [(ours[name], p.detach())]
        if state:
            pairs += [(first[name], state["exp_avg"]), (second[name], state["exp_avg_sq"])]
            assert steps[name] == state["step"]
        for own, theirs in pairs:
            assert (own - theirs).abs().max() <= 1e-6 * theirs.abs().max(), name


def test_steps_follow_the_formula() -> None:
    """Decoupled decay, bias-corrected moments, epsilon outside the root; in float64, group by group."""
    config = tiny("optimizer.weight_decay=0.1", "optimizer.weight_decay_day=0.2", "optimizer.epsilon=0.01")
    parameters, _ = stacked([config], torch.float64)
    moments = zero_moments(parameters)
    expected = {n: p[0].numpy().copy() for n, p in parameters.items()}
    m = {n: np.zeros_like(p) for n, p in expected.items()}
    v = {n: np.zeros_like(p) for n, p in expected.items()}
    generator = torch.Generator().manual_seed(0)
    everywhere = [list(range(N_DAYS))]
    for t in range(1, 6):
        gradients = drawn_gradients(parameters, N_DAYS, generator)
        # Ours may use the gradients' memory.
        g = {n: gradient[0].numpy().copy() for n, gradient in gradients.items()}
        adamw_step(
            *(parameters, moments, gradients, everywhere, [config.optimizer]),
            *([(0.01, 0.03)], torch.ones(1), torch.zeros(1)),
        )
        for n, w in expected.items():
            is_day, is_bias = n.startswith("day_"), n.startswith("gru.bias") or n == "out.bias"
            lr, decay = (0.03, 0.2) if is_day else (0.01, 0.0 if is_bias else 0.1)
            m[n] = 0.9 * m[n] + 0.1 * g[n]
            v[n] = 0.999 * v[n] + 0.001 * g[n] ** 2
            w *= 1 - lr * decay
            w -= lr * (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 0.01)
    for n, w in expected.items():
        np.testing.assert_allclose(parameters[n][0].numpy(), w, rtol=1e-10, atol=1e-12, err_msg=n)


def test_groups() -> None:
    model = ReferenceDecoder(FEATURES, N_DAYS, layers=3, units=4)
    groups = [g["params"] for g in official_optimizer(tiny(), model).param_groups]
    name_of = {p: n for n, p in model.named_parameters()}
    for expected, members in zip(("bias", "day_layer", "other"), groups, strict=True):
        names = {name_of[p] for p in members}
        assert {group_of(n.partition(".")[0] if n.startswith("day_") else n) for n in names} == {expected}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("poison", [None, math.nan, math.inf])
def test_skip_changes_nothing_and_disturbs_no_neighbour(fused: bool, poison: float | None) -> None:
    configs = [tiny(f"optimizer.epsilon={e}", f"optimizer.fused={fused}") for e in (0.1, 1e-8, 1e-3)]
    middle = 1

    def run(skipped: bool) -> tuple[Parameters, Moments]:
        parameters, _ = stacked(configs)
        moments = zero_moments(parameters)
        generator = torch.Generator().manual_seed(0)
        for step in range(3):
            gradients = drawn_gradients(parameters, 2, generator)
            skip, divisors = torch.zeros(3), torch.ones(3)
            if skipped and step == 2:
                skip[middle] = 1.0
                if poison is not None:
                    divisors[middle] = math.nan
                    for g in gradients.values():
                        g[middle] = poison
            if not skipped and step == 2:
                before = [{n: t[middle].clone() for n, t in kind.items()} for kind in (parameters, *moments)]
            days = [[0, 1], [1, 3], [2, 0]]
            rates = [(0.01, 0.01)] * 3
            adamw_step(parameters, moments, gradients, days, [c.optimizer for c in configs], rates, divisors, skip)
        if not skipped:
            for kind, old in zip((parameters, *moments), before, strict=True):
                for n, t in kind.items():
                    t[middle] = old[n]
        return parameters, moments

    (wanted, wanted_moments), (got, got_moments) = run(False), run(True)
    for ours, theirs in zip((got, *got_moments), (wanted, *wanted_moments), strict=True):
        for name, t in ours.items():
            assert torch.equal(t, theirs[name]), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_clipping_agrees_with_pytorch(loss_scale: float, fused: bool) -> None:
    """Below and above the limit, and without one; the divisor undoes the loss scale as well."""
    configs = [tiny(f"optimizer.fused={fused}") for _ in range(3)]
    limits = [1e-3, 1e6, math.inf]
    parameters, trials = stacked(configs)
    moments = zero_moments(parameters)
    gradients = drawn_gradients(parameters, 2, torch.Generator().manual_seed(0))
    days = [[0, 1], [1, 3], [2, 0]]
    norms = norms_by_part(gradient_norms(gradients))["grad_norm"]
    divisors = loss_scale / clip_coefficients(norms, torch.tensor(limits))
    scaled = {n: g * loss_scale for n, g in gradients.items()}
    adamw_step(
        *(parameters, moments, scaled, days, [c.optimizer for c in configs]),
        *([(0.01, 0.01)] * 3, divisors, torch.zeros(3)),
    )
    for k, limit in enumerate(limits):
        model = reference(trials[k], 2, torch.float32)
        optimizer = official_optimizer(configs[k], model)
        set_gradients(model, {n: g[k] for n, g in gradients.items()}, days[k])
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        assert norms[k].item() == pytest.approx(norm.item(), rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        _assert_same_state(parameters, moments, k, model, optimizer)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 5e-6), (500, 0.0025), (1000, 0.005), (60500, 0.00255), (120000, 0.0001), (130000, 0.0001)],
)
def test_official_learning_rates(step: int, rate: float) -> None:
    config = composed("model=official")
    assert learning_rates(config.schedule, step) == pytest.approx((rate, rate), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "model", "warmup", "decay", "peak"),
    [
        ("official", "official", 1000, 120_000, 0.005),
        ("conservative", "official", 2000, 120_000, 0.002),
        ("official", "small", 50, 6000, 0.005),
        ("conservative", "small", 100, 6000, 0.002),
    ],
)
def test_schedules(schedule: str, model: str, warmup: int, decay: int, peak: float) -> None:
    """The small model goes through the same schedule in 1/20 of the steps."""
    config = composed(f"schedule={schedule}", f"model={model}")
    assert config.steps == 10_000 * decay // 120_000
    for step in [*range(0, decay + 10, max(1, decay // 997)), warmup, decay]:
        expected = scheduled(step, peak, 0.0001, warmup, decay)
        assert learning_rates(config.schedule, step) == pytest.approx((expected, expected), rel=1e-9)


def test_day_layers_have_a_rate_of_their_own() -> None:
    config = composed("schedule.lr_max_day=0.001", "schedule.lr_min_day=0.0005", "model=official")
    for step in (10, 1000, 50_000, 130_000):
        main, day = learning_rates(config.schedule, step)
        assert main == pytest.approx(scheduled(step, 0.005, 0.0001, 1000, 120_000))
        assert day == pytest.approx(scheduled(step, 0.001, 0.0005, 1000, 120_000))


def test_schedule_without_decay_after_the_warmup() -> None:
    assert learning_rate(10, 1.0, 0.5, warmup_steps=10, decay_steps=10) == 0.5
    assert learning_rate(9, 1.0, 0.5, warmup_steps=10, decay_steps=10) == 0.9


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_may_lie_in_memory_in_any_order(fused: bool) -> None:
    """PyTorch's fused kernel runs over memory, not over indices, and autograd hands out transposed gradients."""
    config = tiny(f"optimizer.fused={fused}")
    results = []
    for transposed in (False, True):
        parameters, _ = stacked([config])
        gradients = drawn_gradients(parameters, 2, torch.Generator().manual_seed(0))
        if transposed:
            gradients = {n: g.mT.contiguous().mT if g.ndim > 2 else g for n, g in gradients.items()}
        adamw_step(
            *(parameters, zero_moments(parameters), gradients, [[0, 2]], [config.optimizer]),
            *([(0.01, 0.01)], torch.ones(1), torch.zeros(1)),
        )
        results.append(parameters)
    for name, p in results[0].items():
        assert torch.equal(p, results[1][name]), name
