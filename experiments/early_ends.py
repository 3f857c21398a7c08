"""What `sweep.until=ruled` would save if trials ended as soon as their outcome looks settled, and at what error.

    python -m experiments.early_ends errors             # on the corpus of detection: how often the end is another one
    python -m experiments.early_ends studies            # the rounds of `diagnosis` and `loss_scale`, in steps
    python -m experiments.early_ends record FOLDER      # a table of the trials in a study's folder

`record` wrote `2026-11-30-early-ends.csv`, which says when the trials of each cell look settled.
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.detection.corpus import PACKED, Trace, unpack
from stability.analysis.claims import find_claims, read_claims
from stability.analysis.inference import binomial_interval
from stability.analysis.open_claims import Planned, open_claims
from stability.analysis.rulings import rule
from stability.analysis.trial import Trial, Trials
from stability.analysis.yaml_files import read_config
from stability.config.hydra import scale_settings
from stability.core.files import CONFIG, SIGNALS_FILE, VALIDATION_FILE
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import THRESHOLDS, finite_readings
from stability.diagnosis.judge import judge
from stability.diagnosis.responses import HEALTHY, plateau_steps
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import FATAL, FAULTS

_HERE = Path(__file__).parent
_TABLE = _HERE / "2026-11-30-early-ends.csv"
_WELL = THRESHOLDS["learned"]["well"]
_PLATEAU = 0.1  # nats of frame information, as in `plateau_steps`
_STEPS = 500
_MAY_END_EARLY = ("outcome", "healthy", "steps")  # responses that do not need the last step
_FACTORS = {
    "epsilon": "optimizer.epsilon",
    "lr": "schedule.lr_max",
    "noise": "aug.white_noise_std",
    "loss.reduction": "loss.reduction",
}
_HALVES = ("design", "first_test", "test", "all")
_CELL = ("loss", "epsilon", "lr", "noise")


class Settled(NamedTuple):
    """When a training looks settled, and as what."""

    step: int
    healthy: bool


def looks_settled(signals: Table, validation: Table, *, sure: bool = False) -> Settled | None:
    """Return when a training first looks settled; None if it does not before its end.

    Args:
        signals: A row per training step.
        validation: A row per validation.
        sure: Whether to wait for two good error rates in a row, and as long as the learning rate rises.
    """
    found = findings(signals, validation)
    failed = min((f.detected_step for f in found if f.kind in FAULTS and f.kind not in FATAL), default=math.inf)
    for number, step in enumerate(validation.steps.tolist()):
        rates = validation["per"][: number + 1]
        past, seen = signals.take(signals.steps <= step), validation.take(validation.steps <= step)
        well = len(rates) > 1 and max(rates[-2:]) <= _WELL and not _rises(past) if sure else rates[-1] <= _WELL
        if step < failed and well and not findings(past, seen) and judge(past, seen).outcome == "stable":
            return Settled(step, True) if step < signals.steps[-1] else None
    return Settled(int(failed), False) if failed < signals.steps[-1] else None


def _rises(past: Table) -> bool:
    """Whether the learning rate is above that of a tenth of the steps before."""
    rates = finite_readings(past, "lr").values
    return len(rates) > 0 and bool(rates[-1] > 1.001 * rates[-1 - len(rates) // 10])


def errors() -> None:
    """Print how often a training of the corpus that looked settled ended otherwise."""
    rows = [(trace, _compared(trace)) for trace in unpack(PACKED)]
    print(f"{'settled as':<46} {'half':<12} {'trainings':>9} {'wrong':>5}")
    for name, place, healthy in (("learned well", 0, True), ("twice, rate not rising", 1, True), ("a fault", 0, False)):
        own = [
            (trace.facts["recipe"]["half"], end != healthy, healthy and _begins_later(trace, settled.step))
            for trace, (both, end) in rows
            if (settled := both[place]) is not None and settled.healthy == healthy
        ]
        for half in _HALVES:
            some = [one for one in own if half in (one[0], "all")]
            _print_share(name, half, [wrong for _, wrong, _ in some])
            if healthy:
                _print_share(f"{name}, no fault began later", half, [wrong for _, wrong, later in some if not later])

    back = [(trace.facts["recipe"]["half"], _comes_back(trace.signals)) for trace, _ in rows]
    for half in _HALVES:
        _print_share("off the plateau", half, [came for own, came in back if half in (own, "all") and came is not None])


def _comes_back(signals: Table) -> bool | None:
    """Whether a decoder that has left the plateau comes back, so that its plateau lasted longer; None if it stays."""
    if "frame_information" not in signals.names:
        return None
    steps, information = finite_readings(signals, "frame_information")
    was_on = np.maximum.accumulate(information < _PLATEAU)  # an untrained decoder may be above it, by chance
    off = steps[was_on & (information >= THRESHOLDS["collapsed"]["leaves"])]
    if not len(off) or off[0] == steps[-1]:
        return None
    return bool((information[steps > off[0]] < _PLATEAU).any())


def _print_share(name: str, half: str, wrong: Sequence[bool]) -> None:
    low, high = binomial_interval(sum(wrong), len(wrong)) if wrong else (math.nan, math.nan)
    print(f"{name:<46} {half:<12} {len(wrong):>9} {sum(wrong):>5}  {low:.1%} to {high:.1%}")


def _compared(trace: Trace) -> tuple[list[Settled | None], bool]:
    ended = judge(trace.signals, trace.validation).outcome in HEALTHY
    return [looks_settled(trace.signals, trace.validation, sure=sure) for sure in (False, True)], ended


def _begins_later(trace: Trace, step: int) -> bool:
    recipe = trace.facts["recipe"]
    return recipe["fault"] is not None and recipe["onset"] > step


def record(folder: Path) -> None:
    """Write the table of the trials in a study's folder."""
    rows = []
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        config = read_config(path)
        signals, validation = (read_table(path.parent / name) for name in (SIGNALS_FILE, VALIDATION_FILE))
        steps, left = plateau_steps(signals)
        found = next(iter(findings(signals, validation)), None)
        rows.append(
            {
                "loss": config["loss"]["reduction"],
                "epsilon": config["optimizer"]["epsilon"],
                "lr": config["schedule"]["lr_max"],
                "noise": config["aug"]["white_noise_std"],
                "seed": config["seed"],
                "plateau_steps": steps if left else "",
                "finding": found.kind if found else "",
                "detected_step": found.detected_step if found else "",
                **{f"per_{s}": f"{p:.4g}" for s, p in zip(validation.steps.tolist(), validation["per"], strict=True)},
                "name": path.parent.name,
            }
        )
    with _TABLE.open("w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["seed"], *(row[name] for name in _CELL))))


def studies() -> None:
    """Replay both studies round by round, and print the trials and the steps of each round."""
    settled = _settled_by_cell()
    for study in ("diagnosis", "loss-scale"):
        whole, early, count = 0, 0.0, 0
        every = _trials(study)
        print(f"{study}: {len(every)} trials, {_STEPS * len(every):,} steps")
        for needed, to_the_end in _rounds(every):
            count += len(needed)
            whole += _STEPS * len(needed)
            early += sum(_STEPS if name in to_the_end else settled[_cell(every[name])] for name in needed)
            print(
                f"  {len(needed)} trials, {len(to_the_end)} of them to the end: so far {count} trials, {whole:,} steps;"
                f" with early ends {early:,.0f}"
            )


def _rounds(every: Mapping[str, Trial]) -> Iterator[tuple[list[str], set[str]]]:
    """Each round's trials, and those of them that an open claim needs to their last step."""
    claims = read_claims(find_claims("original"))
    planned = {name: Planned(trial.seed or 0, trial.factors) for name, trial in every.items()}
    begun: dict[str, Trial] = {}
    while found := open_claims(claims, Trials(tuple(begun.values())), planned, begun):
        needed = {name for claim in found for name in claim.needed} - begun.keys()
        serves: dict[str, set[str]] = defaultdict(set)
        for claim in found:
            for name in needed & {name for own in claim.trials.values() for name in own}:
                serves[name].add(claim.ruling.claim.response)
        yield sorted(needed), {name for name in needed if not serves[name] <= {*_MAY_END_EARLY}}
        begun |= {name: every[name] for name in needed}
    rulings = rule(claims, Trials(tuple(begun.values())), anytime=True)
    print("  ", {kind: sum(r.ruling == kind for r in rulings) for kind in ("confirmed", "refuted", "inconclusive")})


def _trials(study: str) -> dict[str, Trial]:
    """The committed trials of a study."""
    base: dict[str, Any] = {"steps": _STEPS, **scale_settings("small", "synthetic")}
    base |= {"precision.clip_before_unscale": False, "loss.reduction": "per_utterance_sum", "aug.white_noise_std": 1.0}
    found = {}
    with (_HERE / f"2026-11-22-{study}-trials.csv").open() as file:
        for row in csv.DictReader(file):
            own = {
                full: row[name] if full == "loss.reduction" else float(row[name])
                for name, full in _FACTORS.items()
                if name in row
            }
            numbers: dict[str, Any] = {
                name: float(row[name]) for name in ("per", "norm_spike", "largest_norm", "phonemes", "loss")
            }
            found[row["name"]] = Trial(
                name=row["name"],
                factors=base | own,
                seed=int(row["seed"]),
                outcome=row["outcome"],
                cause=row["cause"] or None,
                healthy=row["outcome"] in HEALTHY,
                steps=int(row["plateau_steps"]),
                censored=row["censored"] == "True",
                **numbers,
            )
    return found


def _cell(trial: Trial) -> tuple[Any, ...]:
    return tuple(trial.factors[_FACTORS.get(name, "loss.reduction")] for name in _CELL)


def _settled_by_cell() -> dict[tuple[Any, ...], float]:
    """The mean number of steps after which the recorded trials of a cell look settled."""
    by_cell: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    with _TABLE.open() as file:
        for row in csv.DictReader(file):
            good = [int(name[4:]) for name in row if name.startswith("per_") and float(row[name]) <= _WELL]
            ends = [*good[:1], *([int(row["detected_step"])] if row["finding"] else []), _STEPS - 1]
            cell = (row["loss"], *(float(row[name]) for name in _CELL[1:]))
            by_cell[cell].append(min(ends) + 1)
    return {cell: float(np.mean(steps)) for cell, steps in by_cell.items()}


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands."""
    commands: dict[str, Callable[[], None]] = {"errors": errors, "studies": studies}
    if arguments[:1] == ["record"]:
        record(Path(arguments[1]))
    else:
        commands[arguments[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
