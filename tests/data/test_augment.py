"""Smoothing, noise, cut and their order, against independent computations."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from stability.config.schema import Config
from stability.data.augment import add_noise, draw_cut, smooth, smoothing_kernel
from stability.data.batches import training_batch
from stability.data.records import Dataset
from stability.engine.batch import training_inputs
from stability.engine.decoder import init_parameters
from stability.engine.stack import new_stack
from tests.support.configs import composed, tiny
from tests.support.reference import smoothed


def test_strong_augmentation_is_the_official_one() -> None:
    aug = composed("aug=strong").aug
    assert (aug.white_noise_std, aug.constant_offset_std, aug.max_cut, aug.smooth_std) == (1.0, 0.2, 2, 2.0)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0, 3.0, 7.5])
def test_the_smoothing_kernel_is_the_official_one(std: float) -> None:
    impulse = np.zeros(100)
    impulse[50] = 1
    taps = gaussian_filter1d(impulse, std)
    taps = taps[taps > 0.01]
    np.testing.assert_allclose(smoothing_kernel(std), taps / taps.sum(), rtol=1e-5)


def test_smoothing_is_a_zero_padded_convolution() -> None:
    x = torch.randn(2, 3, 40, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([smoothed(own) for own in x])
    torch.testing.assert_close(smooth(x, 2.0).double(), expected, atol=1e-6, rtol=1e-5)


def test_fewer_bins_than_taps_are_smoothed_too() -> None:
    x = torch.ones(1, 3, 1)
    kernel = smoothing_kernel(2.0).tolist()
    centre = len(kernel) // 2
    expected = [sum(kernel[centre - bin_ : centre - bin_ + 3]) for bin_ in range(3)]
    assert smooth(x, 2.0).flatten().tolist() == pytest.approx(expected)


def test_a_width_of_zero_does_not_smooth() -> None:
    x = torch.randn(1, 5, 2)
    assert torch.equal(smooth(x, 0.0), x)


def test_noise_has_the_configured_spread() -> None:
    """White noise differs in every bin; the offset is one for each utterance and channel."""
    b, t, f = 20, 200, 30
    noisy = add_noise(torch.zeros(b, t, f), white_stds=[1.0], offset_stds=[0.2], seed=0, step=3)[0].double()
    offsets = noisy.mean(1)  # 1/200 of the white noise's variance is left in it
    white = noisy - offsets.unsqueeze(1)
    n = b * t * f
    assert white.var().item() * t / (t - 1) == pytest.approx(1.0, abs=5 * math.sqrt(2 / n))
    assert offsets.var().item() == pytest.approx(0.2**2 + 1 / t, rel=5 * math.sqrt(2 / (b * f)))
    assert abs(noisy.mean().item()) < 5 * 0.2 / math.sqrt(b * f)
    lag = (white[:, 1:] * white[:, :-1]).mean().item()
    assert lag == pytest.approx(-1 / t, abs=5 / math.sqrt(n))
    only_offset = add_noise(torch.zeros(b, t, f), white_stds=[0.0], offset_stds=[0.2], seed=0, step=3)[0]
    assert torch.equal(only_offset, only_offset[:, :1].expand(-1, t, -1))


def test_noise_depends_on_seed_and_step_alone() -> None:
    x = torch.zeros(2, 5, 3)
    first = add_noise(x, white_stds=[1.0], offset_stds=[0.2], seed=0, step=0)
    assert torch.equal(first, add_noise(x, white_stds=[1.0], offset_stds=[0.2], seed=0, step=0))
    assert not torch.equal(first, add_noise(x, white_stds=[1.0], offset_stds=[0.2], seed=0, step=1))
    assert not torch.equal(first, add_noise(x, white_stds=[1.0], offset_stds=[0.2], seed=1, step=0))


def test_weak_noise_is_strong_noise_scaled() -> None:
    x = torch.randn(4, 20, 3)
    strong, weak = composed("aug=strong").aug, composed("aug=weak").aug
    stds = [[getattr(a, f"{kind}_std") for a in (strong, weak)] for kind in ("white_noise", "constant_offset")]
    of_strong, of_weak = add_noise(x, white_stds=stds[0], offset_stds=stds[1], seed=5, step=7) - x
    torch.testing.assert_close(of_weak, of_strong / 4, atol=1e-6, rtol=1e-5)


def test_the_cut_is_uniform_from_0_to_the_maximum() -> None:
    n = 3000
    counts = Counter(draw_cut(2, 0, step) for step in range(n))
    assert sorted(counts) == [0, 1, 2]
    assert all(abs(c - n / 3) < 5 * math.sqrt(n * 2 / 9) for c in counts.values())
    assert {draw_cut(0, 0, step) for step in range(50)} == {0}


def one_augmented(config: Config, dataset: Dataset, step: int) -> tuple[Tensor, list[int], Tensor]:
    """What the decoder of a single trial reads at a step: features, bins of the batch, output frames."""
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    stack = new_stack([config], [parameters], torch.device("cpu"))
    stack.steps = [step]
    inputs = training_inputs(stack, dataset.train)
    return inputs.x[0], inputs.bins, inputs.frames[0]


@pytest.mark.parametrize("step", range(6))
def test_the_order_is_noise_then_cut_then_smoothing(dataset: Dataset, step: int) -> None:
    """Noise falls on the padding as well; the cut comes before the smoothing, so its edge is zero-padded."""
    config = tiny("aug=strong", "seed=3")
    batch = training_batch(dataset.train, 6, 3, seed=3, step=step)
    noisy = add_noise(batch.features, white_stds=[1.0], offset_stds=[0.2], seed=3, step=step)[0]
    cut = draw_cut(2, 3, step)
    x, bins, frames = one_augmented(config, dataset, step)
    torch.testing.assert_close(x.double(), smoothed(noisy[:, cut:]), atol=1e-5, rtol=1e-5)
    assert bins == [batch.features.shape[1] - cut]
    assert frames.tolist() == [math.floor((n - cut - 14) / 4 + 1) for n in batch.bins.tolist()]


def test_every_cut_occurs(dataset: Dataset) -> None:
    cuts = set()
    for step in range(12):
        batch = training_batch(dataset.train, 6, 3, seed=0, step=step)
        x, _, _ = one_augmented(tiny("seed=0"), dataset, step)
        cuts.add(batch.features.shape[1] - x.shape[1])
    assert cuts == {0, 1, 2}


def test_without_augmentation_smoothing_stays(dataset: Dataset) -> None:
    batch = training_batch(dataset.train, 6, 3, seed=0, step=1)
    x, _, _ = one_augmented(tiny("aug=none"), dataset, 1)
    torch.testing.assert_close(x.double(), smoothed(batch.features), atol=1e-5, rtol=1e-5)
