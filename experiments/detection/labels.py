"""Label the trainings of the corpus by how they were made and how they ended, without any detector.

The rules were written before the detectors were run on the tests. They were made more careful after the first test, and
before the second.
"""

from dataclasses import dataclass
from typing import Any

LEARNED = 0.6  # a training ended well if its validation error rate is at most this
_WORSE = 3.0  # it did not end well if its validation loss is more than this many times its best
_MUCH = 0.9  # share of the utterances that decode to nothing, or of the phonemes that are one of two
_BENIGN = (None, "bad_batch", "rate_blip", "channels_swapped", "rate_cycles", "label_noise")
_DATA = ("nan_input", "inf_input", "infeasible")
_EXPLOSIVE = ("rate", "rate_climbs", "heavy_batch", "weight_drift", "not_zeroed", "sign_flip", "epsilon_switch")
_STEPS = ("small_step", "rate_ends", "gradient_lost", "clip_before_unscale")


@dataclass(frozen=True)
class Label:
    """The outcomes and the causes that count as right, and the step of the onset.

    If two outcomes describe a training (it exploded, and has output only blank since then), both are right.

    Attributes:
        outcomes: What may be said of it.
        causes: Why it may be said to be so.
        onset: The step.
        passing: What else a finding may say on the way, of a training that was hurt and has recovered since.
        shown_by: The signal without which a log does not show the cause, if there is one.
        unseen: What is right of a log without that signal; None if that is not clear.
    """

    outcomes: frozenset[str]
    causes: frozenset[str] = frozenset()
    onset: int | None = None
    passing: frozenset[str] = frozenset()
    shown_by: str | None = None
    unseen: "Label | None" = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with the training. It may take longer than its budget."""
        return bool(self.outcomes & {"stable"})


def label(facts: dict[str, Any]) -> Label | None:
    """Return the label of a training; None if a fault harmed it and its end is not clear."""
    r, ends, later = facts["recipe"], facts["ends"], facts["later"]
    fault = r["fault"]
    causes = frozenset([r["cause"]] if r["cause"] else [])
    if facts["failed_at"] is not None:
        outcome = "bad_data" if fault in _DATA else "non_finite"
        also = {"exploded"} if fault in _EXPLOSIVE else set()
        return Label(frozenset({outcome} | also), causes, facts["failed_at"])
    if facts["overflow_since"] is not None:
        return Label(frozenset({"non_finite"}), causes, facts["overflow_since"])
    end = ends[-1]
    before = [e["per"] for e in ends if e["step"] < r["onset"]]
    unhurt = end["loss"] <= _WORSE * min(e["loss"] for e in ends) and facts["ended_below_start"]
    if end["per"] <= LEARNED and (fault in _BENIGN or unhurt):
        worsened = fault not in _BENIGN and before and end["per"] > before[-1] + 0.2
        return None if worsened else Label(frozenset({"stable"}))
    silent, narrow = end["silent"] >= _MUCH, end["two_commonest"] >= _MUCH
    state = {"mode_collapse"} if narrow else set[str]()
    if silent:
        state = {"blank_collapse"}
    if narrow and end["silent"] > 1 - _MUCH:
        state |= {"blank_collapse"}  # some utterances are nothing but blank, too
    recovers = bool(later) and later[-1]["per"] <= LEARNED
    if fault in _BENIGN:
        return Label(frozenset({"stable", "slow", "undecided"})) if recovers else None
    if fault in _EXPLOSIVE:
        # A batch that counts too much leaves weights far away, or second moments so large that nothing moves.
        stalled = {"slow"} if fault == "heavy_batch" else set[str]()
        return None if recovers else Label(frozenset({"exploded"} | state | stalled), causes, r["onset"])
    if fault in _STEPS:
        # Since there is a word for it, a training whose loss counts nothing may also be said to have no gradient.
        dead, no_gradient = (
            ({"not_training"}, {"no_gradient"}) if fault == "gradient_lost" else (set[str](), set[str]())
        )
        causes |= no_gradient
        if recovers:
            return Label(frozenset({"slow", "undecided"} if silent or narrow else {"slow"}), causes, 0)
        if later and later[-1]["silent"] >= _MUCH:
            # If its budget ends before it says only blank, it is not known that it will stay there.
            not_yet = set[str]() if silent else {"slow", "undecided"}
            return Label(frozenset({"blank_collapse"} | not_yet | dead), causes, 0)
        # It still says several phonemes, or only one or two, and is learning or stuck.
        return Label(frozenset(({"slow", "mode_collapse"} if narrow else {"slow", "undecided"}) | dead), causes, 0)
    if recovers or not state:
        return None
    if fault == "decay":
        causes |= {"decay"}
    elif not before or before[-1] > LEARNED:  # it had hardly learned anything that it could lose
        causes |= {"no_information"} if fault != "few_labels" else set()
    return Label(frozenset(state), causes, r["onset"])
