"""The training loop on a CUDA device, where there is none: its devices, its dtypes, and that the host does not wait."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stability.data.placement import DeviceRows
from stability.data.records import Dataset, Split
from stability.engine import recurrent
from stability.engine.evaluate import evaluate
from stability.engine.packing import pack
from stability.engine.patches import _Patches, _Softsign
from stability.engine.recurrent import _Layer
from stability.engine.stack import Stack, copy_trial, join, select
from stability.engine.step import _train_step
from stability.trials.recorder import Recorder, recorder_bytes
from stability.trials.requests import Slot
from tests.support.configs import tiny

pytest.importorskip("triton")

from stability.engine.kernels import ctc_gpu, gru_gpu, gru_layer_gpu, patches_gpu
from tests.support.fake_cuda import FakeCuda, fake_cuda
from tests.support.stacks import stack_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here CUDA need not be made up")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    with fake_cuda(monkeypatch, getattr(request, "param", "loop")) as device:
        yield device


def stack_on_cuda(k: int, dataset: Dataset, *overrides: str) -> Stack:
    return stack_of([tiny(f"seed={seed}", *overrides) for seed in range(k)], dataset, CUDA)


def on_cuda(split: Split) -> Split:
    """The split with its features on the device in half precision."""
    bins = sum(record.n_time_steps for record in split.records)
    return replace(split, rows=DeviceRows(torch.empty(bins, split.n_features, dtype=torch.float16, device=CUDA), split))


@pytest.mark.parametrize("cuda", ["loop", "library"], indirect=True)
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "fp16_clip_before_unscale"])
@pytest.mark.parametrize("k", [1, 3])
def test_a_step_mixes_no_devices_and_never_waits(k: int, precision: str, dataset: Dataset, cuda: FakeCuda) -> None:
    stack, split = stack_on_cuda(k, dataset, f"precision={precision}"), on_cuda(dataset.train)
    cuda.waits.clear()
    signals = _train_step(stack, split)
    assert not cuda.waits
    assert {v.device for v in (*signals.values(), *stack.parameters.values())} == {CUDA}
    assert {v.dtype for v in (*signals.values(), *stack.parameters.values())} == {torch.float32}


def test_a_validation_waits_when_all_is_decoded(
    dataset: Dataset, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoded(Exception):
        pass

    def decoded(_: Tensor) -> None:
        raise Decoded

    stack, split = stack_on_cuda(2, dataset), on_cuda(dataset.val)
    assert len(split.by_day) > 1
    monkeypatch.setattr("stability.engine.evaluate.without_blanks", decoded)
    cuda.waits.clear()
    with pytest.raises(Decoded):
        evaluate(stack, split)
    assert cuda.waits == {"_to_copy": 1}  # what the first batch's trials said


def test_trials_join_and_leave_a_stack_without_a_wait(dataset: Dataset, cuda: FakeCuda) -> None:
    stack = stack_on_cuda(2, dataset)
    cuda.waits.clear()
    stack = join([select(stack, [1]), stack])
    assert cuda.waits == {"_to_copy": 1}  # which places
    _train_step(stack, on_cuda(dataset.train))


def test_the_flight_recorder_takes_no_memory_of_the_device(
    dataset: Dataset, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_on_cuda(2, dataset)
    kept: list[Stack] = []
    recorder = Recorder(stack)
    monkeypatch.setattr(recorder, "_kept", kept)
    kept.append(replace(stack, steps=[-recorder._every]))
    cuda.allocated.clear()
    recorder.keep_state(Slot(stack, 1))
    state = kept[1]
    tensors = [*state.parameters.values(), *(t for kind in state.moments for t in kind.values()), state.failed]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert sum(t.nbytes for t in tensors[:-1]) * 2 == recorder_bytes(stack) == stack.state_bytes
    assert not cuda.allocated
    assert {t.device for t in copy_trial(state, 0, CUDA).parameters.values()} == {CUDA}


class Context:
    """What a Function keeps from its forward for its backward."""

    needs_input_grad = (True,) * 8

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def forward_and_back(function: Any, *operands: Any) -> Sequence[Tensor]:
    context = Context()
    result = function.forward(context, *operands)
    gradients = function.backward(context, torch.ones_like(result))
    return gradients if isinstance(gradients, tuple) else (gradients,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_back_mixes_no_devices_and_never_waits(dtype: torch.dtype, cuda: FakeCuda) -> None:
    k, h, counts = 3, 32, [4, 4, 2, 1]
    shapes = [(k, sum(counts), 5), (k, counts[0], h), (k, 3 * h, 5), (k, 3 * h, h), (k, 3 * h), (k, 3 * h)]
    layer = [torch.empty(shape, dtype=dtype, device=CUDA) for shape in shapes]
    x = torch.empty(k, 4, 30, 6, dtype=dtype, device=CUDA)
    biases = torch.empty(k, 2, 1, 6, device=CUDA)
    log_probs = torch.empty(k, 8, 4, 41, device=CUDA)
    spelled, lengths = (torch.zeros(*shape, dtype=torch.int64, device=CUDA) for shape in ((k, 4, 16), (2, k, 4)))
    packing = pack(torch.tensor([[4, 3, 2, 2]] * k))
    cases: list[tuple[Any, list[Tensor], list[Any]]] = [
        (_Layer, layer, [counts]),
        (_Patches, [x], [packing, 14, 4, torch.bfloat16]),
        (_Softsign, [x], []),
        (patches_gpu._Patches, [x, biases], [(3, 1), x > 0, 1.25, packing, 14, 4]),
        (ctc_gpu._Losses, [log_probs], [spelled, lengths]),
    ]
    for function, operands, rest in cases:
        gradients = forward_and_back(function, *operands, *rest)
        for gradient, operand in zip(gradients, operands, strict=False):
            assert (gradient.shape, gradient.dtype, gradient.device) == (operand.shape, operand.dtype, CUDA)
    assert not cuda.waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_day_layer_passes_over_memory_once_each_way(dtype: torch.dtype, cuda: FakeCuda) -> None:
    """In the official sizes: products, what dropout keeps, and patches there; the same and a gradient back."""
    bins, features, frames = 1418, 512, torch.linspace(92, 352, 64).long().unsqueeze(0)
    products = torch.empty(1, 64, bins, features, dtype=dtype, device=CUDA)
    kept = torch.empty(1, 64, bins, features, dtype=torch.bool, device=CUDA)
    biases = torch.empty(1, 4, 1, features, device=CUDA)
    packing = pack(frames)
    cuda.moved.clear()
    forward_and_back(patches_gpu._Patches, products, biases, (16,) * 4, kept, 1.25, packing, 14, 4)
    patches = packing.row.numel() * 14 * features * dtype.itemsize
    sums = 64 * 89 * features * 4  # of the biases' gradients, over 16 bins
    there, back = (cuda.moved.pop(f"patches_gpu.{name}") for name in ("_forward", "_backward"))
    assert there == pytest.approx(products.nbytes + kept.nbytes + patches, rel=1e-3)
    assert back == pytest.approx(2 * products.nbytes + kept.nbytes + patches + sums, rel=1e-3)
    del cuda.moved["ones_like"]  # the gradient that the test makes
    assert cuda.moved.total() < 1.2 * sums


@pytest.mark.parametrize(("module", "launches"), [(gru_gpu, 4), (gru_layer_gpu, 2)])
def test_a_layer_is_a_launch_a_frame_or_one_for_the_trials_that_fit(
    module: Any, launches: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three trials two fit. In neither way does the host wait."""
    k, h, counts = 3, 64, [4, 4, 2, 1]
    shapes = [(k, sum(counts), 5), (k, counts[0], h), (k, 3 * h, 5), (k, 3 * h, h), (k, 3 * h), (k, 3 * h)]
    layer = [torch.empty(shape, dtype=torch.bfloat16, device=CUDA) for shape in shapes]
    loops = tuple(partial(loop, variant=gru_gpu.LAYER) for loop in (module.forward, module.backward))
    with monkeypatch.context() as patch:  # undone before `cuda` undoes its own
        patch.setattr(recurrent, "_loops_on_gpu", lambda *_: loops)
        patch.setattr(gru_layer_gpu, "_trials_at_once", lambda *_: 2)
        gradients = forward_and_back(_Layer, *layer, counts)
    for gradient, operand in zip(gradients, layer, strict=False):
        assert (gradient.shape, gradient.dtype, gradient.device) == (operand.shape, operand.dtype, CUDA)
    name = module.__name__.rpartition(".")[2]
    assert cuda.launched == {f"{name}._forward": launches, f"{name}._backward": launches}
    assert not cuda.waits
