"""What became of a training of the corpus, from how it was made and how it ended; no detector is asked.

The rules were written before the detectors were run on the half that tests them.
"""

from dataclasses import dataclass
from typing import Any

_LEARNED = 0.6  # validation error rate: what counts as a good end
_WORSE = 3.0  # times the best validation loss: what a training must not end at, whatever its error rate
_MUCH = 0.9  # share of the utterances that decode to nothing, or of what is said that two phonemes make up
_BENIGN = (None, "bad_batch", "rate_blip", "channels_swapped")
_DATA = ("nan_input", "inf_input", "infeasible")
_EXPLOSIVE = ("rate", "heavy_batch", "weight_drift", "sign_flip", "epsilon_switch")
_STEPS = ("small_step", "rate_ends", "clip_before_unscale")


@dataclass(frozen=True)
class Label:
    """The outcomes that are right, the cause, and the step of the onset.

    Where an outcome can rightly be called by two names (it exploded, and says only blank since), both are right.
    """

    outcomes: frozenset[str]
    cause: str | None = None
    onset: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with it, but that some take longer than their budget."""
        return bool(self.outcomes & {"stable"})


def label(facts: dict[str, Any]) -> Label | None:
    """The label of a training; None for one that was hurt and yet has come to no clear end."""
    r, ends, later = facts["recipe"], facts["ends"], facts["later"]
    fault = r["fault"]
    cause = r["cause"]
    if facts["failed_at"] is not None:
        outcome = "bad_data" if fault in _DATA else "non_finite"
        also = {"exploded"} if fault in _EXPLOSIVE else set()
        return Label(frozenset({outcome} | also), cause, facts["failed_at"])
    if facts["overflow_since"] is not None:
        return Label(frozenset({"non_finite"}), cause, facts["overflow_since"])
    end = ends[-1]
    before = [e["per"] for e in ends if e["step"] < r["onset"]]
    unhurt = end["loss"] <= _WORSE * min(e["loss"] for e in ends)
    if end["per"] <= _LEARNED and (fault in _BENIGN or unhurt):
        worsened = fault not in _BENIGN and before and end["per"] > before[-1] + 0.2
        return None if worsened else Label(frozenset({"stable"}))
    silent, narrow = end["silent"] >= _MUCH, end["two_commonest"] >= _MUCH
    state = {"blank_collapse"} if silent else {"mode_collapse"} if narrow else set[str]()
    recovers = bool(later) and later[-1]["per"] <= _LEARNED
    if fault in _BENIGN:
        return Label(frozenset({"stable", "slow", "undecided"})) if recovers else None
    if fault in _EXPLOSIVE:
        # A batch that counts too much leaves weights far away, or second moments so large that nothing moves.
        stalled = {"slow"} if fault == "heavy_batch" else set[str]()
        return None if recovers else Label(frozenset({"exploded"} | state | stalled), cause, r["onset"])
    if fault in _STEPS:
        if recovers:
            return Label(frozenset({"slow", "undecided"} if silent or narrow else {"slow"}), cause, 0)
        ended = later[-1] if later else end
        if ended["silent"] >= _MUCH:
            return Label(frozenset({"blank_collapse"}), cause, 0)
        # It says something of everything still, or has come to one phoneme or two, and is on its way or stands.
        return Label(frozenset({"slow", "mode_collapse"} if narrow else {"slow", "undecided"}), cause, 0)
    if recovers or not state:
        return None
    return Label(frozenset(state), cause, r["onset"])
