"""The NEJM 2024 GRU decoder for a stack of trials: day layer, patches, GRU layers, linear head.

Parameters are a plain dictionary of tensors, each with a leading trial axis K. Names and shapes are those of the public
checkpoints, except for K, and for the days, which are one tensor here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from stability.config.schema import Model
from stability.core.device import to_device
from stability.core.streams import torch_stream
from stability.data.phonemes import PHONEMES
from stability.engine.kernels import selftest
from stability.engine.packing import Packing, pack, unpack
from stability.engine.recurrent import Engine, GruWeights, gru_layer, product_dtype

Parameters = dict[str, Tensor]
Dropout = Callable[[Tensor, str, float, Packing | None], Tensor]  # takes activations, purpose, probability and packing
OnOutput = Callable[[str, Tensor], None]  # called with each module's name and output, in forward order
CPU = torch.device("cpu")


def ignore_output(name: str, output: Tensor) -> None:
    """The `OnOutput` that does nothing."""


def init_parameters(model: Model, n_features: int, n_days: int, seed: int) -> Parameters:
    """Draw the official initial weights of one trial, on the CPU, without the trial axis.

    Day layers are the identity; recurrent weights are orthogonal; input weights, head and initial state are
    Xavier-uniform; biases are uniform, as PyTorch initialises them.
    """
    units, classes = model.units, len(PHONEMES)
    bound = 1 / math.sqrt(units)

    def stream(name: str) -> torch.Generator:
        return torch_stream(seed, f"initialisation of {name}", 0, CPU)

    def xavier(name: str, *shape: int) -> Tensor:
        return nn.init.xavier_uniform_(torch.empty(shape), generator=stream(name))

    def uniform(name: str, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=stream(name))

    parameters = {
        "day_weights": torch.eye(n_features).repeat(n_days, 1, 1),
        "day_biases": torch.zeros(n_days, 1, n_features),
        "h0": xavier("h0", 1, 1, units),
    }
    for layer in range(model.layers):
        inputs = n_features * model.patch_size if layer == 0 else units
        weight_ih, weight_hh, bias_ih, bias_hh = gru_names(layer)
        parameters[weight_ih] = xavier(weight_ih, 3 * units, inputs)
        recurrent = torch.empty(3 * units, units)
        parameters[weight_hh] = nn.init.orthogonal_(recurrent, generator=stream(weight_hh))
        parameters[bias_ih] = uniform(bias_ih, 3 * units)
        parameters[bias_hh] = uniform(bias_hh, 3 * units)
    parameters["out.weight"] = xavier("out.weight", classes, units)
    parameters["out.bias"] = uniform("out.bias", classes)
    return parameters


def gru_names(layer: int) -> tuple[str, str, str, str]:
    """Return the names of a GRU layer's parameters, in the order of `GruWeights`."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        f"gru.{kind}_l{layer}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return weight_ih, weight_hh, bias_ih, bias_hh


def frames_of(bins: Tensor, model: Model) -> Tensor:
    """Count the output frames, one for each patch, of utterances with that many input bins. bins: of any shape."""
    return torch.div(bins - model.patch_size, model.patch_stride, rounding_mode="floor") + 1


def forward(
    parameters: Mapping[str, Tensor],
    x: Tensor,
    frames: Tensor,
    rows_per_day: Sequence[int],
    model: Model,
    dropout: Dropout | None = None,
    on_output: OnOutput = ignore_output,
    engine: Engine = "loop",
) -> Tensor:
    """Run the decoder of K trials on a batch of each.

    Args:
        parameters: The weights. `day_weights` (K, D, F, F) and `day_biases` (K, D, 1, F) are those of the D days in the
            batch, in the order of its rows.
        x: (K, B, T, F) features.
        frames: (K, B) output frames of each utterance, on the host, as `frames_of` counts them.
        rows_per_day: The number of rows of each of the D days.
        model: Sizes and dropout probabilities.
        dropout: Applied to the input and between GRU layers; None in validation.
        on_output: Called with each module's name and output.
        engine: What computes the GRU layers.

    Returns:
        Logits (K, T', B, C). After the last frame of an utterance they have no meaning.
    """
    k, b, t, _ = x.shape
    longest = (t - model.patch_size) // model.patch_stride + 1
    packing = pack(frames)
    on_output("input", x)
    x = _Softsign.apply(_day_layer(x, parameters["day_weights"], parameters["day_biases"], rows_per_day))  # type: ignore[no-untyped-call]
    on_output("day layer", x)
    if dropout is not None:
        x = dropout(x, "input", model.input_dropout, None)
    h: Tensor = _Patches.apply(x, packing, model.patch_size, model.patch_stride, product_dtype(x))  # type: ignore[no-untyped-call]
    h0 = parameters["h0"].reshape(k, 1, -1).expand(k, packing.counts[0], -1)
    for layer in range(model.layers):
        if layer > 0 and dropout is not None:
            h = dropout(h, f"layer {layer}", model.rnn_dropout, packing)
        weights = GruWeights(*(parameters[name] for name in gru_names(layer)))
        h = gru_layer(h, h0, weights, packing.counts, engine)
        on_output(f"gru.{layer}", h)
    logits = torch.matmul(h, parameters["out.weight"].transpose(1, 2)) + parameters["out.bias"].unsqueeze(1)
    on_output("head", logits)
    return unpack(logits, packing, b, longest)


def _day_layer(x: Tensor, weights: Tensor, biases: Tensor, rows_per_day: Sequence[int]) -> Tensor:
    k, b, t, f = x.shape
    days = len(rows_per_day)
    if len(set(rows_per_day)) > 1:  # one product for each day, since their numbers of rows differ
        parts = torch.split(x, list(rows_per_day), 1)
        return torch.cat([p @ weights[:, d, None] + biases[:, d, None] for d, p in enumerate(parts)], 1)
    return (x.reshape(k, days, -1, f) @ weights + biases).view(k, b, t, f)


class _Patches(torch.autograd.Function):
    """(K, B, T, F) to packed (K, N, patch x F), flattened bin-major. Unfold's own backward is 20 times slower.

    The patches are the largest tensors of a step, so they are made in the dtype of the product that follows. Their
    gradients are added up in the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing, size: int, stride: int, dtype: torch.dtype) -> Tensor:
        k, _, _, f = x.shape
        ctx.shape, ctx.dtype, ctx.packing, ctx.size, ctx.stride = x.shape, x.dtype, packing, size, stride
        windows = x.to(dtype).unfold(2, size, stride).transpose(-1, -2)  # (K, B, T', size, F)
        trial = torch.arange(k, device=x.device).unsqueeze(1)
        return windows[trial, to_device(packing.row, x.device), to_device(packing.frame, x.device)].view(
            k, -1, size * f
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if not grad.is_cuda:
            fold: Callable[..., Tensor] = _fold_by_frame  # twice as fast there; on a GPU it needs a launch a frame
        elif ctx.dtype == torch.float32:
            fold = _fold_on_gpu(grad.device)
        else:
            fold = _fold_by_part
        return fold(grad, ctx.shape, ctx.packing, ctx.size, ctx.stride, ctx.dtype), None, None, None, None


@cache
def _fold_on_gpu(device: torch.device) -> Callable[..., Tensor]:
    shape, packing = torch.Size((2, 3, 27, 5)), pack(torch.tensor([[4, 2, 1], [3, 4, 4]]))
    grad = torch.randn(2, sum(packing.counts), 14 * 5, generator=torch.Generator().manual_seed(0))

    def kernel() -> Callable[..., Tensor]:
        from stability.engine.kernels import patches_gpu

        own, exact = (
            fold(grad.to(device, dtype), shape, packing, 14, 4, dtype)
            for fold, dtype in ((patches_gpu.fold, torch.float32), (_fold_by_part, torch.float64))
        )
        selftest.check_results([own], [exact])
        return patches_gpu.fold

    return selftest.kernel_or_fallback(kernel, _fold_by_part, "The patches' gradients take several passes over memory")


def _fold_by_frame(
    grad: Tensor, shape: torch.Size, packing: Packing, size: int, stride: int, dtype: torch.dtype
) -> Tensor:
    """Add up packed, overlapping patches to (K, B, T, F), frame by frame: the patches of a frame are adjacent."""
    k, b, t, f = shape
    counts = packing.counts
    in_order = grad.new_zeros(k, counts[0], t * f, dtype=dtype)
    for frame, patch in enumerate(torch.split(grad, counts, 1)):
        in_order[:, : counts[frame]].narrow(2, frame * stride * f, size * f).add_(patch)
    trial = torch.arange(k, device=grad.device).unsqueeze(1)
    row = to_device(packing.row[:, : counts[0]], grad.device)
    return in_order.new_zeros(k, b, t * f).index_put_((trial, row), in_order).view(shape)


def _fold_by_part(
    grad: Tensor, shape: torch.Size, packing: Packing, size: int, stride: int, dtype: torch.dtype
) -> Tensor:
    """Do the same for all frames at once: the parts of a patch that are a stride wide do not overlap."""
    k, b, t, f = shape
    frames = len(packing.counts)
    unpacked = unpack(grad, packing, b, frames)
    total = grad.new_zeros(shape, dtype=dtype)
    for start in range(0, size, stride):
        width = min(stride, size - start) * f
        part = total.as_strided((k, frames, b, width), (b * t * f, stride * f, t * f, 1), start * f)
        part += unpacked[..., start * f : start * f + width]
    return total


class _Softsign(torch.autograd.Function):
    """x / (1 + |x|). PyTorch's own backward passes over memory three times as often."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        divisor = x.abs().add_(1)
        ctx.save_for_backward(divisor)
        return x / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        divisor: Tensor = ctx.saved_tensors[0]
        return grad / divisor.square()
