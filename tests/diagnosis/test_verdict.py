"""The JSON of verdicts."""

import json
import math
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from stability.diagnosis.display import show_outcome
from stability.diagnosis.judge import judge
from stability.diagnosis.verdict import Verdict
from tests.support.tables import NOTHING, table


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_are_written_as_text() -> None:
    evidence: dict[str, float | str] = {
        "loss": math.nan,
        "norm": math.inf,
        "low": -math.inf,
        "rate": 0.25,
        "expected": "a finite number",
    }
    verdict = Verdict("non_finite", "loss", 3, 3, evidence, "Look at the loss.")
    text = verdict.to_json()
    content = json.loads(text, parse_constant=no_constant)
    assert content["evidence"] == evidence | {"loss": "nan", "norm": "inf", "low": "-inf"}
    again = Verdict.from_json(text)
    assert again == replace(verdict, evidence=content["evidence"])
    assert again.to_json() == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_every_verdict_can_be_written_as_strict_json(name: str, value: float) -> None:
    signals: dict[str, Any] = {name: np.full(200, value)}
    verdict = judge(table(**signals), NOTHING)
    assert verdict.outcome in ("non_finite", "bad_data")
    assert json.loads(verdict.to_json(), parse_constant=no_constant)["evidence"][name] == str(value)


def test_a_printed_verdict_reads_like_the_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    evidence: dict[str, float | str] = {"loss": 3.14159, "advice on [red]": "see [non_finite]"}
    for verdict in (
        Verdict("exploded", "rate_too_high", 3, 5, evidence, "Give diagnosis.stop_on=[exploded].", "medium"),
        Verdict("stable"),
    ):
        show_outcome(verdict)
        printed = capsys.readouterr().out
        print(verdict)
        assert capsys.readouterr().out == printed
    head, loss, other, advice = str(replace(verdict, outcome="slow", evidence=evidence, advice="Wait.")).splitlines()
    assert (head, loss.split(), advice) == ("slow", ["loss", "3.142"], "  Wait.")
    assert other.endswith(" see [non_finite]")


def test_a_finite_verdict_reads_back_as_it_was() -> None:
    validation = table(steps=[100, 199], per=[0.6, 0.3])
    verdict = judge(table(loss=np.linspace(60, 20, 200)), validation)
    assert Verdict.from_json(verdict.to_json()) == verdict
