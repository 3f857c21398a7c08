"""The detection corpus: what is in it, and that the detectors still say of it what was published."""

from experiments.detection.corpus import PACKED, unpack
from experiments.detection.labels import label
from experiments.detection.recipes import recipes
from experiments.detection.score import cases, ours


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
