"""The detection corpus: what is in it, and that the detectors still say of it what was published."""

from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from experiments.detection.corpus import PACKED, unpack
from experiments.detection.field.benchmark import write_csv
from experiments.detection.field.cases import field_cases, view
from experiments.detection.field.corpus import packed
from experiments.detection.field.labels import field_label
from experiments.detection.field.recipe import FieldRecipe, Half
from experiments.detection.field.recipes import field_recipes
from experiments.detection.labels import label
from experiments.detection.recipes import recipes
from experiments.detection.score import cases, ours
from stability.diagnosis.judge import judge
from stability.diagnosis.readers import read_runs


def test_the_test_half_has_seeds_and_families_of_its_own() -> None:
    drawn = recipes()
    assert len({r.name for r in drawn}) == len(drawn)
    seeds = {half: {r.seed for r in drawn if r.half == half} for half in ("design", "first_test", "test")}
    assert not seeds["test"] & (seeds["design"] | seeds["first_test"])
    known = {r.family for r in drawn if r.half != "test"}
    assert {r.family for r in drawn if r.cause and r.half == "test"} - known


def test_every_recipe_has_its_trace() -> None:
    traces = {trace.name: trace for trace in unpack(PACKED)}
    assert traces.keys() == {r.name for r in recipes()}
    for trace in traces.values():
        assert len(trace.signals.steps) == len(trace.signals["loss"]) > 0
        assert (
            (label(trace.facts | {"ended_below_start": True}) is None)
            or trace.facts["ends"]
            or (trace.facts["failed_at"] is not None)
        )


def test_verdicts_on_what_the_thresholds_were_set_on() -> None:
    half = [*cases("design"), *cases("first_test")]
    healthy = [case for case in half if case.label.healthy]
    faulty = [case for case in half if not case.label.healthy]
    assert all(ours(case).outcomes & case.label.outcomes for case in healthy)
    made_so = [case for case in healthy if case.trace.facts["recipe"]["cause"] is None]
    assert not any(k not in case.label.outcomes for case in made_so for _, k in ours(case).alarms)
    assert all(ours(case).outcomes != {"stable"} for case in faulty)
    assert sum(bool(ours(case).outcomes & case.label.outcomes) for case in faulty) > 0.95 * len(faulty)
    assert sum(ours(case).cause in case.label.causes for case in faulty) > 0.95 * len(faulty)


def test_what_is_wrong_with_the_data_or_not_finite_is_known_at_once() -> None:
    for case in cases("design"):
        if case.label.outcomes & {"bad_data", "non_finite"} and "precision" not in case.label.causes:
            known = [step for step, kind in ours(case).alarms if kind in case.label.outcomes]
            assert min(known) == case.label.onset, case.trace.name


def test_no_two_field_halves_share_a_family_or_a_seed() -> None:
    drawn = field_recipes()
    assert len({r.name for r in drawn}) == len(drawn)
    halves = [[r for r in drawn if r.half == half] for half in get_args(Half)]
    for one, other in combinations(halves, 2):
        assert not {r.family for r in one} & {r.family for r in other}
        assert not {r.seed for r in one} & {r.seed for r in other}


@pytest.mark.parametrize("half", get_args(Half))
def test_every_field_recipe_has_its_trace(half: Half) -> None:
    traces = {trace.name: _rounded(FieldRecipe(**trace.facts["recipe"])) for trace in unpack(packed(half))}
    assert traces == {r.name: _rounded(r) for r in field_recipes() if r.half == half}


def _rounded(r: FieldRecipe) -> dict[str, object]:
    """A recipe without the last digits, which processors compute differently."""
    return {name: float(f"{x:.9g}") if isinstance(x, float) else x for name, x in asdict(r).items()}


@pytest.mark.parametrize("half", get_args(Half))
def test_nearly_every_field_training_has_a_label_and_those_without_a_fault_are_healthy(half: Half) -> None:
    labels = {trace.name: (trace.facts, field_label(trace.facts)) for trace in unpack(packed(half))}
    known = {name: (facts, own) for name, (facts, own) in labels.items() if own is not None}
    assert len(known) > 0.9 * len(labels)
    for name, (facts, own) in known.items():
        r = facts["recipe"]
        if r["fault"] in (None, "rate_blip"):
            assert own.healthy or "overfitting" in own.causes, name
        if facts["failed_at"] is not None:
            assert own.outcomes & {"exploded", "non_finite", "bad_data"}, name


def test_a_log_has_readings_at_a_distance_and_no_signals_that_it_lacks() -> None:
    trace = next(unpack(packed("field_design")))
    log = view(trace, 100, "log")
    assert set(np.diff(log.signals.steps)) == {100}
    assert set(log.signals.names) == {"loss", "lr", "grad_norm"}
    assert log.validation.names == ("per", "loss")
    assert view(trace, 100, "loss").validation.names == ("loss",)


def test_half_of_the_logs_have_the_mean_loss_since_their_last_reading() -> None:
    plain, means = (next(t for t in unpack(packed("field_design")) if t.name == f"plain-{seed}") for seed in (0, 1))
    assert view(plain, 10, "bare").signals["loss"][1] == plain.signals["loss"][10]
    assert view(means, 10, "bare").signals["loss"][0] == means.signals["loss"][1:11].mean()


def test_a_csv_of_a_training_is_read_as_that_training(tmp_path: Path) -> None:
    for trace in (case.trace for case in field_cases("field_design", 10, "log")):
        if trace.facts["recipe"]["family"] not in ("plain", "rate_jump", "overfitting"):
            continue
        write_csv(trace, tmp_path / "metrics.csv")
        (run,) = read_runs(tmp_path / "metrics.csv")
        assert judge(run.signals, run.validation).outcome == judge(trace.signals, trace.validation).outcome, trace.name


def test_what_a_log_does_not_show_need_not_be_named() -> None:
    dense, sparse = ({c.trace.name: c.label for c in field_cases("field_design", 1, kind)} for kind in ("all", "loss"))
    small = next(name for name in dense if name.startswith("step_too_small"))
    assert dense[small].causes == {"step_too_small"}
    assert "no_evidence" in sparse[small].causes
    assert not any(name.startswith("metric_at_one") for name in sparse)


def test_what_only_a_check_shows_is_asked_for_only_where_its_signal_is() -> None:
    checked, bare = (
        {c.trace.name: c.label for c in field_cases("field_second_test", 1, kind)} for kind in ("all", "bare")
    )
    padded = next(name for name in checked if name.startswith("padding_counted"))
    assert "stable" not in checked[padded].outcomes
    assert "stable" in bare[padded].outcomes
    subsampled = next(name for name in checked if name.startswith("subsampled_too_far"))
    assert checked[subsampled].causes == {"infeasible_target"}
    assert subsampled not in bare


def test_only_a_training_that_was_hurt_and_recovered_may_have_findings_on_the_way() -> None:
    passing = {c.trace.facts["recipe"]["fault"] for c in field_cases("field_second_test") if c.label.passing}
    assert {"rolled_back", "bad_batch_skipped"} <= passing
    assert None not in passing
    assert all(c.label.healthy for c in field_cases("field_second_test") if c.label.passing)


def test_a_loss_scale_that_stays_is_a_fault_only_where_the_optimizer_minds() -> None:
    labels = {c.trace.name: c.label for c in field_cases("field_third_test") if "never_unscaled" in c.trace.name}
    assert any(name.startswith("never_unscaled-") for name in labels)
    for name, own in labels.items():
        assert own.healthy == name.startswith("never_unscaled-")
