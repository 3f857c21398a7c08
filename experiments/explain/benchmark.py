"""Compare methods on simulated pairs: `python -m experiments.explain.benchmark HALF [METHOD] …`.

HALF is `design`, `test`, `second-test`, `third-test` or `many-test`. For each method, or those that are named: the
pairs whose sufficient sets it names exactly; those whose differences with a part it names exactly, whatever the sets;
those in which it names a difference that has no part, or misses one that has; and how many trials it makes.
"""

import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.explain.methods import METHODS, SEEDS, Answer
from experiments.explain.pairs import Pair, pairs

TABLE = Path(__file__).parents[1] / "2026-11-30-explain.csv"


class Row(NamedTuple):
    """How a method did on a pair."""

    half: str
    pair: int
    differences: int
    kind: str
    chance: str
    method: str
    sure: bool
    exact: bool
    parts: bool
    false: int
    missed: int
    trials: int


def score(half: str, pair: Pair, method: str, answer: Answer) -> Row:
    """Compare an answer with the truth."""
    true, named = (frozenset[str]().union(*causes) for causes in (pair.causes, answer.causes))
    exact = answer.causes == pair.causes
    sizes = len(pair.differences), pair.kind, pair.chance
    wrong = len(named - true), len(true - named)
    return Row(half, pair.number, *sizes, method, answer.sure, exact, named == true, *wrong, answer.trials)


def main(half: str, *methods: str) -> None:
    """Run all methods, or some, on a half and print the tables."""
    rows = []
    for number, pair in enumerate(chosen := pairs(half), 1):
        rows += [score(half, pair, name, METHODS[name](pair)) for name in methods or METHODS]
        print(f"{number}/{len(chosen)}", file=sys.stderr)
    with TABLE.with_stem(f"{TABLE.stem}-{half}").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    print_tables(rows)


def print_comparison(rows: Sequence[Row], chance: str) -> None:
    """Print how each method did on the pairs that fail by this chance."""
    print(f"\n| fails {chance} | exact sets | exact parts | a false cause | a missed cause | trials, median |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        own = [row for row in rows if row.method == method and row.chance == chance]
        if own:
            flags = zip(*((r.exact, r.parts, r.false > 0, r.missed > 0) for r in own), strict=True)
            counts = " | ".join(f"{sum(column)} of {len(own)}" for column in flags)
            print(f"| {method} | {counts} | {statistics.median(r.trials for r in own):,.0f} |")


def print_tables(rows: Sequence[Row]) -> None:
    """Print how each method did, by chance, and how many trials it made, by size."""
    for chance in ("always", "by rate"):
        print_comparison(rows, chance)
    print("\n| differences | factorial | explain, always: median, most | share | by rate: median, most | share |")
    print("|---|---|---|---|---|---|")
    for count in sorted({row.differences for row in rows}):
        whole, cells = SEEDS * 2**count, [f"{count}", f"{SEEDS * 2**count:,}"]
        for chance in ("always", "by rate"):
            trials = [r.trials for r in rows if (r.differences, r.chance, r.method) == (count, chance, "explain")]
            median = statistics.median(trials)
            cells += [f"{median:,.0f}, {max(trials):,}", f"{median / whole:.1%}"]
        print(f"| {' | '.join(cells)} |")
    sure = [row for row in rows if row.method == "explain" and row.sure]
    print(f"\nexplain confirmed {len(sure)} answers, of which {sum(not row.exact for row in sure)} were wrong.")


if __name__ == "__main__":
    main(*sys.argv[1:])
