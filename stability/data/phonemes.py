"""The 41 classes of the decoder, in the order of the public recordings and checkpoints."""

from typing import Final

# fmt: off
PHONEMES: Final = (
    "BLANK",
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY",
    "F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW",
    "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
    " | ",
)
# fmt: on
BLANK: Final = 0
SILENCE: Final = 40
