"""A finished trial, whoever trained it: its factors and its responses. And several of them, as a study has them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stability.analysis.levels import Level, ordered
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE, VERDICT
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import Verdict

_NOTHING = Table((), np.zeros(0, np.int64), np.zeros((0, 0), np.float32), np.zeros((0, 0), bool))


class Record(NamedTuple):
    """What was recorded of a trial.

    Attributes:
        signals: A row per training step.
        validation: A row per validation.
        verdict: Its verdict; None if that cannot be read, as when the trial is being trained again.
    """

    signals: Table
    validation: Table
    verdict: Verdict | None


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        name: The name of its folder or of its run.
        factors: {dotted name: value} of its settings, without the seed and what changes no result.
        seed: Its seed; None if that is not known.
        outcome: The outcome of its verdict.
        cause: The cause of its verdict, if one was found.
        healthy: Response. Whether the outcome is stable or slow. Of a log without an error rate, whether nothing was
            seen to be wrong.
        steps: Response. The number of steps on the plateau: until the frame information stays above 0.1 nats; None if
            that was not recorded.
        censored: Whether the trial ended, diverged or was stopped before it left the plateau for good. Then `steps` is
            the number of steps that it made.
        per: Response. The error rate of the last validation; NaN if none was recorded. Our own decoder's is 1 without
            a validation.
        norm_spike: Response. The natural logarithm of the largest gradient norm after the first 10 steps over the
            median of the norms before it; inf if a norm was not finite; NaN if norms were not recorded.
        largest_norm: The largest gradient norm after the first 10 steps; NaN if not recorded.
        phonemes: The median number of distinct phonemes over the last tenth of the steps; NaN if not recorded.
        loss: The median training loss over the last tenth of the steps; NaN if not recorded.
        metric: The error rate's own name, such as WER.
        ours: Whether `python -m stability.train` has trained it, so that its settings are overrides of that command.
        folder: The folder or the file that it was read from; None if it was read from elsewhere.
        page: The address of its page in a tracker; empty if it has none.
        read: Reads what was recorded of it; None if that is in its folder.
    """

    name: str
    factors: Mapping[str, Level]
    seed: int | None
    outcome: str
    cause: str | None
    healthy: bool
    steps: int | None
    censored: bool
    per: float
    norm_spike: float
    largest_norm: float
    phonemes: float
    loss: float
    metric: str = "PER"
    ours: bool = True
    folder: Path | None = field(default=None, compare=False)
    page: str = field(default="", compare=False)
    read: Callable[[], Record] | None = field(default=None, compare=False, repr=False)

    def response(self, name: str) -> float:
        """Return a response or another measurement; NaN if it was not recorded. Of `steps`, the logarithm."""
        if name == "steps":
            return math.nan if self.steps is None else math.log(self.steps)
        return float(getattr(self, name))

    @property
    def place(self) -> tuple[bool, int]:
        """The key that sorts trials by their seeds, those without one last."""
        return self.seed is None, self.seed or 0


@dataclass(frozen=True)
class Trials:
    """The finished trials of a study.

    Attributes:
        trials: The trials.
        left_out: The folders, files and runs without a finished trial, each with the reason.
        notes: Sentences about what these trials cannot tell.
        bound: {factor: the other settings that always change with it}. They are no factors of their own.
    """

    trials: tuple[Trial, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()
    bound: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def factors(self) -> dict[str, tuple[Level, ...]]:
        """{dotted name: levels in order} of every factor with more than one level among the trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.factors)
        levels = {name: ordered({trial.factors.get(name) for trial in self.trials}) for name in names}
        return {name: values for name, values in levels.items() if len(values) > 1}

    @property
    def metric(self) -> str:
        """What the trials call their error rate; `error rate` if they have several names for it."""
        names = {trial.metric for trial in self.trials if not math.isnan(trial.per)}
        return names.pop() if len(names) == 1 else "error rate" if names else "PER"

    def has(self, response: str) -> bool:
        """Return whether a response was recorded of at least one trial."""
        return any(not math.isnan(trial.response(response)) for trial in self.trials)


def read_record(trial: Trial) -> Record:
    """Read what was recorded of a trial again; nothing, if it has no folder and is read from nowhere else."""
    if trial.read is not None:
        return trial.read()
    if trial.folder is None:
        return Record(_NOTHING, _NOTHING, None)
    try:
        verdict = Verdict.from_json((trial.folder / VERDICT).read_text())
    except (OSError, ValueError):
        verdict = None
    return Record(read_table(trial.folder / SIGNALS_FILE), read_table(trial.folder / VALIDATION_FILE), verdict)
