"""The cases that were held back."""

import re
from pathlib import Path

import pytest

from experiments.detection.held_back import HALVES, Case, is_right, unpacked, verdict


@pytest.mark.parametrize("half", HALVES)
def test_each_case_is_there_and_says_what_is_right_of_it(half: str, tmp_path: Path) -> None:
    cases = [*unpacked(half, tmp_path)]
    assert len(cases) >= 30
    for case in cases:
        assert case.path.exists()
        assert case.truth
        assert case.right
        re.compile(case.right)
        re.compile(case.wrong)
    unnamed = {*(tmp_path / half / "logs").iterdir()} - {case.path for case in cases}
    assert not unnamed


PROGRAM = "FINDING degraded / overfitting | step 3\nVERDICT slow / labels | onset None\nADVICE Compare the labels.\n"
LOG = "metrics.csv, steps 0 to 90\nexploded: rate_too_high, since step 40\n  loss 3\nLower the lr.\n"


@pytest.mark.parametrize(
    ("name", "text", "right", "wrong", "good"),
    [
        ("a.py", PROGRAM, "^slow: labels", "", True),
        ("a.py", PROGRAM, "degraded: overfitting", "", True),
        ("a.py", PROGRAM, "^degraded", "", False),
        ("a.py", PROGRAM, "labels", "finding", False),
        ("a.py", PROGRAM, "labels", "^slow", False),
        ("a.py", PROGRAM, "labels", "overfitting", False),
        ("a.py", "Traceback\nValueError: no", "^stable", "", False),
        ("a.csv", LOG, "^exploded", "step_too_small", True),
        ("a.csv", LOG, "Lower the lr", "metrics", True),
        ("a.csv", LOG, "^exploded", "lower the lr", False),
        ("a.csv", "", "^exploded", "", False),
    ],
)
def test_what_is_right(name: str, text: str, right: str, wrong: str, good: bool) -> None:
    case = Case(Path(name), "", right, wrong)
    assert is_right(case, text) is good


def test_the_verdict_is_the_outcome_and_the_cause() -> None:
    assert verdict(Case(Path("a.py"), "", "", ""), PROGRAM) == "slow: labels"
    assert verdict(Case(Path("a.csv"), "", "", ""), LOG) == "exploded: rate_too_high, since step 40"
    assert verdict(Case(Path("a.py"), "", "", ""), "Traceback\nValueError: no") == "ValueError: no"
