"""The choice of device and precision."""

from contextlib import nullcontext

import pytest
import torch

from stability.core.device import choose_device, choose_precision
from stability.core.errors import StabilityError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "auto"), [(True, "bf16"), (False, "fp32")])
def test_precision_on_a_gpu_with_bf16_and_on_one_without(monkeypatch: pytest.MonkeyPatch, has: bool, auto: str) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose_precision("auto", gpu) == auto
    assert choose_precision("fp32", gpu) == "fp32"
    assert choose_precision("fp16", gpu) == "fp16"
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    if not has:
        with pytest.raises(StabilityError, match="precision=bf16, but Tesla T4 has no bf16: give precision=fp32"):
            choose_precision("bf16", gpu)


def test_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(StabilityError, match="device=cuda:2, but PyTorch sees 2 CUDA devices here"):
        choose_device("cuda:2")
    with pytest.raises(StabilityError, match="device=gpu is unknown: give auto, cpu, cuda or cuda:N"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
