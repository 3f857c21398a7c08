"""The list of detectors.

A detector takes the signals and the validations of a training, and returns its first finding, or None. It knows no
trainer. It uses no reading after the step at which it was sure. A signal that was not recorded is no evidence, so
nothing is found in it. To add a detector, write such a function and add it to the list.

So what is found in the first rows of a training is also found in all its rows, with three exceptions: the first ten
losses are judged together; more than 1,000 gradient norms are put into groups, which are counted from the end; and
whether a collapse is one of blank or of a few phonemes depends on all its steps.
"""

from stability.diagnosis.collapse import other_labels, relapsed, stuck
from stability.diagnosis.explosion import exploded
from stability.diagnosis.finding import Finding
from stability.diagnosis.non_finite import non_finite
from stability.diagnosis.table import Table

_DETECTORS = (non_finite, exploded, relapsed, stuck, other_labels)


def findings(signals: Table, validation: Table) -> list[Finding]:
    """Run all detectors on a training.

    Args:
        signals: A row per training step.
        validation: A row per validation, with `per` (the error rate, 1 if all is wrong) and `loss`.

    Returns:
        What is wrong with the training, sorted by `detected_step`.
    """
    found = [finding for detect in _DETECTORS if (finding := detect(signals, validation)) is not None]
    return sorted(found, key=lambda finding: finding.detected_step)
