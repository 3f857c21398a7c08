"""All detectors: signals in, findings out. They know no trainer, and none uses a step after the one at which it says
that it was sure. A signal that was not recorded is no evidence: nothing is found in it.

What is found in the rows so far is thus what will be found in all of them, with three exceptions: the first ten losses
are looked at together, more than 1,000 gradient norms in groups that are counted from the end, and whether a collapse
is called one of blank or of a few phonemes goes by the whole of its time.
"""

from stability.diagnosis.collapse import other_labels, relapsed, stuck
from stability.diagnosis.explosion import exploded
from stability.diagnosis.finding import Finding
from stability.diagnosis.non_finite import non_finite
from stability.diagnosis.table import Table

_DETECTORS = (non_finite, exploded, relapsed, stuck, other_labels)


def findings(signals: Table, validation: Table) -> list[Finding]:
    """What is wrong with a training, in the order in which it could be known."""
    found = [finding for detect in _DETECTORS if (finding := detect(signals, validation)) is not None]
    return sorted(found, key=lambda finding: finding.detected_step)
