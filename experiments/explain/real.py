"""Compare explanations with other methods on pairs of real trainings: `python -m experiments.explain.real HALF`.

HALF is `design` or `test`. The causes of a pair are measured first (see `real_pairs`). The methods are those of the
simulated pairs that can be afforded; what the full factorial would take is counted.
"""

import csv
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from experiments.detection.recipes import DIGITS
from experiments.explain.benchmark import Row, print_comparison, score
from experiments.explain.methods import METHODS, SEEDS
from experiments.explain.real_pairs import PLANTED, causes, rates, real_pair

TABLE = Path(__file__).parents[1] / "2026-11-30-explain-real.csv"
TRUTH = Path(__file__).parents[1] / "2026-11-30-explain-real-truth.csv"
_METHODS = ("explain", "one at a time", "ddmin, 1 seed", "ddmin, 5 seeds")
_FIRST = {"design": 0, "test": 1}


def main(half: str) -> None:
    """Measure the causes of a half's pairs, run the methods on them, print the table and write both."""
    rows: list[Row] = []
    truth: list[tuple[int, str, int, int]] = []
    for number in range(_FIRST[half], len(PLANTED), 2):
        if PLANTED[number].digits and not DIGITS.exists():
            print(f"{number} is of spoken digits, which are not there: left out", flush=True)
            continue
        pair = real_pair(number)
        found = rates(pair)
        truth += [(number, " ".join(sorted(mixture)), *counts) for mixture, counts in found.items()]
        if (known := causes(found)) is None:
            print(f"{number} has no known answer: left out", flush=True)
            continue
        pair = replace(pair, causes=known)
        print(number, pair.kind, pair.chance, [sorted(names) for names in known], flush=True)
        for name in _METHODS:
            answer = METHODS[name](pair)
            rows.append(score(half, pair, name, answer))
            print("   ", name, [sorted(names) for names in answer.causes], answer.trials, flush=True)
    _write(TABLE, half, [Row._fields, *rows])
    _write(TRUTH, half, [("pair", "mixture", "failures", "failures with the others"), *truth])
    print_table(rows)


def print_table(rows: list[Row]) -> None:
    """Print how each method did, by chance, and how many trials the full factorial would take."""
    for chance in ("always", "by rate"):
        print_comparison(rows, chance)
        whole = [SEEDS * 2**row.differences for row in rows if (row.chance, row.method) == (chance, "explain")]
        if whole:
            print(f"| factorial, counted | | | | | {statistics.median(whole):,.0f} |")


def _write(table: Path, half: str, rows: list[tuple[object, ...]]) -> None:
    with table.with_stem(f"{table.stem}-{half}").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
