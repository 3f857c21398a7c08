"""Simulate studies with known effects: how often do intervals hold the truth, and how often are rulings false?

    python -m experiments.effects_coverage [STUDIES]

A study crosses factors `a`, `b`, `c` of two levels and repeats each cell with 3, 5 or 10 seeds. A seed shifts all its
trials, and changes the effect of `a`. The truth is the result of the same method for a study of 2,000 seeds.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from stability.analysis.claims import Claim
from stability.analysis.effects import RESPONSES, Response, differences, interval
from stability.analysis.inference import sign_flip
from stability.analysis.matching import Cell, interaction_cells, match
from stability.analysis.rulings import rule
from stability.analysis.trial import Trial, Trials

SEEDS = (3, 5, 10)
BUDGET = 500
CONTRASTS: dict[str, tuple[list[Cell], Sequence[float]]] = {
    "a": ([{"a": 1}, {"a": 0}], (1, -1)),
    "a x b": interaction_cells("a", (0, 1), "b", (0, 1)),
}


@dataclass(frozen=True)
class Scenario:
    """The effect of `a`, and its additional effect where `b` is 1: on log steps, on log-odds of PER, on P(diverges)."""

    name: str
    steps: tuple[float, float] = (0.0, 0.0)
    per: tuple[float, float] = (0.0, 0.0)
    diverges: tuple[float, float] = (0.0, 0.0)
    base: float = 0.02  # of all trials diverge whatever the factors


SCENARIOS = (
    Scenario("no effect", base=0.0),
    Scenario("no effect, 15 % diverge", base=0.15),
    Scenario("slower and worse", steps=(0.5, 0.4), per=(0.8, 0.4)),
    Scenario("half are censored", steps=(1.5, 1.0)),
    Scenario("half diverge", diverges=(0.3, 0.4)),
    Scenario("2 % and 7 % diverge", diverges=(0.05, 0.0)),
)


@dataclass(frozen=True)
class Row:
    """The shares of studies whose interval holds the truth, and whose p is below 0.05."""

    scenario: str
    seeds: int
    response: Response
    contrast: str
    truth: float
    coverage: float
    significant: float


def simulate(scenario: Scenario, seeds: int, rng: np.random.Generator) -> list[Trial]:
    """Draw the trials of one study."""
    a, b, c, seed = (axis.ravel() for axis in np.meshgrid((0, 1), (0, 1), (0, 1), range(seeds), indexing="ij"))
    n = len(seed)

    def effect(of: tuple[float, float], spread: float) -> NDArray[np.float64]:
        return np.asarray((of[0] + of[1] * b + rng.normal(0, spread, seeds)[seed]) * a, np.float64)

    shift = rng.normal(0, 1, seeds)[seed]
    log_steps = math.log(60) + 0.2 * shift + 0.5 * c + effect(scenario.steps, 0.15) + rng.normal(0, 0.2, n)
    odds = -1.4 + 0.3 * shift - 0.3 * c + effect(scenario.per, 0.2) + rng.normal(0, 0.2, n)
    risk = scenario.base + a * (scenario.diverges[0] + scenario.diverges[1] * b)
    diverged = rng.random(n) < risk
    ended = np.where(diverged, rng.integers(20, BUDGET, n), BUDGET)
    steps = np.minimum(np.ceil(np.exp(log_steps)), ended)
    censored = diverged | (steps == BUDGET)
    per = np.where(censored, 1.0, 1 / (1 + np.exp(-odds)))
    outcome = np.where(diverged, "exploded", np.where(censored, "undecided", "stable"))
    norm_spike = np.where(diverged, np.where(rng.random(n) < 0.5, np.inf, 8.0), np.abs(rng.normal(0.8, 0.3, n)))
    return [
        Trial(
            name=str(i), factors={"a": int(a[i]), "b": int(b[i]), "c": int(c[i])}, seed=int(seed[i]),
            outcome=str(outcome[i]), cause=None,
            healthy=not censored[i], steps=int(ended[i] if censored[i] else steps[i]), censored=bool(censored[i]),
            per=float(per[i]), norm_spike=float(norm_spike[i]), largest_norm=1.0, phonemes=20.0, loss=1.0,
        )
        for i in range(n)
    ]  # fmt: skip


def coverage(scenario: Scenario, studies: int, seeds: Sequence[int] = SEEDS) -> Iterator[Row]:
    """Simulate so many studies, and yield the rows of every response."""
    rng = np.random.default_rng(0)
    large = simulate(scenario, 2000, rng)
    for contrast, (cells, weights) in CONTRASTS.items():
        matched = match(Trials(tuple(large)), cells)
        truth: dict[Response, float] = {r: differences(matched, weights, r).means.mean() for r in RESPONSES}
        for n in seeds:
            held = {r: np.zeros(studies) for r in RESPONSES}
            small = {r: np.zeros(studies) for r in RESPONSES}
            for i in range(studies):
                matched = match(Trials(tuple(simulate(scenario, n, rng))), cells)
                for r in RESPONSES:
                    sample = differences(matched, weights, r)
                    low, high = interval(sample)
                    held[r][i] = low <= truth[r] <= high
                    small[r][i] = sign_flip(sample.means) < 0.05
            for r in RESPONSES:
                values = (float(x) for x in (truth[r], held[r].mean(), small[r].mean()))
                yield Row(scenario.name, n, r, contrast, *values)


def false_rulings(scenario: Scenario, studies: int, seeds: int) -> tuple[float, float]:
    """The shares of studies that confirm, and that decide, any of several claims although `a` has no effect."""
    rng = np.random.default_rng(1)
    claims = [
        Claim(
            id=f"{contrast} {response}",
            claim="",
            source="",
            where={},
            cells=tuple(cells),
            weights=tuple(weights),
            response=response,
            verb="higher",
        )
        for contrast, (cells, weights) in (("a", (CONTRASTS["a"][0], ())), ("a x b", CONTRASTS["a x b"]))
        for response in RESPONSES
    ]
    found = [rule(claims, Trials(tuple(simulate(scenario, seeds, rng)))) for _ in range(studies)]
    rulings = [{ruling.ruling for ruling in study} for study in found]
    confirmed = float(np.mean(["confirmed" in study for study in rulings]))
    return confirmed, float(np.mean([study != {"inconclusive"} for study in rulings]))


def main() -> None:
    """Print the tables."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print("| scenario | effect | response | truth | coverage, 3 seeds | 5 | 10 | p < 0.05, 3 seeds | 5 | 10 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        rows = list(coverage(scenario, studies))
        for contrast, response in product(CONTRASTS, RESPONSES):
            of = [row for row in rows if (row.contrast, row.response) == (contrast, response)]
            shares = " | ".join([f"{x.coverage:.1%}" for x in of] + [f"{x.significant:.1%}" for x in of])
            print(f"| {scenario.name} | {contrast} | `{response}` | {of[0].truth:+.3f} | {shares} |", flush=True)
    print("\n| scenario | seeds | any confirmed falsely | any ruled on falsely |\n|---|---|---|---|")
    for scenario, n in product((s for s in SCENARIOS if s.name.startswith("no effect")), SEEDS):
        confirmed, ruled = false_rulings(scenario, studies, n)
        print(f"| {scenario.name} | {n} | {confirmed:.1%} | {ruled:.1%} |", flush=True)


if __name__ == "__main__":
    main()
