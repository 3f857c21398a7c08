"""The list of detectors.

A detector takes the signals and the validations of a training, and returns its first finding, or None. It knows no
trainer. It uses no reading after the step at which it was sure. A signal that was not recorded is no evidence, so
nothing is found in it. To add a detector, write such a function and add it to the list.

What is found in the first rows of a training is also found in all its rows. There are five exceptions:

- The first ten losses are judged together.
- More than 1,000 gradient norms are put into groups, which are counted from the end.
- Whether a collapse is one of blank or of a few phonemes depends on all its steps.
- A gradient that is not finite is no fault if the training went on.
- Losses of exactly 0 hide a NaN only if they last to the end.
"""

import numpy as np

from stability.diagnosis.collapse import relapsed, stuck
from stability.diagnosis.ctc_inputs import ctc_inputs
from stability.diagnosis.error_rates import degraded
from stability.diagnosis.explosion import exploded
from stability.diagnosis.finding import THRESHOLDS, Finding, count_at_end, readings
from stability.diagnosis.mismatch import other_labels
from stability.diagnosis.non_finite import non_finite, reveal_masked
from stability.diagnosis.not_training import not_training
from stability.diagnosis.table import Table

_ENDLESS = THRESHOLDS["fp16"]["endless"]
_DETECTORS = (ctc_inputs, non_finite, not_training, exploded, relapsed, stuck, degraded, other_labels)


def findings(signals: Table, validation: Table) -> list[Finding]:
    """Run all detectors on a training.

    Args:
        signals: A row per training step.
        validation: A row per validation, with `per` (the error rate, 1 if all is wrong) and `loss`.

    Returns:
        What is wrong with the training, sorted by `detected_step`. Steps whose batch was skipped do not count.
    """
    signals = as_judged(signals, validation)
    found = [finding for detect in _DETECTORS if (finding := detect(signals, validation)) is not None]
    return sorted(found, key=lambda finding: finding.detected_step)


def as_judged(signals: Table, validation: Table) -> Table:
    """Return the signals as they are judged: without skipped batches, and with NaN where a trainer hides it."""
    steps, skipped = readings(signals, "skipped")
    refused = steps[skipped > 0]
    if count_at_end(skipped > 0) >= _ENDLESS:  # nothing is trained any more, and these batches show why
        refused = refused[: -count_at_end(skipped > 0)]
    trained = signals.take(~np.isin(signals.steps, refused)) if len(refused) else signals
    return reveal_masked(trained, validation)
