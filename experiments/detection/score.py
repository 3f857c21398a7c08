"""Score detectors on the corpus: ours on its traces, each peer by the alarms it raised while the traces were made."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.detection.labels import Label, label
from stability.diagnosis.signals import Table


@dataclass(frozen=True)
class Trace:
    """One training of the corpus, as a detector may see it, and what became of it."""

    name: str
    facts: dict[str, Any]
    signals: Table
    validation: Table
    label: Label | None


def traces(folder: Path) -> Iterator[Trace]:
    """All trainings that are there."""
    for path in sorted(folder.glob("*.npz")):
        if ".part" in path.name:
            continue
        with np.load(path) as d:
            facts = json.loads(str(d["facts"]))
            signals = Table(tuple(map(str, d["names"])), d["steps"], d["values"], d["measured"])
            rows = d["validation"]
        values = rows[:, 1:].astype(np.float32)
        validation = Table(("per", "loss"), rows[:, 0].astype(np.int64), values, ~np.isnan(values))
        yield Trace(path.stem, facts, signals, validation, _with_onset(label(facts), facts, signals))


def _with_onset(found: Label | None, facts: dict[str, Any], signals: Table) -> Label | None:
    """Of an explosion that a rate too high makes from the start, the onset is the last step at which
    the loss was still nearer to its best than to where it ended."""
    if found is None or "exploded" not in found.outcomes or facts["recipe"]["onset"] or found.onset != 0:
        return found
    loss = signals["loss"]
    smooth = np.array([np.median(loss[max(0, i - 4) : i + 1]) for i in range(len(loss))])
    best, ended = smooth.min(), np.median(loss[-len(loss) // 4 :])
    nearer = np.flatnonzero(smooth <= best + 0.25 * (ended - best))
    return replace(found, onset=int(signals.steps[nearer[-1]]) if ended > best else 0)


def main() -> None:
    from stability.diagnosis.detectors import findings
    from stability.diagnosis.verdict import judge

    half = sys.argv[1]
    wrong = 0
    delays: dict[str, list[int]] = {}
    healthy = alarmed = faulty = caught = right = right_cause = 0
    for t in traces(Path("outputs/corpus")):
        if t.facts["recipe"]["half"] != half or t.label is None:
            continue
        if len(sys.argv) > 2 and not any(a in t.name for a in sys.argv[2:]):
            continue
        found = findings(t.signals, t.validation)
        verdict = judge(t.signals, t.validation)
        said = f"{verdict.outcome}/{verdict.cause} on {verdict.onset_step}"
        first = "; ".join(f"{f.kind}/{f.cause} {f.onset_step}@{f.detected_step} {f.signal}" for f in found)
        if t.label.healthy:
            healthy += 1
            bad = bool(found) or verdict.outcome not in t.label.outcomes
            alarmed += bad
        else:
            faulty += 1
            unwell = verdict.outcome not in ("stable",) or bool(found)
            caught += unwell
            ok = verdict.outcome in t.label.outcomes
            right += ok
            right_cause += verdict.cause == t.label.cause
            bad = not ok or verdict.cause != t.label.cause
            if found and t.label.onset is not None:
                delays.setdefault(min(t.label.outcomes), []).append(found[0].detected_step - t.label.onset)
        if bad:
            wrong += 1
            print(
                f"{t.name:22s} is {'+'.join(sorted(t.label.outcomes))}/{t.label.cause} since {t.label.onset}: {said} | {first}"
            )
    print(
        f"healthy {healthy}, alarms {alarmed}; faulty {faulty}, caught {caught}, outcome {right}, cause {right_cause}"
    )
    for k, v in delays.items():
        print(f"  {k}: n {len(v)} median {np.median(v):.0f} p95 {np.percentile(v, 95):.0f} {sorted(v)}")


if __name__ == "__main__":
    main()
