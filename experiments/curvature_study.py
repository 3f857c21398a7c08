"""Does the ratio of preconditioned sharpness to Adam's threshold warn before an explosion?

    python -m experiments.curvature_study experiments/2026-11-22-curvature

Trains the trials, in about twenty minutes on one core, and writes the measurements to the `.csv` of that name. If that
file exists, it is read instead. Then draws the `.png` and prints the tables.

These rules were fixed before the study was run. Before that, the rates were chosen by losses alone, and three trials
were run to try the program:

- A trial is 100 steps of a small decoder. Its loss is read as the median of the last five steps. It *exploded* if its
  loss or gradient was not finite, or its last reading is more than 1.5 times its lowest. The *onset* is the last step
  with the lowest reading, and in a late trial not before the jump. Every other trial is *healthy*, whatever it learns.
- Every 5 steps, before the step, the ratio of `experiments.curvature` is measured, until the loss has been above 1.5
  times its lowest for twenty steps. It *warns* at the second of two measurements in a row above 1.
- A warning counts if it is at the onset or before; its *lead* is the steps from it to the onset. *Recall* is the
  share of exploded trials with such a warning, of all, and of those with two measurements up to the onset. In a late
  trial, only measurements from the jump on count. The first is made at the new rate, before a step with it.
- A *false warning* is a healthy trial with a warning at any time.
- The *plain alternative* warns in the same way, and at the same steps, where the median of the last five gradient norms
  is more than three times the median of all before them.
- In addition to the rule: a warning at a single measurement, and the ratio times the coefficient by which
  the clip shortens a gradient of the last five steps' median norm, since clipped gradients move the weights less. For
  seed 0, at every tenth step, the ratio on the step's own batch with its noise and dropout.
"""

import csv
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import binomtest

from experiments.curvature import Vector, compose_trial, measure
from stability.core import palette
from stability.data.records import Split
from stability.engine.decoder import init_parameters
from stability.engine.stack import Stack, new_stack
from stability.engine.step import train_steps
from stability.trials.setup import open_data

STEPS, EVERY, JUMP = 100, 5, 50
SMALL = (
    *("model.units=32", "model.layers=2", "batch.size=16", f"steps={STEPS}", "device=cpu"),
    *("data.synthetic.days=4", "data.synthetic.features=16", "data.synthetic.train_utterances=20"),
    *("data.synthetic.val_utterances=2", "data.synthetic.words=1"),
)
EPSILONS = (1e-8, 1e-4, 0.1)
RATES = (0.05, 0.3, 1.0)
CLIPS = (10.0, None)
WARMUPS = (20, 80)
SEEDS = (0, 1, 2)
LATE_RATE, LATE_RATES = 0.03, (0.3, 0.9, 3.0)  # 10, 30 and 100 times
EXPLODED, GROWN = 1.5, 3.0
TRIAL = ("kind", "epsilon", "lr", "clip", "warmup", "seed")  # the columns that name a trial
RULES: dict[str, tuple[str, float, int]] = {  # column, limit, measurements in a row above it
    "ratio above 1, twice": ("ratio", 1.0, 2),
    "ratio above 1, once": ("ratio", 1.0, 1),
    "ratio x clip coefficient, twice": ("clipped_ratio", 1.0, 2),
    "gradient norm x 3, twice": ("norm_growth", GROWN, 2),
}
_WINDOW = 5  # steps that a loss or norm is read from
_DRAWN = (
    ("ratio", 1.0, "preconditioned sharpness\nover Adam's threshold"),
    ("norm_growth", GROWN, "gradient norm\nover its own past"),
)
_COLORS = {1e-8: palette.BLUE, 1e-4: palette.GREEN, 0.1: palette.VERMILION}

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """The measurements of one trial, in order, and what became of it."""

    rows: list[Row]

    @property
    def name(self) -> dict[str, str]:
        """The settings and the seed, by column."""
        return {key: self.rows[0][key] for key in TRIAL}

    @property
    def onset(self) -> int | None:
        """None of a healthy one."""
        onset = self.rows[0]["onset"]
        return None if onset == "" else int(onset)

    @property
    def measured_before(self) -> int:
        """How many measurements there are up to the onset of an exploded one."""
        return sum(int(row["step"]) <= (self.onset or 0) for row in self.rows)

    def values(self, column: str) -> Floats:
        """What was measured of that column."""
        return np.array([float(row[column]) for row in self.rows if row[column] != ""])

    def last_loss(self) -> float:
        """Its loss at the last row."""
        return float(self.rows[-1]["loss"])

    def warning(self, rule: str) -> int | None:
        """The step of the first warning."""
        column, limit, in_a_row = RULES[rule]
        above = 0
        for row in self.rows:
            above = above + 1 if row[column] != "" and float(row[column]) > limit else 0
            if above == in_a_row:
                return int(row["step"])
        return None

    def lead(self, rule: str) -> int | None:
        """Steps from the warning to the onset of an exploded one; None if it was not warned of in time."""
        warning = self.warning(rule)
        if self.onset is None or warning is None or warning > self.onset:
            return None
        return self.onset - warning


def main() -> None:
    """Train or read, draw and print."""
    name = Path(sys.argv[1])
    path = name.with_suffix(".csv")
    if not path.exists():
        rows = [row for trial in train_all() for row in trial]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with path.open(newline="") as file:
        by_trial = itertools.groupby(csv.DictReader(file), lambda row: [row[key] for key in TRIAL])
        trials = [Trial(list(rows)) for _, rows in by_trial]
    report(trials)
    draw(trials, name.with_suffix(".png"))


def train_all() -> Iterator[list[Row]]:
    """The measurements of every trial."""
    torch.set_flush_denormal(True)
    dataset = open_data(compose_trial(SMALL), torch.device("cpu"))

    def begin(epsilon: float, rate: float, clip: float | None, warmup: int, seed: int) -> _Run:
        varied = {"optimizer.epsilon": epsilon, "optimizer.clip_norm": "null" if clip is None else clip}
        varied |= {"schedule.lr_max": rate, "schedule.warmup_steps": warmup, "seed": seed}
        config = compose_trial([*SMALL, *(f"{name}={value}" for name, value in varied.items())])
        parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), seed)
        return _Run("grid", new_stack([config], [parameters], torch.device("cpu")))

    for varied in itertools.product(EPSILONS, RATES, CLIPS, WARMUPS, SEEDS):
        yield _measured(begin(*varied), dataset.train)
    for epsilon, seed in itertools.product(EPSILONS, SEEDS):
        before = begin(epsilon, LATE_RATE, CLIPS[0], WARMUPS[0], seed)
        before.train(dataset.train, JUMP)
        for rate in LATE_RATES:
            run = deepcopy(before)
            run.kind = "late"
            (c,) = run.stack.configs
            run.stack.configs = [replace(c, schedule=replace(c.schedule, lr_max=rate, lr_max_day=rate))]
            yield _measured(run, dataset.train)


@dataclass
class _Run:
    """A trial on its way, and what its steps read so far."""

    kind: str
    stack: Stack
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of training

    def train(self, split: Split, steps: int) -> None:
        began = time.perf_counter()
        (signals,) = train_steps(self.stack, split, steps)
        self.seconds += time.perf_counter() - began
        for name, values in (("loss", self.losses), ("grad_norm", self.norms)):
            values += signals[name].tolist()


def _measured(run: _Run, split: Split) -> list[Row]:
    """Train the trial to its end, measuring: a row a measurement."""
    stack, first = run.stack, run.stack.step
    (c,) = stack.configs
    rows: list[Row] = []
    starts: dict[bool, Vector | None] = {False: None, True: None}  # by whether the batch is the step's own
    while stack.step < STEPS and not stack.failed.any():
        if stack.step:
            readings, past = _readings(run.losses), np.array(run.norms)
            norm = float(np.median(past[-_WINDOW:]))
            clip = 1.0 if c.optimizer.clip_norm is None else min(1.0, c.optimizer.clip_norm / norm)
            row: Row = {"step": stack.step, "loss": readings[-1], "grad_norm": norm}
            row["norm_growth"] = norm / np.median(past[:-_WINDOW]) if len(past) > _WINDOW else 1.0
            row |= dict.fromkeys(("ratio", "clipped_ratio", "own_ratio", "products"), "")
            lost = readings[-4 * EVERY :: EVERY] > EXPLODED * readings.min()
            if len(readings) < 4 * EVERY or not lost.all():
                began = time.perf_counter()
                fixed = measure(stack, split, start=starts[False])
                row["seconds"] = time.perf_counter() - began
                row |= {"ratio": fixed.ratio, "clipped_ratio": fixed.ratio * clip, "products": fixed.products}
                starts[False] = fixed.direction
                if c.seed == 0 and stack.step % (2 * EVERY) == 0:
                    own = measure(stack, split, own=True, start=starts[True])
                    row["own_ratio"], starts[True] = own.ratio, own.direction
            rows.append(row)
        run.train(split, EVERY)
    readings = _readings(run.losses)
    exploded = bool(stack.failed.any()) or readings[-1] > EXPLODED * readings.min()
    lowest = len(readings) - 1 - int(readings[::-1].argmin())
    o, s = c.optimizer, c.schedule
    trial = (run.kind, o.epsilon, s.lr_max, o.clip_norm, s.warmup_steps, c.seed)
    common = dict(zip(TRIAL, trial, strict=True)) | {"onset": max(lowest, first) if exploded else ""}
    step_seconds = run.seconds / len(run.losses)
    for row in rows:
        row["steps_worth"] = row.pop("seconds") / step_seconds if "seconds" in row else ""
    return [common | {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _readings(losses: Sequence[float]) -> Floats:
    """The median of the last five losses at each step, infinite where one of them is not finite."""
    finite = np.nan_to_num(np.array(losses), nan=np.inf, posinf=np.inf)
    return np.array([np.median(finite[max(0, i + 1 - _WINDOW) : i + 1]) for i in range(len(finite))])


def report(trials: Sequence[Trial]) -> None:
    """Print recall, leads and false warnings of every rule, then the trials by setting, then the cost."""
    groups = {"all": [*trials]}
    groups |= {kind: [t for t in trials if t.name["kind"] == kind] for kind in ("grid", "late")}
    groups |= {f"grid, epsilon {e:g}": [t for t in groups["grid"] if float(t.name["epsilon"]) == e] for e in EPSILONS}
    for title, group in groups.items():
        _report_rules(title, group)
    settings = [key for key in TRIAL if key != "seed"]
    print(f"\n| {' | '.join(settings)} | exploded | onsets | warned in time | warned at | largest ratio | last loss |")
    print("|---" * (len(settings) + 6) + "|")
    rule = next(iter(RULES))
    by_setting: dict[tuple[str, ...], list[Trial]] = {}
    for t in trials:
        by_setting.setdefault(tuple(t.name[key] for key in settings), []).append(t)
    for key, of in by_setting.items():
        lost = [t for t in of if t.onset is not None]
        in_time = sum(t.lead(rule) is not None for t in lost)
        warned = ", ".join("never" if (step := t.warning(rule)) is None else str(step) for t in of)
        peak, loss = (np.array([f(t) for t in of]) for f in (lambda t: np.nanmax(t.values("ratio")), Trial.last_loss))
        cells = f"{len(lost)} of {len(of)}", ", ".join(str(t.onset) for t in lost), str(in_time), warned
        print("| " + " | ".join([*key, *cells, f"{np.nanmax(peak):.3g}", f"{np.median(loss):.3g}"]) + " |")
    healthy = [t for t in trials if t.onset is None]
    quiet = np.concatenate([t.values("ratio") for t in healthy])
    print(f"\nhealthy: {_share(int((quiet > 1).sum()), len(quiet))} of the measurements are above 1")
    for fate in (True, False):
        losses = [t.last_loss() for t in healthy if (t.warning(rule) is not None) == fate]
        span = f"{np.median(losses):.1f} ({min(losses):.1f} to {max(losses):.1f})"
        print(f"healthy, {'warned of' if fate else 'not warned of'}: last loss {span}, {len(losses)} trials")
    for fate in (True, False):
        first = [t.values("ratio")[0] for t in groups["late"] if (t.onset is not None) == fate]
        print(f"late, {'exploded' if fate else 'healthy'}: {min(first):.2f} to {max(first):.3g} at the jump")
    rows = [row for t in trials for row in t.rows if row["own_ratio"] not in ("", "nan")]
    pairs = np.array([(float(row["own_ratio"]), float(row["ratio"])) for row in rows])
    for title, calm in (("below 1", pairs[:, 1] < 1), ("above 1", pairs[:, 1] > 1)):
        low, middle, high = np.percentile(pairs[calm, 0] / pairs[calm, 1], [5, 50, 95])
        print(f"own batch over fixed, {title}: {middle:.2f}, 5 % to 95 %: {low:.2f} to {high:.2f}, {sum(calm)} pairs")
    products, worth = (np.concatenate([t.values(name) for t in trials]) for name in ("products", "steps_worth"))
    print(f"{len(products)} measurements, of {np.median(products):.0f} products, worth {np.median(worth):.0f} steps")


def _report_rules(title: str, trials: Sequence[Trial]) -> None:
    exploded, healthy = ([t for t in trials if (t.onset is not None) == fate] for fate in (True, False))
    possible = [t for t in exploded if t.measured_before >= 2]
    print(f"\n{title}: {len(exploded)} exploded, {len(possible)} with two measurements; {len(healthy)} healthy")
    print("| rule | recall | of those with two measurements | lead: median (range) | first warning | false warnings |")
    print("|---" * 6 + "|")
    for rule in RULES:
        leads = [lead for t in exploded if (lead := t.lead(rule)) is not None]
        late = [step - (t.onset or 0) for t in exploded if (step := t.warning(rule)) is not None]
        cells = [
            _share(len(leads), len(exploded)),
            _share(sum(t.lead(rule) is not None for t in possible), len(possible)),
            f"{np.median(leads):g} ({min(leads)} to {max(leads)})" if leads else "none",
            f"{np.median(late):+g} from the onset, {len(late)} of {len(exploded)}" if late else "never",
            _share(sum(t.warning(rule) is not None for t in healthy), len(healthy)),
        ]
        print(f"| {rule} | " + " | ".join(cells) + " |")


def _share(count: int, of: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson)."""
    if not of:
        return "none"
    low, high = binomtest(count, of).proportion_ci()
    return f"{count} of {of} ({low:.0%}–{high:.0%})"


def draw(trials: Sequence[Trial], path: Path) -> None:
    """Ratio and gradient norm against steps from the onset (of healthy trials: from the start), a thin line a trial."""
    figure = Figure(figsize=(11, 7.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for i, fate in enumerate((True, False)):
        group = [t for t in trials if (t.onset is not None) == fate]
        panels[0, i].set_title(f"{'exploded' if fate else 'healthy'}: {len(group)} trials")
        panels[1, i].set_xlabel("steps from the onset of the explosion" if fate else "step")
        for panel, (column, limit, label) in zip(panels[:, i], _DRAWN, strict=True):
            for epsilon, color in _COLORS.items():
                _draw_trials(panel, [t for t in group if float(t.name["epsilon"]) == epsilon], column, color)
            panel.set_yscale("log")
            panel.set_ylabel("" if i else label)
            panel.axhline(limit, color="black", linewidth=1.2, linestyle="--")
            panel.grid(color=palette.RULE, linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            if fate:
                panel.axvline(0, color="black", linewidth=1.2)
    handles = [Line2D([], [], color=c, linewidth=2.5, label=f"epsilon {e:g}, median") for e, c in _COLORS.items()]
    handles.append(Line2D([], [], color=palette.GREY, linestyle=":", label="late: lr raised at step 50"))
    handles.append(Line2D([], [], color="black", linestyle="--", label="warns above"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path)


def _draw_trials(panel: Axes, trials: Sequence[Trial], column: str, color: str) -> None:
    """A thin line a trial, and the median of those of the grid where there are four or more."""
    near: dict[int, list[float]] = {}
    for trial in trials:
        late = trial.name["kind"] == "late"
        rows = [row for row in trial.rows if row[column] not in ("", "nan")]
        steps = [int(row["step"]) - (trial.onset or 0) for row in rows]
        values = np.clip([float(row[column]) for row in rows], 1e-3, 1e4)
        panel.plot(steps, values, ":" if late else "-", color=color, linewidth=0.8, alpha=0.35)
        for step, value in zip(steps, values, strict=True):
            if not late:
                near.setdefault(EVERY * round(step / EVERY), []).append(value)
    shown = sorted(step for step, values in near.items() if len(values) >= 4)
    panel.plot(shown, [np.median(near[step]) for step in shown], color=color, linewidth=2.5)


if __name__ == "__main__":
    main()
