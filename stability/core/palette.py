"""The colours of all figures: Okabe and Ito's palette, which colour-blind readers can tell apart."""

from typing import Final

BLACK: Final = "#1B1E23"
GREY: Final = "#7A7A7A"
ORANGE: Final = "#E69F00"
SKY_BLUE: Final = "#56B4E9"
GREEN: Final = "#009E73"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
