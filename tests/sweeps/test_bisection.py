"""The search for the largest healthy learning rate: its steps against known boundaries, and the real command line."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stability.diagnosis.verdict import Verdict
from stability.sweeps.bisection import Limits, next_value
from tests.support.commandline import CommandLine, wait_for
from tests.support.sweeps import BASIC, STACKED, trials

SEARCH = Limits(start=0.01, lowest=1e-4, highest=10, tolerance=1.35)
COMMAND = ("--multirun", "hydra/sweeper=bisection")
# Learns a little in 40 steps, and explodes at a learning rate of 1.
QUICK = (
    *("model.layers=1", "model.units=24", "model.input_dropout=0", "model.rnn_dropout=0", "aug=none", "steps=40"),
    *("optimizer.epsilon=1e-8", "optimizer.clip_norm=null", "schedule.warmup_steps=1", "checkpoint_every=20"),
    *("data.synthetic.noise=0.1", "data.synthetic.drift=0"),
)


def search(outcome_at: "dict[str, tuple[float, float]]", **settings: Any) -> dict[float, str]:
    """Return {rate: outcome} of a search in which these outcomes lie between these rates."""
    outcomes: dict[float, str] = {}
    while (rate := next_value(outcomes, SEARCH._replace(**settings))) is not None:
        assert rate not in outcomes
        (outcomes[rate],) = (name for name, (above, below) in outcome_at.items() if above < rate <= below)
    return outcomes


def test_a_search_halves_its_bracket() -> None:
    limit = math.sqrt(0.1)  # below 0.316
    assert [*search({"stable": (0, limit), "exploded": (limit, math.inf)})] == [0.01, 0.1, 1, 0.316, 0.562, 0.421]
    down = search({"stable": (0, 2e-4), "non_finite": (2e-4, math.inf)})
    assert [*down] == [0.01, 0.001, 1e-4, 3.16e-4, 1.78e-4, 2.37e-4]


@pytest.mark.parametrize("tolerance", [1.05, 1.35, 4, 1000])
def test_the_last_bracket_holds_the_boundary_within_the_tolerance(tolerance: float) -> None:
    for limit in np.geomspace(1.1e-4, 9.9, 40):
        tried = search({"slow": (0, limit), "mode_collapse": (limit, math.inf)}, tolerance=tolerance)
        low, high = (max(r for r in tried if r <= limit), min(r for r in tried if r > limit))
        assert high / low <= tolerance
        assert len(tried) <= 2 + 4 + math.log2(math.log(10) / math.log(min(tolerance, 9))) + 2


def test_a_rate_at_which_nothing_was_learned_is_followed_by_a_higher_one() -> None:
    tried = search({"undecided": (0, 0.5), "stable": (0.5, 0.7), "exploded": (0.7, math.inf)})
    assert [*tried][:4] == [0.01, 0.1, 1, 0.316]  # nothing healthy among the decades: looked for between them
    low, high = (max(r for r in tried if r <= 0.7), min(r for r in tried if r > 0.7))
    assert tried[low] == "stable"
    assert high / low <= 1.35


def test_a_rate_at_which_nothing_was_learned_may_be_too_high() -> None:
    tried = search({"stable": (0, 0.002), "blank_collapse": (0.002, math.inf)})
    assert [*tried][:5] == [0.01, 0.1, 1, 10, 0.001]
    low, high = (max(r for r in tried if r <= 0.002), min(r for r in tried if r > 0.002))
    assert high / low <= 1.35


def test_a_search_ends_at_its_limits() -> None:
    assert [*search({"stable": (0, math.inf)})] == [0.01, 0.1, 1, 10]
    assert [*search({"stable": (0, math.inf)}, highest=0.12345678)] == [0.01, 0.1, 0.12345678]
    assert [*search({"exploded": (0, math.inf)})] == [0.01, 0.001, 1e-4]
    assert [*search({"undecided": (0, math.inf)})] == [0.01, 0.1, 1, 10, 0.001, 1e-4]
    assert [*search({"undecided": (0, math.inf)}, lowest=0.01, highest=0.01)] == [0.01]


def test_every_search_ends() -> None:
    """Whatever the outcomes are, also where there is more than one boundary, or none."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        outcomes: dict[float, str] = {}
        tolerance = float(rng.choice([1.0001, 1.1, 1.35]))
        while (rate := next_value(outcomes, SEARCH._replace(tolerance=tolerance))) is not None:
            assert rate not in outcomes
            assert 1e-4 <= rate <= 10
            outcomes[rate] = str(rng.choice(["stable", "slow", "undecided", "blank_collapse", "exploded"]))
        assert len(outcomes) < 40


def verdicts(study: Path) -> dict[float, str]:
    """{learning rate: outcome} of the finished trials."""
    return {
        float(path.parent.name.split("-lr")[1].split("-noise")[0]): json.loads(path.read_text())["outcome"]
        for path in study.glob("*/verdict.json")
    }


@pytest.mark.slow
def test_a_bisection_that_was_killed_continues_and_a_crash_ends_only_its_own_search(cli: CommandLine) -> None:
    study = cli.folder / "outputs/single"
    command = (*COMMAND, *QUICK, "hydra.sweeper.start=0.1", "hydra.sweeper.tolerance=4", "device=nonsense,cpu")
    killed = cli.start(*command)
    wait_for(lambda: any(study.glob("eps1e-08-lr1-*/signals.csv")), killed)
    killed.kill()
    killed.communicate()
    (first,) = study.glob("eps1e-08-lr0.1-*/verdict.json")
    written = first.stat().st_mtime_ns

    end = cli.run(*command, status=1)
    tried = verdicts(study)
    assert first.stat().st_mtime_ns == written
    healthy = [rate for rate, outcome in tried.items() if outcome in ("stable", "slow")]
    low, high = max(healthy), min(rate for rate in tried if rate > max(healthy))
    assert high / low <= 4
    assert 0.1 in tried
    assert tried[1.0] == "exploded"
    (row,) = csv.DictReader((study / "boundary.csv").read_text().splitlines())
    assert row["brackets"] == f"{low:g} to {high:g}"
    assert float(row["lr"]) == pytest.approx(math.sqrt(low * high), rel=0.01)
    assert "one seed: no interval" in row["notes"]
    assert f"{low:g} to {high:g}" in end.out
    (_, _, message) = end.err.rpartition("error: ")
    assert "1 of 2 searches ended early; the others are finished." in message
    assert "  device=nonsense: the trial at lr 0.1 crashed: see outputs/single/eps1e-08-lr0.1-" in message
    assert "run the same command again" in message

    (crashed,) = (path.parent for path in study.glob("*/train.log") if not (path.parent / "verdict.json").exists())
    (crashed / "verdict.json").write_text(Verdict("bad_data", "input", 0, 0).to_json())
    again = cli.run(*command, status=1)
    assert "Launching" not in again.out  # nothing was left to train
    assert f"{low:g} to {high:g}" in again.out
    problem = "the trial at lr 0.1 has bad data, which no other value mends"
    assert f"device=nonsense: {problem}: see outputs/single/{crashed.name}" in again.err
    assert first.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("schedule.lr_max=0.001,0.01", ["The bisection chooses schedule.lr_max itself", "hydra.sweeper.start=VALUE"]),
        ("hydra.sweeper.tolerance=1", ["hydra.sweeper.tolerance=1: give a number above 1"]),
        (
            "hydra.sweeper.start=20",
            ["start=20 is not between hydra.sweeper.lowest=0.0001 and hydra.sweeper.highest=10"],
        ),
        ("hydra.sweeper.lowest=low", ["hydra.sweeper.lowest=low: give a number above 0"]),
        ("hydra.sweeper.lowest=1e-5", ["lowest=1e-05 is below schedule.lr_min=0.0001", "higher hydra.sweeper.lowest"]),
        ("hydra.sweeper.over=optimizer.epsilon", ["hydra.sweeper.over"]),
        ("seed=range(0)", ["nothing to search", "seed=range(0)"]),
        ("optimizer.epsilon=0.1,1e-1", ["Two searches need the same trial, eps0.1-lr0.01-", "the same value twice"]),
    ],
)
def test_wrong_settings_of_the_bisection_are_refused(cli: CommandLine, override: str, parts: list[str]) -> None:
    message = cli.refuse("--multirun", "experiment=boundary", override)
    assert all(part in message for part in parts), message
    assert [*cli.folder.iterdir()] == []


@pytest.mark.slow
def test_a_bisection_says_why_it_cannot_train_a_trial(cli: CommandLine) -> None:
    search = (*STACKED, "hydra/sweeper=bisection", "hydra.sweeper.highest=0.01")
    cli.run(*search)
    first = next(iter(trials(cli).values()))
    shutil.rmtree(first)
    first.touch()
    err = cli.run(*search, status=1).err
    assert err.count(f"Cannot write in outputs/single/{first.name}: File exists") == 1
    assert "1 of 1 search ended early" in err
    by_number = cli.run(*search, "hydra.sweep.subdir=${hydra.job.num}", status=1).err
    assert "hydra.job.num" in by_number


@pytest.mark.slow
def test_a_bisection_trains_its_rounds_in_stacks(cli: CommandLine) -> None:
    search = ("hydra/sweeper=bisection", "hydra.sweeper.tolerance=5", "hydra.sweeper.highest=0.1", "seed=0,1")
    for launcher in (STACKED, BASIC):
        cli.run(*launcher, *search, f"study={launcher[1].rpartition('=')[2]}")
    tables = [(cli.folder / "outputs" / study / "boundary.csv").read_text() for study in ("stacked", "basic")]
    assert tables[0] == tables[1]
