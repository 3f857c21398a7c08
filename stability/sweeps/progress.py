"""Shows a sweep on the terminal: a line for every trial that ends, and the verdicts so far as a grid.

It watches the trials' folders, so it does not matter which process or machine trains them.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from stability.analysis.levels import level_text, ordered
from stability.analysis.trials import NoTrial, read_trial
from stability.config.names import short_name
from stability.core.files import ERROR, RETURNED, VERDICT, config_of
from stability.core.text import duration, pace_text
from stability.diagnosis.display import shown
from stability.diagnosis.outcomes import MARKS, style_of
from stability.sweeps.cells import Cell, Cells
from stability.sweeps.pace import Pace

CRASHED, NO_VERDICT, SPARED = "crashed", "no verdict", "not needed"  # in the place of an outcome
_LETTERS = {outcome: mark.letter for outcome, mark in MARKS.items()} | {CRASHED: "C", NO_VERDICT: "?", SPARED: "-"}
_TO_DO = "·"
_PAUSE = 0.5  # seconds between two checks of the folders
_RECENT = 60  # seconds: a trial that has written no signals for longer is not shown as running
_FIRST_ESTIMATE = 10  # seconds of training until a log gets its first estimate


@dataclass(frozen=True)
class _WriteTimes:
    """When a trial's verdict and its error were written (ns), 0 for never. An app's job may end without a verdict."""

    verdict: int
    error: int


class SweepProgress:
    """The terminal during a sweep.

    Args:
        study: The folder of the sweep.
        plan: The trials, or None if the sweeper chooses them one by one. Then all trials that end in `study` count.
        total: The number of trials if they are not planned; None if that is not known.
        done: How many of them were done before.
        steps: The steps of a trial that is not planned; None if that is not known.

    Attributes:
        plan: As given.
        outcomes: {folder: outcome} of the trials that have ended, `crashed` for those that crashed.
    """

    def __init__(
        self, study: Path, plan: Cells | None, total: int | None = None, done: int = 0, steps: int | None = None
    ) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._study, self.plan, self._steps = study, plan, steps
        self._done, self._total = done, len(plan.trials) if plan else total
        self._trials = {trial.folder: trial for trial in plan.trials} if plan else {}
        self._at_start = {folder: _write_times(folder) for folder in self.folders()}
        self.outcomes: dict[Path, str] = {}
        for folder, trial in self._trials.items():
            if self._at_start[folder].verdict and not self._at_start[folder].error and not trial.fresh:
                self.outcomes[folder] = _read_result(folder)[0]
        self._pace = Pace(
            {f: f in self._trials and self._trials[f].fresh for f in self.folders() if f not in self.outcomes}
        )
        self._first_estimate: float | None = None  # when it is due
        self._stopping = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live = live if self._console.is_terminal else None

    def start(self) -> None:
        """Start to watch the folders and to print what ends."""
        if self._live:
            self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Check the folders for the last time, and leave the grid of verdicts on the screen."""
        self._stopping.set()
        self._thread.join()
        self._find_ended()
        if self._live:
            self._live.stop()
        if self.outcomes:
            self._console.print(self._verdicts())

    def spare(self, names: Iterable[str]) -> None:
        """Take the trials of these names for ended, because the study does not need them."""
        self.outcomes |= {self._study / name: SPARED for name in names}

    def describe(self, folder: Path) -> str:
        """Return the trial's factors and seed, or the name of its folder if there is no plan."""
        return self.plan.describe(self._trials[folder]) if self.plan else folder.name

    def folders(self) -> Iterable[Path]:
        """Return the folders of the planned trials, or all that are in the study if there is no plan."""
        if self.plan:
            return self._trials
        return [path for path in self._study.glob("*") if path.is_dir()]

    def _watch(self) -> None:
        while not self._stopping.wait(_PAUSE):
            self._find_ended()
            if self._live:
                self._live.update(self._screen(), refresh=True)

    def _find_ended(self) -> None:
        """Find the trials that have ended since the last check, and print a line for each."""
        folders = [folder for folder in self.folders() if folder not in self.outcomes]
        self._pace.look(folders, time.monotonic())
        for folder in folders:
            now, at_start = _write_times(folder), self._at_start.get(folder, _WriteTimes(0, 0))
            if now.error and now.error != at_start.error:
                self.outcomes[folder] = CRASHED
                self._print_ended(folder, crash_reason(folder).rstrip("."))
            elif now.verdict and not now.error and (now.verdict != at_start.verdict or at_start.error):
                self.outcomes[folder], rate = _read_result(folder)
                seconds = (now.verdict - config_of(folder).stat().st_mtime_ns) / 1e9
                self._print_ended(folder, f"{rate}{duration(seconds)}")
        self._print_first_estimate()

    def _print_first_estimate(self) -> None:
        """In a log, where no bar shows it, say once how long the sweep takes, before the first trial has ended."""
        if self._live or self.outcomes or not (left := self._time_left()):
            return
        self._first_estimate = self._first_estimate or time.monotonic() + _FIRST_ESTIMATE
        if 0 < self._first_estimate <= time.monotonic():
            self._first_estimate = math.inf
            self._console.print(f"{left}, at {pace_text(self._pace.steps_a_second())}")

    def _print_ended(self, folder: Path, result: str) -> None:
        done = self._done + len(self.outcomes)
        count = f"{done}/{self._total}" if self._total else f"{done}"
        outcome, trial = self.outcomes[folder], shown(self.describe(folder))
        left = f", {text}" if (text := self._time_left()) else ""
        self._console.print(rf"\[{count}] [{style_of(outcome)}]{outcome}[/]  {trial}  {shown(result)}{left}")

    def _time_left(self) -> str:
        """Return how long the rest takes at the same pace, in words; empty if that is not known."""
        if self.plan:
            to_do = {folder: trial.steps for folder, trial in self._trials.items() if folder not in self.outcomes}
            known = {folder: steps for folder, steps in to_do.items() if steps is not None}
            left = self._pace.seconds_left(known) if len(known) == len(to_do) else None
        elif self._total and self._steps:
            running = [f for f, made in self._pace.trials.items() if made.first and f not in self.outcomes]
            unborn = max(0, self._total - self._done - len(self.outcomes) - len(running))
            left = self._pace.seconds_left(dict.fromkeys(running, self._steps), unborn * self._steps)
        else:
            left = None
        return f"about {duration(left)} left" if left and left >= 1 else ""

    def _screen(self) -> RenderableType:
        """Return what is shown while trials run: a bar for the sweep, one for every running trial, and the verdicts."""
        text = TextColumn("{task.description}")
        bars = Progress(text, BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
        done, pace = self._done + len(self.outcomes), pace_text(self._pace.steps_a_second())
        bars.add_task(self._time_left() or "trials", total=self._total, completed=done, now=pace)
        for folder, made in self._pace.trials.items():
            if folder not in self.outcomes and time.monotonic() - made.last < _RECENT:
                total = self._trials[folder].steps if folder in self._trials else self._steps
                now = f"loss {made.loss:.4g}  {pace_text(made.pace)}"
                bars.add_task(shown(self.describe(folder)), total=total, completed=made.steps, now=now)
        return Group(bars.get_renderable(), self._verdicts())

    def _verdicts(self) -> RenderableType:
        counts = Counter(self.outcomes.values())
        if self.plan and len(self.plan.trials) > len(self.outcomes):
            counts["to do"] = len(self.plan.trials) - len(self.outcomes)
        legend = Text("  ").join(_sign(o, f"{_LETTERS.get(o, _TO_DO)} {o} {count}") for o, count in counts.items())
        if self.plan and self.plan.factors:
            return Group(_grid(self.plan, self.outcomes), legend)
        return legend


def crash_reason(folder: Path) -> str:
    """Return the last line of a crashed trial's error file."""
    return (folder / ERROR).read_text().splitlines()[-1]


def _grid(plan: Cells, outcomes: Mapping[Path, str]) -> Table:
    """Count the outcomes of every cell. The factor with most levels is in the columns, the others are in the rows."""
    levels = {name: ordered(dict(cell)[name] for cell in plan.cells) for name in plan.factors}
    across = max(plan.factors, key=lambda name: len(levels[name]))
    down = [name for name in plan.factors if name != across]
    table = Table(*map(short_name, down), box=None, header_style="dim")
    for level in levels[across]:
        table.add_column(f"{short_name(across)} {level_text(level)}")
    rows: dict[Cell, dict[object, Text]] = {}
    for cell, trials in plan.cells.items():
        row = tuple((name, level) for name, level in cell if name != across)
        counts = Counter(outcomes.get(trial.folder, "to do") for trial in trials)
        signs = [_sign(outcome, f"{count}{_LETTERS.get(outcome, _TO_DO)}") for outcome, count in counts.items()]
        rows.setdefault(row, {})[dict(cell)[across]] = Text(" ").join(signs)
    for row in sorted(rows, key=lambda row: [levels[name].index(level) for name, level in row]):
        cells = [rows[row].get(level, Text()) for level in levels[across]]
        table.add_row(*(shown(level_text(level)) for _, level in row), *cells)
    return table


def _sign(outcome: str, text: str) -> Text:
    return Text(text, "dim" if outcome == "to do" else style_of(outcome))


def _read_result(folder: Path) -> tuple[str, str]:
    """Return the trial's outcome and, as it is printed, its error rate if it has one."""
    if not (folder / VERDICT).exists():
        return NO_VERDICT, ""
    try:
        trial = read_trial(folder)
    except NoTrial as reason:
        return f"not readable ({reason})", ""
    return trial.outcome, "" if math.isnan(trial.per) else f"{trial.metric} {trial.per:.2f}  "


def _write_times(folder: Path) -> _WriteTimes:
    def written(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    ended = max(written(folder / name) for name in (VERDICT, RETURNED))
    return _WriteTimes(ended, written(folder / ERROR))
