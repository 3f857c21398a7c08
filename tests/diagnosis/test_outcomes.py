"""Every outcome has its own mark."""

from typing import get_args

from stability.diagnosis.finding import Outcome
from stability.diagnosis.outcomes import MARKS, style_of


def test_every_outcome_has_a_mark_of_its_own() -> None:
    assert MARKS.keys() == {*get_args(Outcome)}
    marks = MARKS.values()
    assert len({mark.letter for mark in marks}) == len({mark.sign for mark in marks}) == len(MARKS)
    assert len({mark.colour for mark in marks}) == len({(mark.marker, mark.filled) for mark in marks}) == len(MARKS)


def test_what_is_no_outcome_is_printed_as_bad() -> None:
    assert style_of("crashed") == style_of("exploded") != style_of("stable")
