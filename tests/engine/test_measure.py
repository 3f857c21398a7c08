"""Signals against plain sums over frames in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stability.data.records import frames_needed
from stability.engine.measure import frame_information, infeasible_targets, input_max, output_signals


def brute_force(logits: np.ndarray, frames: list[int]) -> float:
    """H(mean q) - mean H(q) of one trial's logits (T, B, C), frame by frame."""
    distributions = []
    for row, count in enumerate(frames):
        for t in range(count):
            weights = np.exp(logits[t, row, 1:])
            distributions.append(weights / weights.sum())

    def entropy(q: np.ndarray) -> float:
        return float(-sum(p * np.log(p) for p in q))

    return entropy(np.mean(distributions, 0)) - float(np.mean([entropy(q) for q in distributions]))


def test_frame_information_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 7, 3, 6)) * np.array([0.5, 3.0]).reshape(2, 1, 1, 1)
    frames = [[7, 4, 1], [2, 7, 5]]
    found = frame_information(torch.tensor(logits), torch.tensor(frames))
    wanted = [brute_force(logits[k], frames[k]) for k in range(2)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_frame_information_is_0_if_all_frames_predict_the_same() -> None:
    logits = torch.randn(1, 1, 1, 6).expand(1, 9, 2, 6).clone()
    logits[..., 0] = torch.randn(1, 9, 2)  # blank differs from frame to frame, but is left out of the information
    assert frame_information(logits, torch.full((1, 2), 9)).item() == pytest.approx(0, abs=1e-6)


def test_frame_information_is_the_entropy_of_the_classes_if_each_frame_is_certain() -> None:
    logits = torch.full((1, 4, 1, 5), -50.0)
    for t in range(4):
        logits[0, t, 0, 1 + t] = 50
    assert frame_information(logits, torch.tensor([[4]])).item() == pytest.approx(np.log(4))


def test_outputs_are_counted_in_real_frames_only() -> None:
    logits, frames = torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0)), [[7, 4, 1], [2, 0, 5]]
    found = output_signals(logits, torch.tensor(frames), 1)
    for k, own in enumerate(frames):
        best = [int(logits[k, t, row].argmax()) for row, count in enumerate(own) for t in range(count)]
        assert found["blank_fraction"][k].item() == pytest.approx(best.count(1) / len(best))
        assert found["distinct_phonemes"][k] == len({*best} - {1})
    assert output_signals(logits, torch.zeros(2, 3, dtype=torch.long))["blank_fraction"].isnan().all()


@pytest.mark.parametrize("blank", [2, 4])
def test_blank_may_be_any_class(blank: int) -> None:
    logits, frames = torch.randn(1, 7, 3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([[7, 4, 1]])
    order = [blank, *(c for c in range(5) if c != blank)]
    first = logits[..., order]  # the same classes, blank before the others
    assert output_signals(logits, frames, blank) == output_signals(first, frames)
    assert 0 < output_signals(first, frames)["blank_fraction"] < 1
    assert torch.equal(frame_information(logits, frames, blank), frame_information(first, frames))


def test_infeasible_targets_are_those_with_an_infinite_ctc_loss() -> None:
    """Compared with CTC itself, and with the rule that checks the data before a training."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 4, (2, 50, 6), generator=generator)  # few classes, so that many labels repeat
    counts, frames = (torch.randint(low, 9 - low, (2, 50), generator=generator) for low in (2, 1))
    log_probs = torch.randn(8, 100, 4, generator=generator).log_softmax(-1)
    flat = labels.flatten(0, 1), frames.flatten(), counts.flatten()
    loss = F.ctc_loss(log_probs, *flat, reduction="none")
    found = infeasible_targets(labels, counts, frames)
    assert found.flatten().tolist() == loss.isinf().tolist()
    needed = [frames_needed(row[:count].tolist()) for row, count in zip(flat[0], flat[2].tolist(), strict=True)]
    assert found.flatten().tolist() == [n > has for n, has in zip(needed, flat[1].tolist(), strict=True)]
    assert 0 < found.sum() < 100


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_input_max_is_not_finite_if_an_input_is_not(value: float) -> None:
    x = torch.tensor([[[1.0, -7.0], [3.0, 0.0]], [[2.0, 5.0], [-1.0, 4.0]]])
    assert input_max(x).tolist() == [7, 5]
    for place in range(4):
        x[1].view(-1)[place] = value
        assert input_max(x).isfinite().tolist() == [True, False]
        x[1].view(-1)[place] = 0


def test_a_class_of_probability_0_adds_no_information() -> None:
    logits = torch.randn(1, 9, 2, 6, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([[9, 5]])
    masked = torch.cat([logits, torch.full((1, 9, 2, 1), -torch.inf)], -1)
    assert frame_information(masked, frames).item() == pytest.approx(frame_information(logits, frames).item(), rel=1e-6)
