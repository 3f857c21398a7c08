"""The error rate of a log: its own name, such as WER, and whether it is a fraction or in percent."""

import re

import numpy as np
from numpy.typing import ArrayLike

_METRIC = re.compile(r"(?:^|[^a-z])(per|wer|cer|ter|ler|uer)s?(?:$|[^a-z])")
_IN_FULL = {
    "phone": "PER",
    "word": "WER",
    "char": "CER",
    "token": "TER",
    "letter": "LER",
    "label": "LER",
    "unit": "UER",
}
_PERCENT = re.compile(r"%|(?<![a-z])(percent|percentage|pct)(?![a-z])", re.IGNORECASE)
_NO_FRACTION = 20.0  # no fraction gets here: it would be twenty wrong insertions for each label
_FALLEN, _FALLEN_SOMEWHAT = 0.5, 0.8  # shares of its start below which a loss has fallen
_MORE_THAN_ALL = 1.5  # a fraction is above this only where a decoder inserts a lot


def is_in_percent(rates: ArrayLike, loss: ArrayLike = ()) -> bool:
    """Return whether error rates are percentages, judged by all of them together.

    A single rate can be ambiguous: 0.8 may be a bad fraction or a very good percentage. And a fraction may exceed 1 if
    a decoder inserts labels. So percentages are rates of which one is too large for any fraction, or most are above
    1.5, the first one does not look like the 1 of a decoder that has learned nothing, and the loss has fallen. If all
    are above 3, it need not have fallen as far.

    Args:
        rates: The error rates.
        loss: The training loss, if it is known. One that has not fallen is that of a decoder that inserts at random.
    """
    values = np.asarray(rates, np.float64)
    values = values[np.isfinite(values)]
    if not len(values) or (values < 0).any():
        return False
    if values.max() >= _NO_FRACTION:
        return True
    if not (np.median(values) > _MORE_THAN_ALL and values[0] > _MORE_THAN_ALL):
        return False
    losses = np.asarray(loss, np.float64)
    losses = losses[np.isfinite(losses)]
    share = _FALLEN_SOMEWHAT if values.min() > 2 * _MORE_THAN_ALL else _FALLEN
    return len(losses) < 2 or bool(np.median(losses[-5:]) < share * losses[0])


def says_percent(title: str) -> bool:
    """Return whether the name of an error rate says that it is in percent, such as `wer_pct` and `WER (%)`."""
    return bool(_PERCENT.search(title))


def metric_name(title: str) -> str:
    """Return the metric's own name, such as `WER` for `eval_wer`. PER if the title does not say."""
    title = title.lower()
    if match := _METRIC.search(title):
        return match[1].upper()
    return next((name for word, name in _IN_FULL.items() if word in title), "PER")
