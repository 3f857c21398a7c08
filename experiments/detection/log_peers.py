"""The peers that read logs, each at its defaults, called as its README says.

    pip install -e '.[benchmark]'

An alarm is a finding that a peer itself calls critical, an error or a warning. What it only informs about counts if it
names the outcome, and is no alarm.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

_ALARMS = ("critical", "error", "warning")
_STUCK = {"slow", "undecided", "blank_collapse", "mode_collapse", "not_training"}
_WORSE = {"exploded", "degraded"}


@dataclass
class Said:
    """What a peer says of a log.

    Attributes:
        read: Whether it could read the log, and found a series in it.
        alarms: Of each alarm, the outcomes of ours that it may mean; none if it is about something else.
        outcomes: Our words for all its findings.
        is_verdict: Whether the outcome is one verdict, and not a list of findings.
    """

    read: bool = False
    alarms: list[set[str]] = field(default_factory=list)
    outcomes: set[str] = field(default_factory=set)
    is_verdict: bool = False


class LogPeer:
    """A package with a command that reads a log and prints its findings as JSON."""

    name: ClassVar[str]
    requirement: ClassVar[str]
    _arguments: ClassVar[tuple[str, ...]]
    _words: ClassVar[dict[str, set[str]]]  # our outcomes for its findings; those that are not here are none of ours

    @classmethod
    def command(cls) -> str | None:
        """Return the path of its command; None if it is not installed."""
        installed = Path(sys.executable).with_name(cls.name)
        return str(installed) if installed.exists() else shutil.which(cls.name)

    def judge(self, log: Path) -> Said:
        """Return what it says of a log."""
        command = self.command()
        assert command is not None
        done = subprocess.run(
            [command, *self._arguments, str(log)], capture_output=True, text=True, timeout=120, check=False
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            return Said()
        said = Said(read=bool(self._series(answer)))
        for name, severity in self._findings(answer):
            outcomes = self._words.get(name, set())
            said.outcomes |= outcomes
            if severity in _ALARMS:
                said.alarms.append(outcomes)
        return said

    def _series(self, answer: Any) -> Sequence[str]:
        """The names of the series that it found, in all runs."""
        raise NotImplementedError

    def _findings(self, answer: Any) -> Iterator[tuple[str, str]]:
        """The name and the severity of each finding, in all runs."""
        raise NotImplementedError


class Runmedic(LogPeer):
    """runmedic's `diagnose`."""

    name = "runmedic"
    requirement = "runmedic==0.1.1"
    _arguments = ("diagnose", "--json")
    _words: ClassVar[dict[str, set[str]]] = {
        "non_finite": {"non_finite"},
        "divergence": _WORSE,
        "loss_spikes": {"exploded"},
        "grad_spikes": {"exploded"},
        "no_learning": _STUCK,
        "constant_lr_plateau": _STUCK,
        "overfitting": {"degraded"},
    }

    def _series(self, answer: Any) -> Sequence[str]:
        return [name for run in answer for name in run["series"]]

    def _findings(self, answer: Any) -> Iterator[tuple[str, str]]:
        for run in answer:
            for finding in run["findings"]:
                causes = " ".join(finding.get("evidence", ()))
                yield finding["check"], finding["severity"]
                if finding["check"] == "non_finite" and "climbed" in causes:  # it saw the explosion before the NaN
                    yield "divergence", finding["severity"]


class Losslint(LogPeer):
    """losslint's `check`."""

    name = "losslint"
    requirement = "losslint==0.4.1"
    _arguments = ("check", "--format", "json")
    _words: ClassVar[dict[str, set[str]]] = {
        "nan_inf": {"non_finite"},
        "divergence": _WORSE,
        "loss_spike": {"exploded"},
        "overfit_onset": {"degraded"},
        "stagnation": _STUCK,
    }

    def _series(self, answer: Any) -> Sequence[str]:
        return [name for run in answer["runs"] for name in run["series"]]

    def _findings(self, answer: Any) -> Iterator[tuple[str, str]]:
        for finding in answer["findings"]:
            yield finding["check"], finding["severity"]


class Trainspotter(LogPeer):
    """trainspotter's `analyze`."""

    name = "trainspotter"
    requirement = "trainspotter==0.2.6"
    _arguments = ("analyze", "--output", "json")
    _words: ClassVar[dict[str, set[str]]] = {
        "Diverged (non-finite values)": {"non_finite"},
        "Diverged (sustained growth)": _WORSE,
        "Loss spike": {"exploded"},
        "Gradient-norm explosion": {"exploded"},
        "Plateau": _STUCK,
        "Overfitting onset": {"degraded"},
    }

    def _series(self, answer: Any) -> Sequence[str]:
        return [*answer["run"]["metrics"]]

    def _findings(self, answer: Any) -> Iterator[tuple[str, str]]:
        for finding in answer["findings"]:
            yield finding["title"], finding["severity"]


LOG_PEERS: tuple[type[LogPeer], ...] = (Runmedic, Losslint, Trainspotter)
