"""Lists, counts and durations in words."""

import math

import pytest

from stability.core.text import counted, csv_cell, duration, first_of, listed, load_json, plain, printable


@pytest.mark.parametrize(
    ("parts", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_a_list_is_joined_as_in_a_sentence(parts: list[str], said: str) -> None:
    assert listed(parts) == said


def test_a_long_list_is_cut_and_counted() -> None:
    assert first_of(["a", "b"], 2) == "a, b"
    assert first_of(["a", "b", "c", "d"], 2) == "a, b and 2 more"


@pytest.mark.parametrize(("count", "said"), [(0, "0 trials"), (1, "1 trial"), (12_000, "12,000 trials")])
def test_a_count_agrees_with_its_noun(count: int, said: str) -> None:
    assert counted(count, "trial") == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")]
)
def test_a_duration_is_in_the_largest_fitting_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_numbers_that_are_not_finite_are_texts_in_strict_json() -> None:
    found = plain({"a": [1.5, math.nan, {"b": -math.inf}], "c": math.inf, "d": "nan", "e": 3, "f": None})
    assert found == {"a": [1.5, "nan", {"b": "-inf"}], "c": "inf", "d": "nan", "e": 3, "f": None}
    assert [float(plain(value)) for value in (1.5, math.inf, -math.inf)] == [1.5, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("ä ε $x$", "ä ε $x$"), ("a\nb", r"a\nb"), ("\x1b[2J", r"\x1b[2J"), ("\u202e", r"\u202e"), ("\udcff", r"\udcff")],
)
def test_a_text_is_printed_on_one_line_and_commands_nothing(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("value", ["a=1", "1e-8", "-1.5", "+3", "-inf", "", None, 3, -1.5])
def test_most_cells_are_written_as_they_are(value: object) -> None:
    assert csv_cell(value) == value


@pytest.mark.parametrize("text", ["=1+2", "@SUM(1)", "+x", "-x", "\t=1", "\r=1", "=cmd|' /C calc'!A0"])
def test_a_spreadsheet_runs_no_cell(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff"])
def test_bad_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_json(text)
