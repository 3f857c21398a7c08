"""Repair the corpus' trainings with a fault in the settings: `python -m experiments.repair.benchmark HALF [ROUNDS]`.

HALF is `design` or `test`. A round has one training of each family; all rounds are run unless a number is given. Each
training is repaired by the real command, twice: given as overrides, so that it is trained first; and given as the
folder of its trial. The second finds the trials of the first and trains none of them again, but counts their steps. A
change that was found is then trained with two further seeds, which no repair has seen. What has ended is not trained
again, so it can be stopped and goes on.

A *training's worth* is the steps of FAILED's configuration. A training that does not fail is printed, and not counted.
"""

import csv
import json
import math
import multiprocessing
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from experiments.detection.recipes import Half
from experiments.repair.cases import Case, cases
from stability import repair, train
from stability.analysis.tried import read_tried
from stability.core.files import REPAIR, VERDICT
from stability.diagnosis.verdict import read_verdict

TABLE = Path(__file__).parents[1] / "2026-11-30-repair.csv"
OUTPUTS = Path("outputs/benchmark-repair")
COMMON = ("tracking=none", f"outputs={OUTPUTS}")
_LATER_SEEDS = (100, 101)


class Row(NamedTuple):
    """How a repair ended. `trainings`: its steps, over those of FAILED's configuration."""

    half: str
    name: str
    task: str
    given: str
    outcome: str
    cause: str
    result: str
    change: str
    error_rate: float
    later_healthy: int
    trials: int
    steps: int
    trainings: float


def main(half: Half, rounds: str = "100") -> None:
    """Repair the trainings of a half, print the tables, and write a row for each repair."""
    rows: list[Row] = []
    first = min(case.recipe.seed for case in cases(half))
    chosen = [case for case in cases(half) if case.recipe.seed < first + int(rounds)]
    for number, case in enumerate(chosen, 1):
        rows += repaired(case)
        for row in rows[-2:]:
            print(f"{number}/{len(chosen)}", *row, flush=True)
    with TABLE.with_stem(f"{TABLE.stem}-{half}").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    print_tables(rows)


def repaired(case: Case) -> tuple[Row, Row]:
    """Repair a training, given as overrides and as the folder of its trial."""
    name = case.recipe.name
    told, known = f"{name}-overrides", f"{name}-folder"
    _command("repair", " ".join(case.overrides), *COMMON, f"study={told}")
    failed, *_ = json.loads((OUTPUTS / told / REPAIR).read_text())["tried"]
    trial = OUTPUTS / told / failed["trials"][0]["folder"]
    for path in (OUTPUTS / told).glob(f"*/{VERDICT}"):
        shutil.copytree(path.parent, OUTPUTS / known / path.parent.name, dirs_exist_ok=True)
    _command("repair", f"{trial}", *COMMON, f"study={known}")
    return _row(case, "overrides", told, trial), _row(case, "folder", known, trial)


def _row(case: Case, given: str, study: str, trial: Path) -> Row:
    recipe, path = case.recipe, OUTPUTS / study / REPAIR
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}  # none if the folder was refused
    verdict, answer, cost = read_verdict(trial / VERDICT), found.get("answer"), found.get("cost", {})
    is_healthy = "is healthy in" in found["problem"] if found else verdict.outcome in ("stable", "slow")
    rates = [trial["error_rate"] for trial in answer["trials"]] if answer else []
    return Row(
        half=recipe.half,
        name=recipe.name,
        task=recipe.task,
        given=given,
        outcome=verdict.outcome,
        cause=verdict.cause or "",
        result="repaired" if answer else "did not fail" if is_healthy else "not repaired",
        change=answer["change"] if answer else "",
        error_rate=round(statistics.mean(rates), 3) if rates else math.nan,
        later_healthy=_later_healthy(recipe.name, answer["change"], answer["overrides"]) if answer else 0,
        trials=cost.get("trials", 0),
        steps=cost.get("steps", 0),
        trainings=round(cost.get("steps", 0) / recipe.steps, 2),
    )


def _later_healthy(name: str, change: str, overrides: Sequence[str]) -> int:
    """In how many of the further seeds a training with a change is healthy."""
    study = f"{name}-later-{crc32(change.encode()):08x}"
    stacked = ("--multirun", "hydra/launcher=stacked", f"seed={','.join(map(str, _LATER_SEEDS))}")
    _command("train", *stacked, *overrides, f"study={study}", "diagnosis.stop_on=[non_finite,bad_data]")
    tried = [read_tried(path.parent) for path in (OUTPUTS / study).glob(f"*/{VERDICT}")]
    return sum(one is not None and one.failed is False for one in tried)


def _command(name: str, *words: str) -> None:
    """Run `python -m stability.NAME` in a process of its own, which has the packages imported already."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(name, words))
    process.start()
    process.join()


def _run(name: str, words: Sequence[str]) -> None:
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    log = (OUTPUTS / "commands.log").open("a")
    sys.stdout = sys.stderr = log
    sys.argv = [f"stability.{name}", *words]
    {"repair": repair, "train": train}[name].main()


def print_tables(rows: Sequence[Row]) -> None:
    """Print, by how FAILED was given, the share that was repaired and the trainings' worth of steps."""
    print("\n| FAILED is given as | fail | repaired | also in both later seeds | trainings' worth: quartiles | most |")
    print("|---|---|---|---|---|---|")
    for given in ("folder", "overrides"):
        own = [row for row in rows if row.given == given and row.result != "did not fail"]
        good = [row for row in own if row.result == "repaired"]
        if len(own) < 2:
            continue
        worth = [row.trainings for row in own]
        quartiles = ", ".join(f"{value:.1f}" for value in statistics.quantiles(worth, n=4, method="inclusive"))
        later = sum(row.later_healthy == len(_LATER_SEEDS) for row in good)
        print(f"| {given} | {len(own)} | {len(good)} ({len(good) / len(own):.0%}) | {later} | {quartiles} "
              f"| {max(worth):.1f} |")  # fmt: skip
    print("\n| family | fail | repaired | trainings' worth, median: folder, overrides |\n|---|---|---|---|")
    for family in dict.fromkeys(row.name.rpartition("-")[0] for row in rows):
        own = [r for r in rows if r.name.rpartition("-")[0] == family and r.result != "did not fail"]
        by = {given: [r for r in own if r.given == given] for given in ("folder", "overrides")}
        medians = ", ".join(f"{statistics.median(r.trainings for r in found):.1f}" for found in by.values() if found)
        counts = [f"{sum(r.result == 'repaired' for r in found)} of {len(found)}" for found in by.values()]
        print(f"| {family} | {len(by['folder'])} | {', '.join(counts)} | {medians} |")


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
