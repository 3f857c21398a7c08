"""The letter, sign, style and colour of each outcome, for terminals, pages and figures alike."""

from typing import Final, NamedTuple

from stability.core import palette


class Mark(NamedTuple):
    """The letter, signs and colours that show an outcome.

    Attributes:
        letter: In the grid of a sweep.
        style: In a terminal, in the words of rich.
        sign: In text.
        colour: In figures and on pages.
        marker: In figures, in matplotlib's words.
        filled: Whether the marker is filled.
    """

    letter: str
    style: str
    sign: str
    colour: str
    marker: str
    filled: bool


_GOOD, _OPEN, _BAD = "bold green", "bold yellow", "bold red"

# In the order of lists and legends. Signs and markers differ in shape too, for readers who do not see the colours. A
# circle is a trial that learned.
MARKS: Final[dict[str, Mark]] = {
    "stable": Mark(letter="S", style=_GOOD, sign="●", colour=palette.GREEN, marker="o", filled=True),
    "slow": Mark(letter="L", style=_OPEN, sign="○", colour=palette.BLUE, marker="o", filled=False),
    "undecided": Mark(letter="U", style=_OPEN, sign="◇", colour=palette.GREY, marker="D", filled=False),
    "degraded": Mark(letter="G", style=_BAD, sign="▼", colour=palette.YELLOW, marker="v", filled=True),
    "blank_collapse": Mark(letter="B", style=_BAD, sign="■", colour=palette.SKY_BLUE, marker="s", filled=True),
    "mode_collapse": Mark(letter="M", style=_BAD, sign="✚", colour=palette.PURPLE, marker="P", filled=True),
    "not_training": Mark(letter="Z", style=_BAD, sign="□", colour=palette.BROWN, marker="s", filled=False),
    "exploded": Mark(letter="X", style=_BAD, sign="▲", colour=palette.VERMILION, marker="^", filled=True),
    "non_finite": Mark(letter="N", style=_BAD, sign="✖", colour=palette.BLACK, marker="X", filled=True),
    "bad_data": Mark(letter="D", style=_BAD, sign="★", colour=palette.ORANGE, marker="*", filled=True),
}


def style_of(outcome: str) -> str:
    """Return the style in which a terminal prints an outcome. Anything else, such as a crash, is printed as bad."""
    return MARKS[outcome].style if outcome in MARKS else _BAD
