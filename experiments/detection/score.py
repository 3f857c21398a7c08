"""Score detectors on the corpus: ours on its traces, each peer by the alarms it raised while the traces were made.

    python -m experiments.detection.score [--half first_test] [--wrong]      # make benchmark-detection
    python -m experiments.detection.score --half field_design [--distance 100] [--signals log] [--wrong]

No training is needed: the traces are in `corpus.npz`. A half of the field corpus is scored as logs have it: at several
distances between readings, and with some of the signals. What is right there is said in `field/labels.py`.

Any alarm on a healthy training is false, except the alarm that a
slow training is slow. On a faulty training, alarms count from the onset on. A training is healthy if it ends well, even
if it was made faulty and recovered. False alarms on trainings that were made healthy are also counted alone. Another
tool has named the outcome if any of its alarms did; ours only if its verdict did.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as TextTable
from scipy.stats import binomtest

from experiments.detection.corpus import PACKED, Trace, unpack
from experiments.detection.field.cases import DISTANCES, SIGNALS, Signals, field_cases
from experiments.detection.field.recipe import Half as FieldHalf
from experiments.detection.labels import LEARNED, Label, label
from experiments.detection.peers import PEERS
from stability.core import palette
from stability.diagnosis.detectors import findings
from stability.diagnosis.judge import is_check_due, judge
from stability.diagnosis.verdict import FATAL, Verdict

_OURS = "stability"
_GROUPS = {
    "non-finite": {"non_finite"},
    "bad data": {"bad_data"},
    "explosion": {"exploded"},
    "collapse": {"blank_collapse", "mode_collapse"},
    "slow": {"slow", "undecided"},
}


class Detection(NamedTuple):
    """A detector's results for one training: (step, kind) of each alarm, and its final outcomes and cause."""

    alarms: list[tuple[int, str]]
    outcomes: set[str]
    cause: str | None


@dataclass(frozen=True)
class Case:
    """A labelled training."""

    trace: Trace
    label: Label

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict of our detectors."""
        return judge(self.trace.signals, self.trace.validation)

    @cached_property
    def found(self) -> list[tuple[int, str]]:
        """The findings, each with the step at which a live training reports it: at once if fatal, else at a check."""
        found, end = [], int(self.trace.signals.steps[-1])
        for finding in findings(self.trace.signals, self.trace.validation):
            reported = finding.detected_step
            while finding.kind not in FATAL and reported < end and not is_check_due(reported):
                reported += 1
            found.append((reported, str(finding.kind)))
        return found

    @property
    def group(self) -> str:
        """The group of its label's outcomes; the first one if there are several."""
        return next(name for name, kinds in _GROUPS.items() if self.label.outcomes & kinds)


def cases(half: str) -> Iterator[Case]:
    """Return the labelled trainings of one half."""
    for trace in unpack(PACKED):
        found = label(trace.facts | {"ended_below_start": _ended_below_start(trace)})
        if trace.facts["recipe"]["half"] == half and found is not None:
            yield Case(trace, _with_onset(found, trace))


def ours(case: Case) -> Detection:
    """Return the findings and the verdict of our detectors."""
    outcome = str(case.verdict.outcome)
    final = [(int(case.trace.signals.steps[-1]), outcome)] if outcome != "stable" else []
    return Detection(case.found + final, {outcome}, case.verdict.cause)


def peer(name: str) -> Callable[[Case], Detection]:
    """Return the alarms that the peer raised when the training was made."""

    def said(case: Case) -> Detection:
        alarms = [(alarm["step"], alarm["kind"]) for alarm in case.trace.facts["alarms"][name]]
        since = case.label.onset or 0
        return Detection(alarms, {kind for step, kind in alarms if step >= since}, None)

    return said


def _ended_below_start(trace: Trace) -> bool:
    loss = trace.signals["loss"]
    return bool(np.median(loss[-len(loss) // 4 :]) < np.median(loss[:5]))


def _with_onset(found: Label, trace: Trace) -> Label:
    """Find the onset of an explosion by too high a rate from the start: the last step at which the loss was still
    nearer to its lowest value than to its final one.
    """
    if "exploded" not in found.outcomes or trace.facts["recipe"]["onset"] or found.onset != 0:
        return found
    loss = trace.signals["loss"]
    smooth = np.array([np.median(loss[max(0, i - 4) : i + 1]) for i in range(len(loss))])
    best, ended = smooth.min(), np.median(loss[-len(loss) // 4 :])
    nearer = np.flatnonzero(smooth <= best + 0.25 * (ended - best))
    return replace(found, onset=int(trace.signals.steps[nearer[-1]]) if ended > best else 0)


def _row(half: list[Case], detector: Callable[[Case], Detection], names_causes: bool) -> list[str]:
    healthy = [case for case in half if case.label.healthy]
    faulty = [case for case in half if not case.label.healthy]
    alarmed = {id(case): any(k not in case.label.outcomes for _, k in detector(case).alarms) for case in healthy}
    made_so = [case for case in healthy if case.trace.facts["recipe"]["cause"] is None]
    cells = [_share(sum(alarmed[id(case)] for case in some), len(some)) for some in (healthy, made_so)]
    caught: dict[str, list[int]] = {name: [] for name in _GROUPS}
    counts = dict.fromkeys(_GROUPS, 0)
    named = causes = 0
    for case in faulty:
        said = detector(case)
        onset = case.label.onset or 0
        counts[case.group] += 1
        # A fault from the start may be detected before the loss shows it.
        early = -np.inf if not case.trace.facts["recipe"]["onset"] else onset
        late = [step - onset for step, _ in said.alarms if step >= early]
        if late:
            caught[case.group].append(max(0, min(late)))
        named += bool(said.outcomes & case.label.outcomes)
        causes += said.cause in case.label.causes
    total = sum(len(late) for late in caught.values())
    cells += [_share(total, len(faulty)), _share(named, len(faulty))]
    cells.append(_share(causes, len(faulty)) if names_causes else "–")
    for name, late in caught.items():
        delay = f", {np.median(late):.0f} / {np.percentile(late, 95):.0f}" if late else ""
        cells.append(f"{len(late)}/{counts[name]}{delay}")
    return cells


def _share(count: int, of: int) -> str:
    if not of:
        return "–"
    interval = binomtest(count, of).proportion_ci()
    return f"{count}/{of} ({interval.low:.1%}–{interval.high:.1%})"


def _draw(path: Path, half: list[Case]) -> None:
    """Draw correct outcomes against false alarms, with a point for each detector."""
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    healthy = [case for case in half if case.label.healthy]
    faulty = [case for case in half if not case.label.healthy]
    detectors = {_OURS: ours} | {kind.name: peer(kind.name) for kind in PEERS}
    points = []
    for name, detector in detectors.items():
        false = np.mean([any(k not in case.label.outcomes for _, k in detector(case).alarms) for case in healthy])
        named = np.mean([bool(detector(case).outcomes & case.label.outcomes) for case in faulty])
        points.append((100 * float(named), 100 * float(false), name))
    for above, (y, x, name) in enumerate(sorted(points)):
        own = name == _OURS
        axes.plot(x, y, "o", color=palette.VERMILION if own else palette.BLUE, markersize=10 if own else 6)
        offset, align = (-7 if x > 50 else 7, 4 if above % 2 else -11), "right" if x > 50 else "left"
        axes.annotate(name, (x, y), offset, textcoords="offset points", fontsize=9, ha=align)
    axes.set_xlabel("false alarms, % of healthy trainings")
    axes.set_ylabel("outcome named, % of faulty trainings")
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 105)
    axes.grid(color=palette.RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _print_stopping(console: Console, half: list[Case]) -> None:
    """Print the steps that a stop at the first finding of a kind would have saved, and the trainings lost by it."""
    table = TextTable("stopped at", "trials", "steps saved", "would have recovered", "of them healthy", box=None)
    everything = sum(case.trace.facts["recipe"]["steps"] for case in half)
    for kind in ("non_finite", "bad_data", "exploded", "blank_collapse", "mode_collapse"):
        stopped = saved = recovering = healthy = 0
        for case in half:
            steps = [step for step, found in case.found if found == kind]
            if not steps:
                continue
            facts = case.trace.facts
            stopped, saved = stopped + 1, saved + facts["recipe"]["steps"] - 1 - min(steps)
            healthy += case.label.healthy
            later = facts["later"]
            recovering += case.label.healthy or bool(later and later[-1]["per"] <= LEARNED)
        share = f"{saved:,} ({saved / everything:.0%} of all)"
        table.add_row(kind, f"{stopped}", share, f"{recovering}", f"{healthy}")
    console.print(table)


def _print_wrong(half: list[Case]) -> None:
    for case in half:
        said = ours(case)
        right = said.outcomes <= case.label.outcomes and (case.label.healthy or said.cause in case.label.causes)
        false = case.label.healthy and any(
            kind not in case.label.outcomes | case.label.passing for _, kind in said.alarms
        )
        if not right or false:
            outcomes, causes = ("/".join(sorted(words)) for words in (case.label.outcomes, case.label.causes))
            print(
                f"{case.trace.name}: is {outcomes} ({causes}, since {case.label.onset}), "
                f"said {'/'.join(said.outcomes)} ({said.cause}), alarms {said.alarms}"
            )


def _field_row(half: list[Case]) -> list[str]:
    """Score ours on logs of a field half: on healthy ones any finding, and the verdict; on faulty ones the verdict."""
    healthy = [case for case in half if case.label.healthy]
    faulty = [case for case in half if not case.label.healthy]
    found = sum(any(kind not in case.label.outcomes | case.label.passing for _, kind in case.found) for case in healthy)
    condemned = sum(ours(case).outcomes.isdisjoint(case.label.outcomes) for case in healthy)
    named = sum(not ours(case).outcomes.isdisjoint(case.label.outcomes) for case in faulty)
    causes = sum(ours(case).cause in case.label.causes for case in faulty)
    of = len(healthy), len(healthy), len(faulty), len(faulty)
    return [_share(n, total) for n, total in zip((found, condemned, named, causes), of, strict=True)]


def _score_field(half: FieldHalf, distances: Sequence[int], signals: Sequence[Signals], wrong: bool) -> None:
    heads = ("signals", "steps between readings", "false findings", "false verdicts", "outcome named", "cause named")
    table = TextTable(*heads, box=None)
    for some in signals:
        for distance in distances:
            seen = [Case(*case) for case in field_cases(half, distance, some)]
            table.add_row(some, str(distance), *_field_row(seen))
            if wrong:
                print(f"\n{some}, {distance} steps between readings")
                _print_wrong(seen)
    Console(width=160).print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--half",
        choices=["design", "first_test", "test", *get_args(FieldHalf)],
        default="test",
        help="peers did not watch `design`",
    )
    parser.add_argument("--distance", type=int, help="only this number of steps between readings, of a field half")
    parser.add_argument("--signals", choices=SIGNALS, help="only these signals, of a field half")
    parser.add_argument("--wrong", action="store_true", help="list what ours got wrong")
    parser.add_argument("--figure", type=Path, help="draw false alarms against outcomes named")
    options = parser.parse_args()
    if options.half in get_args(FieldHalf):
        distances = DISTANCES if options.distance is None else (options.distance,)
        _score_field(options.half, distances, (options.signals,) if options.signals else SIGNALS, options.wrong)
        return
    half = [*cases(options.half)]
    healthy = sum(case.label.healthy for case in half)
    print(f"half {options.half}: {healthy} healthy trainings, {len(half) - healthy} faulty")
    heads = ["detector", "false alarms", "… made healthy", "found", "outcome named", "cause named", *_GROUPS]
    table = TextTable(
        *heads, box=None, caption="found by outcome, with median / 95th percentile of the steps from onset"
    )
    table.add_row(_OURS, *_row(half, ours, names_causes=True))
    if options.half != "design":
        for kind in PEERS:
            table.add_row(kind.name, *_row(half, peer(kind.name), names_causes=False))
    console = Console(width=260)
    console.print(table)
    wrong = sum(ours(case).outcomes.isdisjoint(case.label.outcomes) for case in half if case.label.healthy)
    print(f"\nfalse verdicts of ours on healthy trainings, at their end: {_share(wrong, healthy)}\n")
    _print_stopping(console, half)
    if options.wrong:
        _print_wrong(half)
    if options.figure is not None:
        _draw(options.figure, half)


if __name__ == "__main__":
    main()
