"""A Hydra sweeper that finds the largest value of a setting, such as the learning rate, at which training is healthy.

Every combination of the other factors has a search of its own:

1. It begins at the value `start`. While the trial is healthy or has learned nothing yet, the next value is ten times
   higher; where the value is too high (see `boundary.too_high`), ten times lower.
2. With a healthy value below one that is too high, it has a bracket. The next value is in the middle of the bracket,
   on the logarithmic scale, and halves it.
3. It ends when the bracket's ends are within the factor `tolerance`, or at the limits `lowest` and `highest`. It
   reports no healthy value only after it has tried every decade down to `lowest`.

A search finds one boundary. It does not see a second one above it, or between two values that were tried.

The searches run in rounds. A round is one trial of each, and these are launched together. The outcome of a trial is
read from its folder, which is named by the configuration, and the next value depends on the outcomes alone. So a search
that was killed and is started again trains no finished trial again, and ends as if it had never been interrupted.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from stability.analysis.boundary import LR, as_rows, boundaries, setting_text, too_high
from stability.analysis.levels import is_number
from stability.analysis.trials import read_trials
from stability.config.names import short_name
from stability.core.errors import StabilityError
from stability.core.files import ERROR, VERDICT, short_path, write_atomically
from stability.core.text import csv_cell
from stability.diagnosis.display import shown
from stability.diagnosis.responses import HEALTHY
from stability.diagnosis.verdict import read_verdict
from stability.sweeps.hydra_internals import BasicSweeper, combinations
from stability.sweeps.jobs import compose_job

TABLE = "boundary.csv"  # in the study's folder

_DECADE = 10.0
_DIGITS = 3  # significant digits of a value, because the folder's name contains them all
_WIDTH = 500  # columns of the printed table, so that no cell is cut


class Limits(NamedTuple):
    """Where a search begins and ends.

    Attributes:
        start: The first value.
        lowest: No value is below it.
        highest: No value is above it.
        tolerance: The search ends when the upper end of its bracket is at most this many times the lower.
        whole: Whether only whole numbers are tried.
    """

    start: float
    lowest: float
    highest: float
    tolerance: float
    whole: bool = False


def next_value(outcomes: Mapping[float, str], limits: Limits) -> float | None:
    """Choose the value that a search tries next.

    Args:
        outcomes: {value: outcome} of the trials so far.
        limits: Where the search begins and ends.

    Returns:
        The value, or None when the search has ended.
    """
    if not outcomes:
        return limits.start
    high = too_high(outcomes)
    low = max((value for value in outcomes if value < high), default=0.0)
    if high == math.inf and low < limits.highest:
        return min(_rounded(low * _DECADE, limits.whole), limits.highest)
    if low > 0 and limits.tolerance * low < high < math.inf:
        middle = _rounded(math.sqrt(low * high), limits.whole)
        if middle not in outcomes:
            return middle
    least = min(outcomes)
    if least > limits.lowest and not any(outcome in HEALTHY for outcome in outcomes.values()):
        return max(_rounded(least / _DECADE, limits.whole), limits.lowest)
    return None


class _WrongLimits(StabilityError):
    """The limits of a search do not fit its trials. It ends all searches."""


@dataclass
class _ValueSearch:
    """The search of one combination of the other factors."""

    overrides: list[str]
    name: str  # what sets it apart from the other searches
    outcomes: dict[float, str] = field(default_factory=dict)
    problem: str = ""  # why it ended early


@dataclass(frozen=True)
class _NextTrial:
    """The trial that a search needs next."""

    search: _ValueSearch
    value: float
    shown: str  # the setting and its value, for messages
    overrides: list[str]
    folder: Path

    def read_outcome(self) -> bool:
        """Add the trial's outcome to the search. Return False if the trial has none."""
        try:
            outcome = read_verdict(self.folder / VERDICT).outcome
        except (OSError, StabilityError):  # there is no verdict, or another program wrote it
            return False
        if outcome == "bad_data":
            problem = f"the trial at {self.shown} has bad data, which no other value mends"
            self.search.problem = f"{problem}: see {short_path(self.folder)}"
        self.search.outcomes[self.value] = outcome
        return True


class BisectionSweeper(BasicSweeper):
    """Find the largest healthy value of a setting for every combination of other factors: `hydra/sweeper=bisection`.

    Args:
        setting: The dotted name of the setting, whose values are numbers above 0.
        start: The first value of every search.
        lowest: The lowest value to try.
        highest: The highest value to try.
        tolerance: A search ends when the upper end of its bracket is at most this many times the lower.
        params: Factors and their values, as overrides of the command line.
    """

    def __init__(
        self,
        setting: str,
        start: float,
        lowest: float,
        highest: float,
        tolerance: float,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self._setting = setting
        self._limits = Limits(start, lowest, highest, tolerance)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run all searches to their end, print the boundaries and write them into the study's folder.

        Raises:
            StabilityError: A setting is wrong; or, after all others have ended, a search ended early because a trial
                crashed, is invalid or has bad data.
        """
        assert self.config is not None
        assert self.launcher is not None
        check_limits(self._limits)
        searches = self._make_searches(arguments)
        trials = self._next_trials(searches)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        while trials:
            verb = "continues" if len(trials) == 1 else "continue"
            print(f"round {len(returns) + 1}: {len(trials)} of {_searches(len(searches))} {verb}", flush=True)
            launched = sum(map(len, returns))
            returns.append(self.launcher.launch([trial.overrides for trial in trials], initial_job_idx=launched))
            for trial in trials:
                if not trial.read_outcome():
                    problem = "crashed" if (trial.folder / ERROR).exists() else "has no verdict"
                    trial.search.problem = f"the trial at {trial.shown} {problem}: see {short_path(trial.folder)}"
            trials = self._next_trials(searches)
        _report_boundaries(folder, self._setting)
        if ended := [f"  {search.name}: {search.problem}" for search in searches if search.problem]:
            others = "; the others are finished" if len(ended) < len(searches) else ""
            summary = f"{len(ended)} of {_searches(len(searches))} ended early{others}."
            advice = "Mend the cause, then run the same command again: it continues these searches."
            raise StabilityError("\n".join([summary, *ended, advice]))
        return returns

    def _make_searches(self, arguments: list[str]) -> list[_ValueSearch]:
        """Make a search of every combination of the other factors."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        if any(override.key_or_group == self._setting for override in overrides):
            raise StabilityError(
                f"The bisection chooses {self._setting} itself: remove {self._setting} from the command, or set the "
                "first value with hydra.sweeper.start=VALUE."
            )
        jobs = combinations(overrides)
        if not jobs:
            raise StabilityError("There is nothing to search: a factor has no values, as in seed=range(0).")
        common = set(jobs[0]).intersection(*jobs)
        return [_ValueSearch(job, " ".join(one for one in job if one not in common) or "the only one") for job in jobs]

    def _next_trials(self, searches: Sequence[_ValueSearch]) -> list[_NextTrial]:
        """Return the next trial of every search that has not ended. Read the outcomes of finished trials."""
        assert self.config is not None
        found: dict[Path, _NextTrial] = {}
        for search in searches:
            while not search.problem and (value := next_value(search.outcomes, self._limits)) is not None:
                if (trial := self._trial_at(search, value)) is None:
                    break
                if self._trains_anew() or not trial.read_outcome():
                    if found.setdefault(trial.folder, trial) is not trial:
                        raise StabilityError(
                            f"Two searches need the same trial, {trial.folder.name}: a factor has the same value "
                            "twice. Remove one of them."
                        )
                    break
        return list(found.values())

    def _trial_at(self, search: _ValueSearch, value: float) -> _NextTrial | None:
        """Return the trial of a search at a value, or None if it is invalid, which ends the search."""
        overrides = [*search.overrides, f"{self._setting}={value!r}"]
        try:
            folder = self._folder_of(overrides)
        except _WrongLimits:
            raise
        except StabilityError as error:
            search.problem = str(error)
            return None
        return _NextTrial(search, value, f"{short_name(self._setting)} {value:g}", overrides, folder)

    def _folder_of(self, overrides: list[str]) -> Path:
        """Return the folder of a trial. StabilityError if its configuration is invalid."""
        assert self.config is not None
        _, trial = compose_job(self.config, overrides)
        if self._setting == LR and self._limits.lowest < trial.config.schedule.lr_min:
            raise _WrongLimits(
                f"hydra.sweeper.lowest={self._limits.lowest} is below schedule.lr_min={trial.config.schedule.lr_min}, "
                "so the learning rate would rise where it should decay: give a lower schedule.lr_min or a higher "
                "hydra.sweeper.lowest."
            )
        return trial.folder

    def _trains_anew(self) -> bool:
        """Whether trials are trained again that have a verdict."""
        assert self.config is not None
        return bool(self.config.fresh)


def check_limits(limits: Limits) -> None:
    """Raise StabilityError if a search cannot have these limits."""
    for name, value in limits._asdict().items():
        if name != "whole" and (not is_number(value) or not 0 < value < math.inf):
            raise StabilityError(f"hydra.sweeper.{name}={value}: give a number above 0.")
    if not limits.tolerance > 1:
        raise StabilityError(
            f"hydra.sweeper.tolerance={limits.tolerance}: give a number above 1. With 1.35 a search ends when the "
            "upper end of its bracket is at most 35 % above the lower."
        )
    if not limits.lowest <= limits.start <= limits.highest:
        raise StabilityError(
            f"hydra.sweeper.start={limits.start} is not between hydra.sweeper.lowest={limits.lowest} and "
            f"hydra.sweeper.highest={limits.highest}: change one of the three."
        )


def _report_boundaries(folder: Path, setting: str) -> None:
    """Print the boundaries that the study's trials show, and write them as a table."""
    rows = as_rows(boundaries(read_trials([folder]), setting), setting)
    if not rows:
        print("There is no boundary to report: no search has trials at two values.")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    write_atomically(folder / TABLE, text.getvalue().encode())
    table = Table(*rows[0], box=None, header_style="dim")
    for row in rows:
        table.add_row(*map(shown, row.values()))
    console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
    console.print(f"The largest healthy {setting_text(setting)}, with its 95 % interval:")
    console.print(table)
    console.print(f"[dim]{'table':<10}[/] {shown(short_path(folder / TABLE))}")


def _searches(count: int) -> str:
    return f"{count} search" if count == 1 else f"{count} searches"


def _rounded(value: float, whole: bool) -> float:
    return max(1, round(value)) if whole else float(f"{value:.{_DIGITS}g}")
