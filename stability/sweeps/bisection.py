"""A Hydra sweeper that looks for the largest learning rate at which training is healthy.

There is one search for every combination of the other factors. It goes from `start` in decades, up while the trial is
healthy or has learned nothing yet, and down where the rate is too high (`boundary.too_high` says what that is), until
there is a bracket; then it halves the bracket, in the logarithm of the rate. It ends when the bracket's ends are
within `tolerance`, or at the limits. Where nothing was healthy it has tried every decade down to `lowest` before it
says so. A second boundary above the first, or between two rates that were tried, is not seen by a search.

All searches go on in rounds, one trial each, launched together. A trial's outcome is read from its folder, which is
named by what the trial is, and the next rate follows from the outcomes alone: a search that was killed and is started
again trains no finished trial again, and ends as if undisturbed.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from stability.analysis.boundary import HEALTHY, LR, as_rows, boundaries, too_high
from stability.analysis.trials import is_number, read_trials
from stability.core.errors import StabilityError
from stability.core.files import VERDICT, short_path, write_atomically
from stability.diagnosis.verdict import Verdict
from stability.sweeps.plan import compose

TABLE = "boundary.csv"  # in the study's folder

_DECADE = 10.0
_DIGITS = 3  # significant, of a rate: a folder's name has all of them
_WIDE = 500  # columns, so that no cell of the table is cut


def next_rate(
    outcomes: Mapping[float, str], *, start: float, lowest: float, highest: float, tolerance: float
) -> float | None:
    """The learning rate to try after {rate: outcome}; None when the search is at its end."""
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
class _Search:
    """One combination of the other factors: its overrides, its name among the searches, and how far it is."""

    overrides: list[str]
    name: str
    outcomes: dict[float, str] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True)
class _Job:
    """The trial that a search asks for."""

    search: _Search
    rate: float
    overrides: list[str]
    folder: Path

    def read(self) -> bool:
        """Tell the search the outcome; whether there is one."""
        try:
            outcome = Verdict.from_json((self.folder / VERDICT).read_text()).outcome
        except (OSError, ValueError, TypeError):  # none, or another program's
            return False
        if outcome == "bad_data":
            self.search.trouble = f"bad_data at lr {self.rate:g}, the fault of no rate: see {short_path(self.folder)}"
        self.search.outcomes[self.rate] = outcome
        return True


class BisectionSweeper(BasicSweeper):
    """Chosen by `hydra/sweeper=bisection`; what it does stands in the module, its settings in that file of `conf`."""

    def __init__(
        self, start: float, lowest: float, highest: float, tolerance: float, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self._settings = {"start": start, "lowest": lowest, "highest": highest, "tolerance": tolerance}

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Search to the end, print the boundaries and write them into the study's folder.

        Raises StabilityError where nothing can be searched, and at the end if a search has no end because of a trial
        that crashed or whose data are bad.
        """
        assert self.config is not None
        assert self.launcher is not None
        searches = self._searches(arguments)
        jobs = self._due(searches)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        while jobs:
            print(f"round {len(returns) + 1}: {len(jobs)} of {len(searches)} searches go on", flush=True)
            launched = sum(map(len, returns))
            returns.append(self.launcher.launch([job.overrides for job in jobs], initial_job_idx=launched))
            for job in jobs:
                if not job.read():
                    job.search.trouble = (
                        f"no verdict at lr {job.rate:g}, for its trial crashed: see {short_path(job.folder)}"
                    )
            jobs = self._due(searches)
        _report(folder)
        if troubled := [f"  {search.name}: {search.trouble}" for search in searches if search.trouble]:
            ended = f"{len(troubled)} of {len(searches)} searches ended early, the others are done."
            again = "When that is mended, the same command goes on."
            raise StabilityError("\n".join([ended, *troubled, again]))
        return returns

    def _searches(self, arguments: list[str]) -> list[_Search]:
        self._check()
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        if any(override.key_or_group == LR for override in overrides):
            raise StabilityError(f"{LR} is what the search looks for: leave it out, or give hydra.sweeper.start=RATE.")
        (combinations,) = self.split_arguments(overrides, None)
        if not combinations:
            raise StabilityError("There is nothing to search: a factor has no level, such as in seed=range(0).")
        common = set(combinations[0]).intersection(*combinations)
        return [
            _Search(own, " ".join(one for one in own if one not in common) or "the only one") for own in combinations
        ]

    def _check(self) -> None:
        for name, value in self._settings.items():
            if not is_number(value) or not 0 < value < math.inf:
                raise StabilityError(f"hydra.sweeper.{name}={value}: it has to be a number above 0.")
        if not self._settings["tolerance"] > 1:
            raise StabilityError(
                f"hydra.sweeper.tolerance={self._settings['tolerance']}: it has to be above 1, as 1.35 for a bracket "
                "whose upper end is 35 % above the lower."
            )
        if not self._settings["lowest"] <= self._settings["start"] <= self._settings["highest"]:
            start, lowest, highest = (self._settings[name] for name in ("start", "lowest", "highest"))
            raise StabilityError(
                f"hydra.sweeper.start={start} is not between hydra.sweeper.lowest={lowest} and "
                f"hydra.sweeper.highest={highest}."
            )

    def _due(self, searches: Sequence[_Search]) -> list[_Job]:
        """The next trial of every search that goes on. What is finished already is read."""
        assert self.config is not None
        due: dict[Path, _Job] = {}
        for search in searches:
            while not search.trouble and (rate := next_rate(search.outcomes, **self._settings)) is not None:
                if (job := self._job(search, rate)) is None:
                    break
                if self.config.fresh or not job.read():
                    if due.setdefault(job.folder, job) is not job:
                        raise StabilityError(
                            f"Two searches are one, that of {job.folder.name}: a level is given twice."
                        )
                    break
        return list(due.values())

    def _job(self, search: _Search, rate: float) -> _Job | None:
        """The trial of a search at a rate; None if it cannot be, which ends the search."""
        assert self.config is not None
        overrides = [*search.overrides, f"{LR}={rate!r}"]
        try:
            _, trial = compose(self.config, None, overrides)
        except StabilityError as error:
            search.trouble = str(error)
            return None
        if self._settings["lowest"] < trial.config.schedule.lr_min:
            raise StabilityError(
                f"hydra.sweeper.lowest={self._settings['lowest']} is below "
                f"schedule.lr_min={trial.config.schedule.lr_min}, and from there the learning rate would rise. "
                "Give a lower schedule.lr_min or a higher lowest."
            )
        return _Job(search, rate, overrides, trial.folder)


def _report(folder: Path) -> None:
    """Print the boundaries that the study's trials tell, and write them as a table."""
    rows = as_rows(boundaries(read_trials([folder])))
    if not rows:
        print("There is no boundary to tell: nowhere were two learning rates tried.")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / TABLE, text.getvalue().encode())
    table = Table(*rows[0], box=None, header_style="dim")
    for row in rows:
        table.add_row(*row.values())
    console = Console(highlight=False, soft_wrap=True, width=_WIDE)
    console.print("The largest learning rate at which training is healthy, and its interval at 95 %:")
    console.print(table)
    console.print(f"[dim]{'table':<10}[/] {short_path(folder / TABLE)}")


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_DIGITS}g}")
