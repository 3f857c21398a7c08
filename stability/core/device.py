"""The device that a trial is trained on, its precision there, and the transfer of small tensors to it."""

from typing import Literal

import torch
from torch import Tensor

from stability.core.errors import StabilityError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device of that name: auto, cpu, cuda or cuda:N. `auto` is CUDA if there is a GPU, else the CPU.

    Raises:
        StabilityError: The name is unknown, or PyTorch does not see that device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StabilityError(f"device={name} is unknown: give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StabilityError(
            f"device={name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here. "
            "Give device=auto, or install a PyTorch with CUDA for this machine's driver."
        )
    return device


def choose_precision(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """Return the precision of the forward pass. `auto` is the official bf16 on a GPU that has it, and fp32 elsewhere.

    Raises:
        StabilityError: The name is bf16, but the GPU has none. PyTorch would emulate it, slowly and without a warning.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and _has_bf16(device) else "fp32"
    if name == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise StabilityError(
            f"precision=bf16, but {torch.cuda.get_device_name(device)} has no bf16: "
            "give precision=fp32, which has the same mathematics, or precision=fp16, which is faster."
        )
    return name


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting.

    A plain `tensor.to("cuda")` makes the host wait until the GPU has finished all its earlier work.
    """
    if tensor.device == device:
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
