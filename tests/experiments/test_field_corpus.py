"""The field corpus: each half has families of its own, and labels that follow from what is recorded of a training."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from experiments.detection.corpus import Trace, unpack
from experiments.detection.field import corpus
from experiments.detection.field.fifth_task import fifth_encoder, letters
from experiments.detection.field.fifth_trainer import FifthTrainer
from experiments.detection.field.labels import field_label, in_view
from experiments.detection.field.recipe import FieldRecipe, Half
from experiments.detection.field.recipes import field_recipes
from experiments.detection.field.task import Batch, utterances

_HALF: Half = "field_fifth_test"
_REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "outcomes.md"


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return [*unpack(corpus.packed(_HALF))]


@pytest.fixture(scope="module")
def small() -> FieldRecipe:
    return FieldRecipe("small", _HALF, 5000, model="patches", task="letters", utterances=24, batch=4, units=8, steps=4)


def test_no_two_halves_have_a_family_in_common() -> None:
    families = {half: {r.family for r in field_recipes() if r.half == half} for half in get_args(Half)}
    assert all(families.values())
    assert sum(map(len, families.values())) == len(set[str]().union(*families.values()))


def test_the_packed_half_has_every_recipe_as_it_is(traces: list[Trace]) -> None:
    recipes = {r.name: _rounded(asdict(r)) for r in field_recipes() if r.half == _HALF}
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
        label, end = field_label(trace.facts), trace.facts["ends"][-1]
        if label is not None and label.healthy:
            reached = [end, *trace.facts["later"]][-1]
            assert reached["true_per"] < 0.7, trace.name


def test_letters_can_be_aligned_after_half_of_the_frames_are_gone() -> None:
    for x, labels in letters("letters", 200, np.random.default_rng(0)):
        repeats = int((labels[1:] == labels[:-1]).sum())
        assert len(labels) + repeats <= len(x) // 2


@pytest.mark.parametrize("model", ["transformer", "deep_speech", "patches"])
@pytest.mark.parametrize("frames", [7, 8])
def test_encoders_halve_the_frames(small: FieldRecipe, model: str, frames: int) -> None:
    encoder = fifth_encoder(replace(small, model=model), 40)  # type: ignore[arg-type]
    assert encoder is not None
    assert encoder(torch.zeros(2, frames, 40)).shape == (2, 4, 8)


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
