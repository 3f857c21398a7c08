"""The colours of figures and pages.

Those of figures are Okabe and Ito's palette, which colour-blind readers can tell apart, and a brown.
"""

from typing import Final

BLACK: Final = "#1B1E23"
GREY: Final = "#7A7A7A"
ORANGE: Final = "#E69F00"
SKY_BLUE: Final = "#56B4E9"
GREEN: Final = "#009E73"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
YELLOW: Final = "#F0E442"
BROWN: Final = "#8C5A2B"
RULE: Final = "#D5D9DE"  # of grids

# The colours of a page, in a light and in a dark scheme, by what they are for. Words need more contrast than marks.
LIGHT: Final = {
    "ink": BLACK,
    "soft": "#5A626D",
    "rule": RULE,
    "paper": "#FFFFFF",
    "plate": "#F5F6F8",
    "shade": "#B9C0C9",
    "good": "#00724F",
    "bad": "#B34A00",
    "link": "#005A94",
}
DARK: Final = {
    "ink": "#E6E8EB",
    "soft": "#A2AAB4",
    "rule": "#3A4048",
    "paper": "#15181C",
    "plate": "#1E2227",
    "shade": "#4A525C",
    "good": "#3CC79A",
    "bad": "#F0843C",
    "link": "#6DB9EE",
}
