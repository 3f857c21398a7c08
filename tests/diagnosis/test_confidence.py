"""The confidence of verdicts, against how often they are right on the detection corpus."""

from collections import Counter

from experiments.detection.field.cases import FieldCase, Signals, field_cases
from experiments.detection.score import Case, cases
from stability.diagnosis.judge import judge

_VIEWS: tuple[tuple[int, Signals], ...] = ((1, "all"), (10, "log"), (100, "bare"), (100, "loss"), (200, "loss"))


def test_the_surer_a_verdict_is_the_more_often_it_is_right() -> None:
    seen: list[Case | FieldCase] = [*cases("design")]
    for distance, signals in _VIEWS:
        seen += field_cases("field_design", distance, signals)
    verdicts, right = Counter[str](), Counter[str]()
    for case in seen:
        verdict = judge(case.trace.signals, case.trace.validation)
        verdicts[verdict.confidence] += 1
        right[verdict.confidence] += verdict.outcome in case.label.outcomes
    assert min(verdicts.values()) > 50
    high, medium, low = (right[grade] / verdicts[grade] for grade in ("high", "medium", "low"))
    assert high > medium > low
    assert high > 0.98
