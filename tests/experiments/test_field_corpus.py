"""The field corpus: each half has families of its own, and labels that follow from what is recorded of a training."""

import copy
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.detection.corpus import Trace, unpack
from experiments.detection.field import corpus
from experiments.detection.field.fifth_task import fifth_encoder, letters
from experiments.detection.field.fifth_trainer import FifthTrainer
from experiments.detection.field.labels import field_label, in_view
from experiments.detection.field.recipe import FieldRecipe, Half, Task
from experiments.detection.field.recipes import field_recipes
from experiments.detection.field.seventh_task import (
    SEVENTH_CLASSES,
    ScheduleFree,
    seventh_encoder,
    seventh_utterances,
)
from experiments.detection.field.seventh_trainer import SeventhTrainer
from experiments.detection.field.sixth_task import (
    SIXTH_CLASSES,
    Orthogonal,
    Prodigy,
    _StateSpace,
    sixth_encoder,
    sixth_utterances,
)
from experiments.detection.field.sixth_trainer import SixthTrainer
from experiments.detection.field.task import Batch, utterances

_HALVES: tuple[Half, ...] = ("field_sixth_test", "field_seventh_test")  # the newest
_REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "outcomes.md"


@pytest.fixture(scope="module", params=_HALVES)
def half(request: pytest.FixtureRequest) -> Half:
    chosen: Half = request.param
    return chosen


@pytest.fixture(scope="module")
def traces(half: Half) -> list[Trace]:
    return [*unpack(corpus.packed(half))]


@pytest.fixture(scope="module")
def small() -> FieldRecipe:
    own = FieldRecipe("small", "field_fifth_test", 5000, model="patches", task="letters")
    return replace(own, utterances=24, batch=4, units=8, steps=4)


@pytest.fixture(scope="module")
def smaller(small: FieldRecipe) -> FieldRecipe:
    return replace(small, half="field_sixth_test", model="tdnn", task="dialled")


def test_no_two_halves_have_a_family_in_common() -> None:
    families = {half: {r.family for r in field_recipes() if r.half == half} for half in get_args(Half)}
    assert all(families.values())
    assert sum(map(len, families.values())) == len(set[str]().union(*families.values()))


def test_the_packed_half_has_every_recipe_as_it_is(traces: list[Trace], half: Half) -> None:
    recipes = {r.name: _rounded(asdict(r)) for r in field_recipes() if r.half == half}
    assert {trace.name: _rounded(trace.facts["recipe"]) for trace in traces} == recipes


def _rounded(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without the last digits of a drawn number: exp and log differ there between processors."""
    return {name: f"{value:.12g}" if isinstance(value, float) else value for name, value in recipe.items()}


def test_labels_use_the_words_of_the_reference(traces: list[Trace]) -> None:
    words = {*re.findall(r"`([a-z_ ]+)`", _REFERENCE.read_text())}
    for label in filter(None, (field_label(trace.facts) for trace in traces)):
        for seen in filter(None, (label, in_view(label, {"loss", "per"}, 100))):
            assert seen.outcomes
            assert seen.outcomes <= words
            assert seen.healthy or seen.causes & words


def test_nearly_every_training_has_a_label_and_half_of_them_are_healthy(traces: list[Trace]) -> None:
    labels = [field_label(trace.facts) for trace in traces]
    healthy = sum(label is not None and label.healthy for label in labels)
    assert labels.count(None) <= len(labels) / 20
    assert 0.4 < healthy / len(labels) < 0.65


def test_healthy_trainings_learned_or_came_to_rest(traces: list[Trace]) -> None:
    for trace in traces:
        label = field_label(trace.facts)
        if label is not None and label.healthy:
            reached = [*trace.facts["ends"], *trace.facts["later"]][-1]
            assert reached["true_per"] < 0.7, trace.name


@pytest.mark.parametrize("task", ["letters", *SIXTH_CLASSES, *SEVENTH_CLASSES])
def test_labels_can_be_aligned_after_half_of_the_frames_are_gone(task: Task) -> None:
    make = {"letters": letters, **dict.fromkeys(SEVENTH_CLASSES, seventh_utterances)}.get(task, sixth_utterances)
    for x, labels in make(task, 200, np.random.default_rng(0)):
        repeats = int((labels[1:] == labels[:-1]).sum())
        assert len(labels) + repeats <= len(x) // 2


@pytest.mark.parametrize("model", ["transformer", "deep_speech", "patches"])
@pytest.mark.parametrize("frames", [7, 8])
def test_encoders_halve_the_frames(small: FieldRecipe, model: str, frames: int) -> None:
    encoder = fifth_encoder(replace(small, model=model), 40)  # type: ignore[arg-type]
    assert encoder is not None
    assert encoder(torch.zeros(2, frames, 40)).shape == (2, 4, 8)


@pytest.mark.parametrize("model", ["tdnn", "ssm", "blstm"])
@pytest.mark.parametrize("frames", [7, 8])
def test_encoders_of_the_sixth_half_halve_the_frames(smaller: FieldRecipe, model: str, frames: int) -> None:
    encoder = sixth_encoder(replace(smaller, model=model), 20)  # type: ignore[arg-type]
    assert encoder(torch.randn(2, frames, 20)).shape == (2, 4, 8)


@pytest.mark.parametrize("model", ["vgg", "squeezed", "nearby"])
@pytest.mark.parametrize("frames", [7, 8])
def test_encoders_of_the_seventh_half_halve_the_frames(smaller: FieldRecipe, model: str, frames: int) -> None:
    encoder = seventh_encoder(replace(smaller, model=model), 14)  # type: ignore[arg-type]
    assert encoder(torch.randn(2, frames, 14)).shape == (2, 4, 8)


def test_states_are_sums_of_decayed_inputs() -> None:
    layer = _StateSpace(4, free=False)
    x = torch.randn(1, 6, 4)
    forth, back = layer.decay.detach().exp().reciprocal().chunk(2)
    states = torch.zeros(6, 4)
    inputs = layer.norm(x)[0]
    for t in range(6):
        states[t, :2] = inputs[t, :2] + (forth * states[t - 1, :2] if t else 0)
        states[5 - t, 2:] = inputs[5 - t, 2:] + (back * states[6 - t, 2:] if t else 0)
    expected = x[0] + F.glu(layer.out(F.gelu(states)), -1)
    torch.testing.assert_close(layer(x)[0], expected)


def test_muon_makes_the_singular_values_of_a_step_alike() -> None:
    weights = torch.nn.Parameter(torch.zeros(6, 9))
    weights.grad = torch.randn(6, 9) @ torch.diag(torch.logspace(0, -1, 9))
    Orthogonal([weights], lr=1.0).step()
    values = torch.linalg.svdvals(weights.detach()) / (0.2 * 9**0.5)
    assert bool(((values > 0.6) & (values < 1.3)).all())


def test_prodigy_finds_a_rate_unless_it_must_not() -> None:
    ends = []
    for grows in (True, False):
        x = torch.nn.Parameter(torch.full((3,), 5.0))
        optimizer = Prodigy([x], lr=1.0, grows=grows)
        for _ in range(300):
            x.grad = 2 * x.detach()
            optimizer.step()
        ends.append(float(x.detach().abs().max()))
    assert ends[0] < 0.5
    assert ends[1] > 4.99


def test_without_a_schedule_weights_lie_between_the_fast_ones_and_their_mean() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = ScheduleFree([weight], lr=0.1)
    fast = mean = 2.0
    square = 0.0
    for step in range(1, 6):
        at = 0.1 * fast + 0.9 * mean
        assert float(weight.detach()) == pytest.approx(at)
        weight.grad = 2 * weight.detach()
        square = 0.999 * square + 0.001 * (2 * at) ** 2
        fast -= 0.1 * 2 * at / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
        mean += (fast - mean) / step
        optimizer.step()
    assert float(optimizer.mean(weight)) == pytest.approx(mean)


def test_a_recording_that_is_sped_up_too_far_has_fewer_frames_than_labels(smaller: FieldRecipe) -> None:
    own = replace(smaller, half="field_seventh_test", task="bases", model="nearby", fault="sped_up_too_far", strength=9)
    batch, _ = SeventhTrainer(own).draw()
    assert batch.frames[0] // 2 < batch.counts[0]
    assert bool((batch.frames[1:] // 2 >= batch.counts[1:]).all())


def test_a_job_that_is_killed_goes_on_from_its_checkpoint(smaller: FieldRecipe) -> None:
    own = replace(smaller, half="field_seventh_test", task="bases", model="nearby", fault="preempted", span=20)
    trainer = SeventhTrainer(own)
    for _ in range(5):
        trainer.train_step()
    kept = copy.deepcopy(trainer.model.state_dict())
    for _ in range(15):
        trainer.train_step()
    trainer._prepare()
    torch.testing.assert_close(trainer.model.state_dict(), kept)


def test_swapped_lengths_cannot_be_aligned(smaller: FieldRecipe) -> None:
    trainer = SixthTrainer(replace(smaller, fault="lengths_swapped"))
    batch, _ = trainer.draw()
    assert batch.labels.shape[1] >= int(batch.counts.max())
    assert bool((trainer._frames(batch) < batch.counts).all())


def test_flattened_targets_have_padding_where_labels_should_be(smaller: FieldRecipe) -> None:
    right, _ = SixthTrainer(smaller).draw()
    wrong, _ = SixthTrainer(replace(smaller, fault="targets_flattened")).draw()
    assert torch.equal(wrong.counts, right.counts)
    first = int(right.counts[0])
    assert torch.equal(wrong.labels[0, :first], right.labels[0, :first])
    flat, end = right.labels.flatten(), int(right.counts.sum())
    assert [*_labels(wrong)] == flat[:end].tolist()
    assert 0 in _labels(wrong)


def test_adapters_begin_with_what_was_learned_before(smaller: FieldRecipe) -> None:
    before = SixthTrainer(replace(smaller, seed=5001))
    trainer = SixthTrainer(replace(smaller, fault="adapters"))
    trainer.load(before.model.state_dict())
    x = torch.randn(2, 8, 20)
    torch.testing.assert_close(trainer.model.eval()(x), before.model.eval()(x))
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {name for name in trained if name.startswith("head") or name.endswith((".into", ".out"))}
    assert len(trained) == 6


def test_pseudo_labels_are_what_the_model_hears(smaller: FieldRecipe) -> None:
    trainer = SixthTrainer(replace(smaller, fault="pseudo_labels", seed=5002))
    with torch.no_grad():
        trainer.model.head.bias[4] += 100  # it hears nothing else
    right, _ = SixthTrainer(replace(smaller, seed=5002)).draw()
    batch, rows = trainer.draw()
    for row, number in enumerate(rows.tolist()):
        expected = [4] if number % 2 else right.labels[row, : right.counts[row]].tolist()
        assert batch.labels[row, : batch.counts[row]].tolist() == expected


def test_a_layer_may_be_missing_in_evaluation(smaller: FieldRecipe) -> None:
    model = SixthTrainer(replace(smaller, fault="layer_missing_in_evaluation")).model.eval()
    assert isinstance(model.encoder, torch.nn.Sequential)
    x = torch.randn(2, 8, 20)
    torch.testing.assert_close(model(x), model.head(model.encoder[0](x)))


def test_a_recurrence_over_the_batch_mixes_its_utterances(small: FieldRecipe) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 40)
    other = torch.cat([x[:1], torch.randn(1, 8, 40)])
    for fault, mixes in ((None, False), ("batch_first_forgotten", True)):
        encoder = fifth_encoder(replace(small, fault=fault), 40)
        assert encoder is not None
        assert torch.equal(encoder(x)[0], encoder(other)[0]) != mixes


def test_wrong_pairs_can_still_be_aligned(small: FieldRecipe) -> None:
    trainer = FifthTrainer(replace(small, fault="most_pairs_wrong", strength=100))
    right = FifthTrainer(small)
    batch, rows = trainer.draw()
    assert not torch.equal(batch.labels, right.draw()[0].labels)
    assert len(rows) == small.batch
    assert bool((batch.counts <= -(-batch.frames // 2)).all())


def test_the_mean_of_the_last_weights_is_validated(small: FieldRecipe) -> None:
    trainer = FifthTrainer(replace(small, fault="averaged_at_the_end", lr=0.1, warmup=1))
    kept = []
    for _ in range(6):
        if trainer.step % 5 == 0:
            kept.append(trainer.model.head.bias.detach().clone())
        trainer.train_step()
    exported = trainer._exported()
    assert exported is not None
    torch.testing.assert_close(exported.head.bias.detach(), torch.stack(kept).mean(0))


def test_a_class_table_that_changes_renames_each_class(small: FieldRecipe) -> None:
    before = FifthTrainer(small).held_out
    trainer = FifthTrainer(replace(small, fault="table_changes", strength=4.0))
    trainer.train_step()
    after = trainer.held_out
    pairs = {*zip(_labels(before), _labels(after), strict=True)}
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert all(old != new for old, new in pairs)
    assert torch.equal(utterances("letters", 64, 5).labels, before.labels)


def _labels(data: Batch) -> list[int]:
    return [c for row, n in zip(data.labels.tolist(), data.counts.tolist(), strict=True) for c in row[:n]]
