"""The decoder: official sizes and initialisation, and the same values and gradients as the reference."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stability.config.schema import Model
from stability.data.phonemes import PHONEMES
from stability.engine.decoder import Parameters, forward, frames_of, gru_names, init_parameters
from stability.engine.kernels import gru_cpu
from stability.engine.memory import prepare_process
from stability.engine.packing import Packing
from stability.engine.recurrent import Engine, GruWeights, gru_layer
from tests.support.configs import composed, tiny
from tests.support.devices import DEVICES
from tests.support.reference import by_official_name, reference

DAYS, FEATURES = 45, 512


@pytest.fixture(scope="module")
def official() -> Parameters:
    return init_parameters(composed("model=official").model, FEATURES, DAYS, seed=0)


def small_model(layers: int = 2) -> Model:
    return tiny(f"model.layers={layers}").model


def test_official_size(official: Parameters) -> None:
    assert sum(p.numel() for p in official.values()) == 44_315_177
    assert official["day_weights"].numel() + official["day_biases"].numel() == 11_819_520


def test_official_shapes(official: Parameters) -> None:
    gru = nn.GRU(14 * FEATURES, 768, 5, device="meta")
    expected = {f"gru.{n}": p.shape for n, p in gru.named_parameters()}
    expected |= {"out.weight": torch.Size((41, 768)), "out.bias": torch.Size((41,))}
    expected |= {"h0": torch.Size((1, 1, 768))}
    expected |= {f"day_weights.{d}": torch.Size((512, 512)) for d in range(DAYS)}
    expected |= {f"day_biases.{d}": torch.Size((1, 512)) for d in range(DAYS)}
    assert {n: p.shape for n, p in by_official_name(official).items()} == expected


def test_day_layers_start_as_identity(official: Parameters) -> None:
    assert torch.equal(official["day_weights"], torch.eye(FEATURES).expand(DAYS, -1, -1))
    assert not official["day_biases"].any()


@pytest.mark.parametrize("layer", range(5))
def test_recurrent_weights_start_orthogonal(official: Parameters, layer: int) -> None:
    w = official[f"gru.weight_hh_l{layer}"].double()
    torch.testing.assert_close(w.T @ w, torch.eye(768, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "fans"),
    [
        ("gru.weight_ih_l0", 7168 + 2304),
        *((f"gru.weight_ih_l{layer}", 768 + 2304) for layer in range(1, 5)),
        ("out.weight", 768 + 41),
        ("h0", 768 + 768),  # of (1, 1, 768) both fans are the last axis
    ],
)
def test_weights_start_xavier_uniform(official: Parameters, name: str, fans: int) -> None:
    _assert_uniform(official[name], math.sqrt(6 / fans))


@pytest.mark.parametrize(
    "name", [*(f"gru.bias_{kind}_l{layer}" for kind in ("ih", "hh") for layer in range(5)), "out.bias"]
)
def test_biases_start_as_pytorch_leaves_them(official: Parameters, name: str) -> None:
    _assert_uniform(official[name], 1 / math.sqrt(768))


def _assert_uniform(values: Tensor, bound: float) -> None:
    """Within (-bound, bound), and as spread out as so many uniform draws are (5 standard errors)."""
    values, n = values.double().flatten(), values.numel()
    assert values.abs().max() <= bound
    assert values.abs().max() > bound * (1 - 10 / n)
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * n)
    assert abs(values.square().mean() / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / n)


def test_initialisation_follows_from_the_seed() -> None:
    first, again, other = (init_parameters(small_model(), 6, 3, seed) for seed in (0, 0, 1))
    for name, p in first.items():
        assert torch.equal(p, again[name])
        assert torch.equal(p, other[name]) == name.startswith("day_")
    assert not torch.equal(first["gru.bias_ih_l0"], first["gru.bias_hh_l0"])


def test_classes_are_in_the_official_order() -> None:
    arpabet = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
    assert list(PHONEMES) == ["BLANK", *arpabet.split(), " | "]


def test_output_length() -> None:
    model = small_model()
    p = {n: t.unsqueeze(0) for n, t in init_parameters(model, 2, 1, 0).items()}
    for bins in range(14, 40):
        expected = math.floor((bins - 14) / 4 + 1)
        frames = torch.full((1, 3), expected)
        assert forward(p, torch.zeros(1, 3, bins, 2), frames, [3], model).shape == (1, expected, 3, 41)
        assert frames_of(torch.tensor([bins]), model).item() == expected


@pytest.mark.parametrize("rows_per_day", [(2, 2), (3, 2, 2), (1, 4), (5,)])
def test_forward_and_gradients_agree_with_the_reference(rows_per_day: tuple[int, ...]) -> None:
    model, days, k = small_model(layers=3), 4, 2
    torch.manual_seed(0)
    trials = [_perturbed(init_parameters(model, 6, days, seed)) for seed in range(k)]
    chosen = [torch.randperm(days)[: len(rows_per_day)].tolist() for _ in range(k)]
    x = torch.randn(k, sum(rows_per_day), 37, 6, dtype=torch.float64)
    out_grad = torch.randn(k, sum(rows_per_day), 6, 41, dtype=torch.float64)

    p = {n: torch.stack([t[n] for t in trials]).requires_grad_() for n in trials[0]}
    rows = torch.tensor(chosen)
    index = torch.arange(k).unsqueeze(1)
    selected = {n: t[index, rows] if n.startswith("day_") else t for n, t in p.items()}
    frames = torch.randint(1, 7, (k, len(out_grad[0])), generator=torch.Generator().manual_seed(0))
    real = (torch.arange(6) < frames.unsqueeze(2)).unsqueeze(3)  # (K, B, T', 1)
    logits = forward(selected, x, frames, rows_per_day, model).transpose(1, 2)
    out_grad *= real  # as from CTC, which does not look behind the last frame
    gradients = dict(zip(p, torch.autograd.grad((logits * out_grad).sum(), [*p.values()]), strict=True))

    for i in range(k):
        ref = reference(trials[i], 3, torch.float64)
        day_of_row = [d for d, n in zip(chosen[i], rows_per_day, strict=True) for _ in range(n)]
        expected = ref(x[i], day_of_row)
        torch.testing.assert_close(logits[i] * real[i], expected * real[i], atol=1e-12, rtol=1e-12)
        (expected * out_grad[i]).sum().backward()
        ours = by_official_name({n: g[i] for n, g in gradients.items()})
        for name, parameter in ref.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(ours[name], wanted, atol=1e-11, rtol=1e-10, msg=name)


@pytest.mark.parametrize("units", [8, 32])  # by PyTorch's operations, and compiled
def test_an_utterance_without_a_frame_changes_nothing(units: int) -> None:
    model, k = replace(small_model(layers=2), units=units), 2
    p = {n: torch.stack([t, t + 0.1]) for n, t in init_parameters(model, 6, 1, 0).items()}
    x, frames = torch.randn(k, 3, 37, 6), torch.tensor([[6, 0, 3]] * k)
    with_it, without = forward(p, x, frames, (3,), model), forward(p, x[:, [0, 2]], frames[:, [0, 2]], (2,), model)
    torch.testing.assert_close(with_it[:, :, [0, 2]], without)


def _perturbed(p: Parameters) -> Parameters:
    """In float64, and with day layers that are not all alike."""
    return {n: t.double() + 0.1 * torch.randn(t.shape, dtype=torch.float64) for n, t in p.items()}


def test_dropout_sits_between_the_layers() -> None:
    model = small_model(layers=3)
    p = _perturbed(init_parameters(model, 6, 2, 0))
    x = torch.randn(1, 3, 30, 6, dtype=torch.float64)
    seen = []

    def dropout(h: Tensor, purpose: str, probability: float, packing: Packing | None) -> Tensor:
        seen.append((purpose, probability, tuple(h.shape)))
        return kept(h).expand_as(h)

    def kept(h: Tensor) -> Tensor:
        return torch.arange(h.shape[-1]) % 3 > 0

    def scaled(place: str, h: Tensor) -> Tensor:
        return h * kept(h) / (0.8 if place == "input" else 0.6)

    frames = torch.full((1, 3), 5)
    logits = forward({n: t.unsqueeze(0) for n, t in p.items()}, x, frames, (2, 1), model, dropout)
    expected = reference(p, 3, torch.float64)(x[0], [0, 0, 1], scaled)
    torch.testing.assert_close(logits[0].transpose(0, 1), expected)
    units = model.units
    assert seen == [("input", 0.2, (1, 3, 30, 6)), ("layer 1", 0.4, (1, 15, units)), ("layer 2", 0.4, (1, 15, units))]


def gru_operands(k: int, counts: Sequence[int], i: int, h: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(k, sum(counts), i), (k, counts[0], h), (k, 3 * h, i), (k, 3 * h, h), (k, 3 * h), (k, 3 * h)]
    generator = torch.Generator().manual_seed(k)
    scale = (
        0.5 if h <= 32 else h**-0.5
    )  # many units with large weights are chaotic: rounding errors grow with each frame
    return [torch.randn(s, generator=generator, dtype=dtype).mul_(scale).requires_grad_() for s in shapes]


def gru(operands: Sequence[Tensor], counts: Sequence[int], engine: Engine = "loop") -> Tensor:
    x, h0, *weights = operands
    return gru_layer(x, h0, GruWeights(*weights), counts, engine)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("k", [1, 2, 5, 16, 64])
def test_recurrent_engine_agrees_with_pytorch_and_a_float64_loop(k: int, layers: int) -> None:
    _assert_engine_agrees(k, layers, [3, 3, 3, 2, 1, 1], torch.device("cpu"))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 3, 64])
def test_compiled_recurrent_engine_agrees(k: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gru_cpu.applies(torch.zeros(1), 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    _assert_engine_agrees(k, 2, [33, 33, 25, 14, 9, 8, 7, 5, 1], torch.device("cpu"), units=32)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.type)
@pytest.mark.parametrize("engine", ["loop", "library"])
@pytest.mark.filterwarnings("ignore:RNN module weights")  # of torch.nn.GRU, which is given weights that lie apart
@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("units", [6, 96])  # the loop by PyTorch's operations, and by kernels
def test_both_engines_agree_on_every_device(
    units: int, k: int, layers: int, engine: Engine, device: torch.device
) -> None:
    prepare_process()  # no TF32
    _assert_engine_agrees(k, layers, [4] * 15 + [3] * 20 + [1] * 5, device, units, engine)


def _assert_engine_agrees(
    k: int, layers: int, counts: list[int], device: torch.device, units: int = 6, engine: Engine = "loop"
) -> None:
    """With torch.nn.GRU, a trial at a time, and with a plain loop in float64: values, and gradients of all operands."""
    names = [f"{kind}_l{i}" for i in range(layers) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    stacks = [gru_operands(k, counts, 7 if i == 0 else units, units, torch.float32) for i in range(layers)]
    x = stacks[0][0]
    operands = [x, *(v for stack in stacks for v in stack[1:])]
    ours, *given = (v.to(device) for v in operands)
    looped = ours.double()
    for i in range(layers):
        h0, *weights = given[5 * i : 5 * i + 5]
        ours = gru([ours, h0, *weights], counts, engine)
        looped = _plain_gru(looped, counts, *(v.double() for v in (h0, *weights)))
    initial = torch.stack(given[::5], 1)  # (K, layers, B, H)
    weights = [v for i, v in enumerate(given) if i % 5]
    theirs = []
    for i in range(k):
        packed = nn.utils.rnn.PackedSequence(x[i].to(device), torch.tensor(counts))
        named = {name: w[i] for name, w in zip(names, weights, strict=True)}
        called, _ = torch.func.functional_call(nn.GRU(7, units, layers).to(device), named, (packed, initial[i]))
        theirs.append(called.data)
    tolerance = 1e-5 if device.type == "cpu" else 5e-5
    _assert_same_with_gradients(ours, [torch.stack(theirs), looped], operands, tolerance)


def _plain_gru(
    x: Tensor, counts: Sequence[int], h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    states = []
    for frame, count in zip(torch.split(x, list(counts), 1), counts, strict=True):
        h = h[:, :count]
        from_x = torch.einsum("kbi,kgi->kbg", frame, w_ih) + b_ih[:, None]
        from_h = torch.einsum("kbh,kgh->kbg", h, w_hh) + b_hh[:, None]
        (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        update = 1 / (1 + torch.exp(-(xz + hz)))
        new = torch.tanh(xn + hn / (1 + torch.exp(-(xr + hr))))
        h = (1 - update) * new + update * h
        states.append(h)
    return torch.cat(states, 1)


def _assert_same_with_gradients(
    ours: Tensor, others: Sequence[Tensor], operands: Sequence[Tensor], tolerance: float
) -> None:
    """To that share of the largest entry."""
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(ours.device)
    own, *rest = ((v, *torch.autograd.grad((v * weight).sum(), operands, retain_graph=True)) for v in (ours, *others))
    for theirs in rest:
        for a, b in zip(own, theirs, strict=True):
            assert (a.double() - b.double()).abs().max() <= tolerance * b.abs().max()


def test_gradient_of_the_recurrent_engine() -> None:
    counts = [3, 3, 2, 1, 1]
    operands = gru_operands(2, counts, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *own: gru(own, counts), operands)


def test_softsign_follows_the_day_layer() -> None:
    """With day layers at the identity, what enters the first patch is x / (1 + |x|)."""
    model = small_model(layers=1)
    p = {n: t.double() for n, t in init_parameters(model, 6, 1, 0).items()}
    x = torch.randn(1, 1, 14, 6, dtype=torch.float64) * 3
    got = forward({n: t.unsqueeze(0) for n, t in p.items()}, x, torch.tensor([[1]]), (1,), model)
    weights = GruWeights(*(p[name].unsqueeze(0) for name in gru_names(0)))
    h = gru_layer((x / (1 + x.abs())).reshape(1, 1, -1), p["h0"], weights, [1])
    torch.testing.assert_close(got[0, 0], F.linear(h[0], p["out.weight"], p["out.bias"]))
