"""A CUDA device without numbers, for machines that have none: its tensors know their device, shape and dtype.

What the host does is real. So an operation that mixes devices or dtypes fails as on a GPU, and what makes the host wait
for the device is counted. Gradients are zeros: PyTorch's engine has to ask the device.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from ctypes import CDLL, c_void_p
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stability.engine import loss, patches, recurrent, stack
from stability.engine.recurrent import Engine

pytest.importorskip("triton")

from stability.engine.kernels import ctc_gpu, gru_gpu, gru_layer_gpu, patches_gpu

_CUDA, _META = 1, 14  # the numbers of c10::DeviceType


class FakeCuda(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations on the fake device on fake tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = Counter[str]()  # copies to the host, and those from memory that is not pinned
        self.allocated = Counter[str]()  # operations whose result takes memory of the device
        self.moved = Counter[str]()  # bytes that operations and kernels read and write, each operand once
        self.launched = Counter[str]()  # Triton's kernels
        self._fake = FakeTensorMode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs["device"].type if kwargs.get("device") is not None else None
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if to != "cuda" and not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return func(*args, **kwargs)
        if to == "cpu" or any(map(_is_pageable, leaves)):
            self.waits[func.overloadpacket.__name__] += 1
        if "generator" in kwargs:
            kwargs = kwargs | {"generator": None}
        with self._fake:
            args, kwargs = tree_map(self._as_fake, (args, kwargs))
            result = func(*args, **kwargs)
        views = any(r.alias_info is not None for r in func._schema.returns)
        name = func.overloadpacket.__name__
        if not views and any(isinstance(t, FakeTensor) and t.device.type == "cuda" for t in tree_leaves(result)):
            self.allocated[name] += 1
        if not func.is_view and "empty" not in name and _bytes(result):
            self.moved[name] += _bytes((args, kwargs, result))
        return result

    def _as_fake(self, leaf: Any) -> Any:
        real = isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
        return self._fake.from_tensor(leaf) if real else leaf


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch, engine: Engine = "loop") -> Iterator[FakeCuda]:
    """Make `cuda` a device in the body of a `with` statement, on which trials begin with that engine."""
    host_generator = torch.Generator
    with monkeypatch.context() as patch, FakeCuda() as mode:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr("stability.core.device._has_bf16", lambda device: True)
        patch.setattr(stack, "choose_engine", lambda *_: engine)
        patch.setattr(torch, "Generator", lambda device: host_generator())
        patch.setattr(torch, "gru", _cudnn_gru)
        patch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
        patch.setattr(recurrent, "_loops_on_gpu", lambda *_: (gru_gpu.forward, gru_gpu.backward))
        patch.setattr(loss, "_on_gpu", lambda _: ctc_gpu.losses)
        patch.setattr(patches, "_on_gpu", lambda *_: patches_gpu.to_patches)
        for module, name in product((ctc_gpu, gru_gpu, gru_layer_gpu, patches_gpu), ("_forward", "_backward")):
            patch.setattr(module, name, _Kernel(mode, f"{module.__name__.rpartition('.')[2]}.{name}"))
        patch.setattr(torch.autograd, "grad", lambda outputs, inputs: [torch.zeros_like(v) for v in inputs])
        patch.setattr(Tensor, "pin_memory", _pinned)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes it on the host and copies it
        try:
            with _guarded():
                yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def _guarded() -> Iterator[None]:
    """Indexing switches devices by a table of PyTorch, where CUDA gets what `meta` has, which does nothing."""
    library = CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (c_void_p * 16).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    own, guards[_CUDA] = guards[_CUDA], guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = own


def _is_pageable(tensor: Tensor) -> bool:
    """Return whether the device cannot read this host tensor by itself. A single number is passed with the call."""
    return not isinstance(tensor, FakeTensor) and tensor.ndim > 0 and not hasattr(tensor, "pinned")


def _bytes(tree: Any) -> int:
    """The bytes of all tensors of the device in a tree."""
    return sum(t.nbytes for t in tree_leaves(tree) if isinstance(t, FakeTensor) and t.device.type == "cuda")


def _pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def _cudnn_gru(x: Tensor, counts: Tensor, h0: Tensor, weights: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    assert counts.device.type == "cpu"
    assert not torch.is_autocast_enabled("cuda"), "it would be handed float16"
    assert len({v.dtype for v in (x, h0, *weights)}) == 1
    gates = x @ weights[0].T + (h0[0] @ weights[1].T)[0] + weights[2] + weights[3]
    return gates[:, : h0.shape[-1]], h0


class _Kernel:
    """A Triton kernel that can be launched, on tensors of the device alone, and does nothing."""

    def __init__(self, device: FakeCuda, name: str) -> None:
        self._device, self._name = device, name

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid)

        def launch(*arguments: Any, **options: Any) -> None:
            assert all(isinstance(v, FakeTensor) and v.is_contiguous() for v in arguments if isinstance(v, Tensor))
            self._device.moved[self._name] += _bytes(arguments)
            self._device.launched[self._name] += 1

        return launch
