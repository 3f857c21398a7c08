"""Norms and finiteness of tensors, against numbers computed by hand."""

import math
from typing import Any

import pytest
import torch

from stability.watch.tensors import is_finite, norms_by_part, norms_of, to_host, whole_norm


def test_a_norm_in_half_precision_does_not_overflow() -> None:
    halves = [torch.full((4,), 3e4, dtype=torch.float16), torch.zeros(2)]
    assert to_host([norms_of(halves)]) == pytest.approx([6e4, 0.0], rel=1e-3)
    assert float(whole_norm(halves)) == pytest.approx(6e4, rel=1e-3)


def test_there_is_no_norm_of_nothing() -> None:
    assert len(norms_of([])) == 0
    assert norms_by_part([], []) == {}


def test_the_norms_of_parts_make_up_the_whole() -> None:
    norms = norms_by_part(["gru.weight", "gru.bias", "head.weight"], [3.0, 4.0, 12.0])
    assert norms == {"grad_norm": 13.0, "grad_norm.gru": 5.0, "grad_norm.head": 12.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_is_finite_if_all_its_tensors_are(bad: float) -> None:
    good, wrong = torch.zeros(2), torch.tensor([0.0, bad])
    outputs: list[Any] = [good, (good, [good]), {"logits": good}, torch.tensor([1]), None, "text"]
    assert all(is_finite(output) for output in outputs)
    assert not any(is_finite(output) for output in (wrong, (good, [wrong]), {"logits": wrong}))
