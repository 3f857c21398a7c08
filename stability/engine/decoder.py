"""The NEJM 2024 GRU decoder for a stack of trials: day layer, patches, GRU layers, linear head.

Parameters are a plain dictionary of tensors, each with a leading trial axis K. Names and shapes are those of the public
checkpoints, except for K, and for the days, which are one tensor here.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stability.config.schema import Model
from stability.core.streams import torch_stream
from stability.data.phonemes import PHONEMES
from stability.engine.packing import Packing, pack, unpack
from stability.engine.patches import drop_out, to_patches
from stability.engine.recurrent import Engine, GruWeights, gru_layer

Parameters = dict[str, Tensor]
# Takes activations, purpose, probability and packing. Returns 1 where one is kept, else 0, for all or each trial.
Dropout = Callable[[Tensor, str, float, Packing | None], Tensor]
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
    products = _day_products(x, parameters["day_weights"], rows_per_day)
    p = model.input_dropout
    kept = None if dropout is None else dropout(products, "input", p, None)
    patching = (packing, model.patch_size, model.patch_stride)
    h = to_patches(products, parameters["day_biases"], rows_per_day, kept, _scale(p), *patching)
    on_output("day layer", h)
    h0 = parameters["h0"].reshape(k, 1, -1).expand(k, packing.counts[0], -1)
    for layer in range(model.layers):
        if layer > 0 and dropout is not None:
            p = model.rnn_dropout
            h = drop_out(h, dropout(h, f"layer {layer}", p, packing), _scale(p))
        weights = GruWeights(*(parameters[name] for name in gru_names(layer)))
        h = gru_layer(h, h0, weights, packing.counts, engine)
        on_output(f"gru.{layer}", h)
    logits = torch.matmul(h, parameters["out.weight"].transpose(1, 2)) + parameters["out.bias"].unsqueeze(1)
    on_output("head", logits)
    return unpack(logits, packing, b, longest)


def _scale(p: float) -> float:
    """What dropout multiplies by what it keeps: in float32, as PyTorch's operations compute it."""
    return float(torch.ones(()).div_(1 - p))


def _day_products(x: Tensor, weights: Tensor, rows_per_day: Sequence[int]) -> Tensor:
    k, b, t, f = x.shape
    days = len(rows_per_day)
    if len(set(rows_per_day)) > 1:  # one product for each day, since their numbers of rows differ
        parts = torch.split(x, list(rows_per_day), 1)
        return torch.cat([part @ weights[:, d, None] for d, part in enumerate(parts)], 1)
    return (x.reshape(k, days, -1, f) @ weights).view(k, b, t, f)
