"""The verdict on a training: its outcome, since which step, how sure it is, the evidence, and what to try."""

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

from stability.core.errors import StabilityError
from stability.core.text import load_json, printable
from stability.diagnosis.finding import Outcome

Fault = Literal["non_finite", "bad_data", "not_training", "exploded", "degraded", "blank_collapse", "mode_collapse"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
FATAL: tuple[Fault, ...] = ("non_finite", "bad_data")  # no training can go on after these
Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a training: how it ended, why, and what to try.

    Attributes:
        outcome: `stable`, `slow`, `undecided`, or a fault.
        cause: Why, in one word; None if there is nothing to explain.
        onset_step: The step at which it began; None if there is none.
        detected_step: The step at which there was enough evidence; None if nothing was recorded.
        evidence: What was measured, by name.
        advice: What to try; empty if all is well.
        confidence: How sure it is. The page on outcomes and causes says how often verdicts of each grade are right.
    """

    outcome: Outcome
    cause: str | None = None
    onset_step: int | None = None
    detected_step: int | None = None
    evidence: dict[str, float | str] = field(default_factory=dict)
    advice: str = ""
    confidence: Confidence = "high"

    def __str__(self) -> str:
        """The verdict as commands print it."""
        return "\n".join(self.lines())

    def lines(self, unit: str = "step") -> list[str]:
        """Return the verdict in words: its outcome in the first line, then its evidence and its advice.

        Args:
            unit: What its steps count: `step`, `epoch` or `row`.
        """
        cause = f": {self.cause}" if self.cause else ""
        since = f", since {unit} {self.onset_step}" if self.onset_step is not None else ""
        unsure = "" if self.confidence == "high" else f" ({self.confidence} confidence)"
        evidence = [f"  {n:<44} {v if isinstance(v, str) else f'{v:.4g}'}" for n, v in self.evidence.items()]
        return [f"{self.outcome}{cause}{since}{unsure}", *evidence, *([f"  {self.advice}"] if self.advice else [])]

    def to_json(self) -> str:
        """Return the verdict as strict JSON.

        JSON has no NaN and no infinity: such evidence is written as the text "nan", "inf" or "-inf".
        """
        evidence = {n: str(v) if isinstance(v, float) and not isfinite(v) else v for n, v in self.evidence.items()}
        return json.dumps(asdict(self) | {"evidence": evidence}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """Read a verdict that `to_json` wrote. Evidence that is not finite stays text.

        Raises:
            ValueError: It is no verdict.
        """
        found = load_json(text)
        try:
            verdict = cls(**found)
        except TypeError as error:
            raise ValueError(str(error)) from None
        evidence = verdict.evidence
        if not (
            verdict.outcome in get_args(Outcome)
            and isinstance(verdict.cause, str | None)
            and isinstance(verdict.onset_step, int | None)
            and isinstance(verdict.detected_step, int | None)
            and isinstance(evidence, dict)
            and all(isinstance(value, str | int | float) for value in evidence.values())
            and isinstance(verdict.advice, str)
            and verdict.confidence in get_args(Confidence)
        ):
            raise ValueError("a value is of another kind")
        return verdict


def read_verdict(path: Path) -> Verdict:
    """Read a verdict's file.

    Raises:
        StabilityError: It is damaged, or another version wrote it.
    """
    try:
        return Verdict.from_json(path.read_text())
    except ValueError as error:
        raise StabilityError(
            f"{path} is damaged, or another version of the program wrote it ({printable(error)}). Delete it and run "
            "the same command again: the trial goes on from its checkpoint to its verdict."
        ) from None
