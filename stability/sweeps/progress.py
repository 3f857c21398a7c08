"""What a person sees of a sweep: a line a finished trial, and the verdicts so far as a grid.

The folders of the trials are watched, whoever trains them: this process, others, or those of another machine.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from stability.analysis.trials import level_text, ordered, read_trials
from stability.config.names import short_name
from stability.core.files import CONFIG, ERROR, VERDICT
from stability.core.text import duration
from stability.diagnosis.display import colour
from stability.diagnosis.table import SIGNALS_FILE
from stability.sweeps.plan import Cell, Plan
from stability.sweeps.search import Search

CRASHED = "crashed"
_LETTERS = {
    "stable": "S",
    "slow": "L",
    "undecided": "U",
    "blank_collapse": "B",
    "mode_collapse": "M",
    "exploded": "X",
    "non_finite": "N",
    "bad_data": "D",
    CRASHED: "C",
}
_TO_DO = "·"
_PAUSE = 0.5  # seconds between two looks
_TAIL = 8192  # bytes at the end of a table of signals, in which its last row is


@dataclass(frozen=True)
class _Stamps:
    """When a trial's verdict and its error were written (ns), 0 for never."""

    verdict: int
    error: int


class SweepProgress:
    """The terminal during a sweep.

    `plan` is None for a sweep whose trials are chosen as it goes. They are then those that end in the folder `study`,
    and `search` says how many there are to be, if that is known.
    """

    def __init__(self, study: Path, plan: Plan | None, search: Search | None) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._study, self.plan = study, plan
        self._total = len(plan.trials) if plan else search.total if search else None
        self._done = search.done if search else 0
        self._trials = {trial.folder: trial for trial in plan.trials} if plan else {}
        self._before = {folder: _stamps(folder) for folder in self.folders()}
        self.outcomes: dict[Path, str] = {}  # of the trials that have ended, by folder
        for folder, trial in self._trials.items():
            if self._before[folder].verdict and not self._before[folder].error and not trial.config.fresh:
                self.outcomes[folder] = _read(folder)[0]
        self._known = len(self.outcomes)
        self._begun = time.monotonic()
        self._stopping = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live = live if self._console.is_terminal else None

    def start(self) -> None:
        """Watch the folders, and show what is found."""
        if self._live:
            self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Look for the last time, and leave the verdicts on the screen."""
        self._stopping.set()
        self._thread.join()
        self._look()
        if self._live:
            self._live.stop()
        if self.outcomes:
            self._console.print(self._verdicts())

    def describe(self, folder: Path) -> str:
        """What the trial is, in words."""
        return self.plan.describe(self._trials[folder]) if self.plan else folder.name

    def _watch(self) -> None:
        while not self._stopping.wait(_PAUSE):
            self._look()
            if self._live:
                self._live.update(self._screen(), refresh=True)

    def folders(self) -> Iterable[Path]:
        """The folders of the trials; where no plan is, all there are."""
        if self.plan:
            return self._trials
        return [path for path in self._study.glob("*") if path.is_dir()]

    def _look(self) -> None:
        """Find the trials that have ended since the last look."""
        for folder in self.folders():
            if folder in self.outcomes:
                continue
            now, before = _stamps(folder), self._before.get(folder, _Stamps(0, 0))
            if now.error and now.error != before.error:
                self.outcomes[folder] = CRASHED
                self._tell(folder, why(folder).rstrip("."))
            elif now.verdict and not now.error and (now.verdict != before.verdict or before.error):
                self.outcomes[folder], per = _read(folder)
                took = (now.verdict - (folder / CONFIG).stat().st_mtime_ns) / 1e9
                self._tell(folder, f"PER {per:.2f}  {duration(took)}")

    def _tell(self, folder: Path, what: str) -> None:
        count = f"{self._done + len(self.outcomes)}" + (f"/{self._total}" if self._total else "")
        outcome = self.outcomes[folder]
        left = f", {left}" if (left := self._left()) else ""
        self._console.print(
            rf"\[{count}] [{colour(outcome)}]{outcome}[/]  {escape(self.describe(folder))}  {escape(what)}{left}"
        )

    def _left(self) -> str:
        """How long the rest will take, if it goes on as it went."""
        now, todo = len(self.outcomes) - self._known, (self._total or 0) - self._done - len(self.outcomes)
        if todo <= 0 or not now:
            return ""
        return f"about {duration((time.monotonic() - self._begun) / now * todo)} left"

    def _screen(self) -> RenderableType:
        bars = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
        bars.add_task(self._left() or "trials", total=self._total, completed=self._done + len(self.outcomes))
        for folder in self.folders():
            begun = folder not in self.outcomes and (folder / SIGNALS_FILE).exists()
            if (
                begun
                and time.time() - (folder / SIGNALS_FILE).stat().st_mtime < 60
                and (at := _last_step(folder / SIGNALS_FILE))
            ):
                total = self._trials[folder].config.steps if folder in self._trials else None
                bars.add_task(escape(self.describe(folder)), total=total, completed=at)
        return Group(bars.get_renderable(), self._verdicts())

    def _verdicts(self) -> RenderableType:
        counts = Counter(self.outcomes.values())
        if self.plan and len(self.plan.trials) > len(self.outcomes):
            counts["to do"] = len(self.plan.trials) - len(self.outcomes)
        legend = Text("  ").join(_sign(o, f"{_LETTERS.get(o, _TO_DO)} {o} {count}") for o, count in counts.items())
        if self.plan and self.plan.factors:
            return Group(_grid(self.plan, self.outcomes), legend)
        return legend


def why(folder: Path) -> str:
    """The reason for which the trial crashed."""
    return (folder / ERROR).read_text().splitlines()[-1]


def _grid(plan: Plan, outcomes: Mapping[Path, str]) -> Table:
    """How many seeds of each cell ended in which outcome: the factor with most levels to the right, the others down."""
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
        table.add_row(*(level_text(level) for _, level in row), *cells)
    return table


def _sign(outcome: str, text: str) -> Text:
    return Text(text, "dim" if outcome == "to do" else colour(outcome))


def _read(folder: Path) -> tuple[str, float]:
    """The trial's outcome and PER."""
    found = read_trials([folder])
    if not found.trials:
        return f"not readable ({found.left_out[0][1]})", float("nan")
    return found.trials[0].outcome, found.trials[0].per


def _stamps(folder: Path) -> _Stamps:
    def written(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    return _Stamps(written(folder / VERDICT), written(folder / ERROR))


def _last_step(signals: Path) -> int:
    """The number of steps in a table of signals that is being written; 0 if that cannot be told."""
    with signals.open("rb") as file:
        file.seek(max(0, signals.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[1:-1]  # whole ones
    step = lines[-1].split(b",")[0] if lines else b""
    return int(step) + 1 if step.isdigit() else 0
