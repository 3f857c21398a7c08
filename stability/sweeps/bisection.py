"""A Hydra sweeper that finds the largest learning rate at which training is healthy.

Every combination of the other factors has a search of its own:

1. It begins at the rate `start`. While the trial is healthy or has learned nothing yet, the next rate is ten times
   higher; where the rate is too high (see `boundary.too_high`), ten times lower.
2. With a healthy rate below a rate that is too high, it has a bracket. The next rate is in the middle of the bracket,
   on the logarithmic scale, and halves it.
3. It ends when the bracket's ends are within the factor `tolerance`, or at the limits `lowest` and `highest`. It
   reports no healthy rate only after it has tried every decade down to `lowest`.

A search finds one boundary. It does not see a second one above it, or between two rates that were tried.

The searches run in rounds. A round is one trial of each, and these are launched together. The outcome of a trial is
read from its folder, which is named by the configuration, and the next rate depends on the outcomes alone. So a search
that was killed and is started again trains no finished trial again, and ends as if it had never been interrupted.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from stability.analysis.boundary import LR, as_rows, boundaries, too_high
from stability.analysis.levels import is_number
from stability.analysis.trial import HEALTHY
from stability.analysis.trials import read_trials
from stability.core.errors import StabilityError
from stability.core.files import VERDICT, short_path, write_atomically
from stability.core.text import csv_cell
from stability.diagnosis.display import shown
from stability.diagnosis.verdict import read_verdict
from stability.sweeps.hydra_internals import BasicSweeper, combinations
from stability.sweeps.jobs import compose_job

TABLE = "boundary.csv"  # in the study's folder

_DECADE = 10.0
_DIGITS = 3  # significant digits of a rate, because the folder's name contains them all
_WIDTH = 500  # columns of the printed table, so that no cell is cut


def next_rate(
    outcomes: Mapping[float, str], *, start: float, lowest: float, highest: float, tolerance: float
) -> float | None:
    """Choose the learning rate that a search tries next.

    Args:
        outcomes: {rate: outcome} of the trials so far.
        start: The first rate.
        lowest: No rate is below it.
        highest: No rate is above it.
        tolerance: The search ends when the upper end of its bracket is at most this many times the lower.

    Returns:
        The rate, or None when the search has ended.
    """
    if not outcomes:
        return start
    high = too_high(outcomes)
    low = max((rate for rate in outcomes if rate < high), default=0.0)
    if high == math.inf and low < highest:
        return min(_rounded(low * _DECADE), highest)
    if low > 0 and tolerance * low < high < math.inf:
        middle = _rounded(math.sqrt(low * high))
        if middle not in outcomes:
            return middle
    least = min(outcomes)
    if least > lowest and not any(outcome in HEALTHY for outcome in outcomes.values()):
        return max(_rounded(least / _DECADE), lowest)
    return None


@dataclass
class _RateSearch:
    """The search of one combination of the other factors."""

    overrides: list[str]
    name: str  # what sets it apart from the other searches
    outcomes: dict[float, str] = field(default_factory=dict)
    problem: str = ""  # why it ended early


@dataclass(frozen=True)
class _NextTrial:
    """The trial that a search needs next."""

    search: _RateSearch
    rate: float
    overrides: list[str]
    folder: Path

    def read_outcome(self) -> bool:
        """Add the trial's outcome to the search. Return False if the trial has none."""
        try:
            outcome = read_verdict(self.folder / VERDICT).outcome
        except (OSError, StabilityError):  # there is no verdict, or another program wrote it
            return False
        if outcome == "bad_data":
            problem = f"the trial at lr {self.rate:g} has bad data, which no learning rate mends"
            self.search.problem = f"{problem}: see {short_path(self.folder)}"
        self.search.outcomes[self.rate] = outcome
        return True


class BisectionSweeper(BasicSweeper):
    """Find the largest healthy learning rate for every combination of the other factors: `hydra/sweeper=bisection`.

    Args:
        start: The first learning rate of every search.
        lowest: The lowest learning rate to try.
        highest: The highest learning rate to try.
        tolerance: A search ends when the upper end of its bracket is at most this many times the lower.
        params: Factors and their values, as overrides of the command line.
    """

    def __init__(
        self, start: float, lowest: float, highest: float, tolerance: float, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self._settings = {"start": start, "lowest": lowest, "highest": highest, "tolerance": tolerance}

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run all searches to their end, print the boundaries and write them into the study's folder.

        Raises:
            StabilityError: A setting is wrong; or, after all others have ended, a search ended early because a trial
                crashed, is invalid or has bad data.
        """
        assert self.config is not None
        assert self.launcher is not None
        self._check_settings()
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
                    trial.search.problem = f"the trial at lr {trial.rate:g} crashed: see {short_path(trial.folder)}"
            trials = self._next_trials(searches)
        _report_boundaries(folder)
        if ended := [f"  {search.name}: {search.problem}" for search in searches if search.problem]:
            others = "; the others are finished" if len(ended) < len(searches) else ""
            summary = f"{len(ended)} of {_searches(len(searches))} ended early{others}."
            advice = "Mend the cause, then run the same command again: it continues these searches."
            raise StabilityError("\n".join([summary, *ended, advice]))
        return returns

    def _check_settings(self) -> None:
        for name, value in self._settings.items():
            if not is_number(value) or not 0 < value < math.inf:
                raise StabilityError(f"hydra.sweeper.{name}={value}: give a number above 0.")
        start, lowest, highest, tolerance = self._settings.values()
        if not tolerance > 1:
            raise StabilityError(
                f"hydra.sweeper.tolerance={tolerance}: give a number above 1. With 1.35 a search ends when the upper "
                "end of its bracket is at most 35 % above the lower."
            )
        if not lowest <= start <= highest:
            raise StabilityError(
                f"hydra.sweeper.start={start} is not between hydra.sweeper.lowest={lowest} and "
                f"hydra.sweeper.highest={highest}: change one of the three."
            )

    def _make_searches(self, arguments: list[str]) -> list[_RateSearch]:
        """Make a search of every combination of the other factors."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        if any(override.key_or_group == LR for override in overrides):
            raise StabilityError(
                f"The bisection chooses {LR} itself: remove {LR} from the command, or set the first rate with "
                "hydra.sweeper.start=RATE."
            )
        jobs = combinations(overrides)
        if not jobs:
            raise StabilityError("There is nothing to search: a factor has no values, as in seed=range(0).")
        common = set(jobs[0]).intersection(*jobs)
        return [_RateSearch(job, " ".join(one for one in job if one not in common) or "the only one") for job in jobs]

    def _next_trials(self, searches: Sequence[_RateSearch]) -> list[_NextTrial]:
        """Return the next trial of every search that has not ended. Read the outcomes of finished trials."""
        assert self.config is not None
        found: dict[Path, _NextTrial] = {}
        for search in searches:
            while not search.problem and (rate := next_rate(search.outcomes, **self._settings)) is not None:
                if (trial := self._trial_at(search, rate)) is None:
                    break
                if self.config.fresh or not trial.read_outcome():
                    if found.setdefault(trial.folder, trial) is not trial:
                        raise StabilityError(
                            f"Two searches need the same trial, {trial.folder.name}: a factor has the same value "
                            "twice. Remove one of them."
                        )
                    break
        return list(found.values())

    def _trial_at(self, search: _RateSearch, rate: float) -> _NextTrial | None:
        """Return the trial of a search at a rate, or None if it is invalid, which ends the search."""
        assert self.config is not None
        overrides = [*search.overrides, f"{LR}={rate!r}"]
        try:
            _, trial = compose_job(self.config, overrides)
        except StabilityError as error:
            search.problem = str(error)
            return None
        if self._settings["lowest"] < trial.config.schedule.lr_min:
            raise StabilityError(
                f"hydra.sweeper.lowest={self._settings['lowest']} is below "
                f"schedule.lr_min={trial.config.schedule.lr_min}, so the learning rate would rise where it should "
                "decay: give a lower schedule.lr_min or a higher hydra.sweeper.lowest."
            )
        return _NextTrial(search, rate, overrides, trial.folder)


def _report_boundaries(folder: Path) -> None:
    """Print the boundaries that the study's trials show, and write them as a table."""
    rows = as_rows(boundaries(read_trials([folder])))
    if not rows:
        print("There is no boundary to report: no search has trials at two learning rates.")
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
    console.print("The largest healthy learning rate, with its 95 % interval:")
    console.print(table)
    console.print(f"[dim]{'table':<10}[/] {shown(short_path(folder / TABLE))}")


def _searches(count: int) -> str:
    return f"{count} search" if count == 1 else f"{count} searches"


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_DIGITS}g}")
