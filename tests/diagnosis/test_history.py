"""Histories: constant memory, all recent rows, and an even sample of the older ones."""

import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

from stability.diagnosis.history import CAPACITY, History
from stability.diagnosis.judge import judge
from stability.diagnosis.table import Table

RECENT = 256


def append(history: History, names: Sequence[str], steps: ArrayLike, values: ArrayLike, measured: ArrayLike) -> None:
    values, measured = np.asarray(values, np.float32), np.asarray(measured, bool)
    history.append(Table(tuple(names), np.asarray(steps, np.int64), values, measured))


def fill(history: History, begin: int, end: int, block: int = 1000, **every: int) -> History:
    """Append rows. The value of a signal is the step; `loss=10` is measured at every 10th step."""
    for first in range(begin, end, block):
        rows = np.arange(first, min(end, first + block))
        measured = np.stack([rows % stride == 0 for stride in every.values()], axis=1)
        append(history, tuple(every), rows, np.repeat(rows[:, None], len(every), axis=1), measured)
    return history


def test_all_rows_are_kept_if_they_fit() -> None:
    history = fill(History(), 10, 3500, loss=1, rare=10)
    table = history.table()
    np.testing.assert_array_equal(table.steps, np.arange(10, 3500))
    np.testing.assert_array_equal(table["loss"], table.steps)
    np.testing.assert_array_equal(table.measured[:, 1], table.steps % 10 == 0)
    np.testing.assert_array_equal(np.isnan(table["rare"]), ~table.measured[:, 1])
    assert (len(history), history.thinned) == (3490, False)
    assert [str(table.steps.dtype), str(table.values.dtype)] == ["int64", "float32"]


def test_many_rows_are_sampled_evenly_in_constant_memory() -> None:
    history = fill(History(), 0, 100_000, loss=1, rare=10)
    tracemalloc.start()
    fill(history, 100_000, 500_000, loss=1, rare=10)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    table = history.table()
    assert history.thinned
    assert CAPACITY // 2 < len(history) <= CAPACITY
    assert table.steps[0] == 0
    np.testing.assert_array_equal(table.steps[-RECENT:], np.arange(500_000 - RECENT, 500_000))
    np.testing.assert_array_equal(table["loss"], table.steps.astype(np.float32))
    per_tenth = np.histogram(table.steps, 10, (0, 500_000))[0][:9]
    assert per_tenth.max() - per_tenth.min() <= 3
    assert np.diff(table.steps).max() < 512


@pytest.mark.parametrize("block", [3, 7, 10_000])
def test_the_size_of_the_blocks_makes_no_difference(block: int) -> None:
    a, b = (fill(History(), 0, 6000, size, loss=1, rare=10).table() for size in (64, block))
    assert a.names == b.names
    for column in ("steps", "values", "measured"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column))


@pytest.mark.parametrize("every", [2, 3, 10])
def test_rare_signals_keep_their_share(every: int) -> None:
    table = fill(History(), 0, 100_001, loss=1, rare=every).table()
    past = table.steps[: -2 * RECENT]
    # All rows measure the loss. A row with the rare signal is `every` times as likely to be kept as another.
    assert (past % every == 0).mean() == pytest.approx(1 / (2 - 1 / every), abs=0.1)


def test_very_rare_measurements_are_almost_always_kept() -> None:
    table = fill(History(), 0, 100_001, loss=1, rare=1000).table()
    assert (table.steps % 1000 == 0).sum() > 80


def test_a_rare_signal_in_rows_of_its_own_does_not_displace_the_others() -> None:
    history = History()
    for first in range(0, 100_000, 1000):
        steps = np.arange(first, first + 1000)
        rare = steps % 20 == 7
        append(history, ("loss", "norm"), steps, np.ones((1000, 2)), np.stack([~rare, rare], axis=1))
    loss, norm = history.table().measured[: -2 * RECENT].mean(axis=0)
    assert 0.4 < loss < 0.6
    assert loss + norm == 1


def test_the_first_row_that_is_not_finite_is_kept() -> None:
    history = History()
    for first in range(0, 100_000, 1000):
        steps = np.arange(first, first + 1000)
        values = np.ones((1000, 3))
        values[:, 0][np.isin(steps, [12_345, 12_346])] = np.nan
        values[:, 1][steps == 12_347] = -np.inf
        values[:, 2][steps % 2 == 1] = np.nan  # not measured
        measured = np.ones((1000, 3), bool)
        measured[:, 2] = steps % 2 == 0
        append(history, ("loss", "grad_norm", "lr"), steps, values, measured)
    table = history.table()
    bad = table.measured & ~np.isfinite(table.values)
    assert 12_345 in table.steps[bad[:, 0]]
    assert table.steps[bad[:, 1]].tolist() == [12_347]
    assert not bad[:, 2].any()
    assert judge(table, table).evidence["non_finite losses"] == f"{bad[:, 0].sum()} of {len(table.steps)}"


def test_many_signals_that_are_not_finite_do_not_fill_the_history() -> None:
    history = History()
    names = [f"s{i}" for i in range(1500)]
    for first in range(0, 5000, 500):
        values = np.ones((500, 1500), np.float32)
        broken = np.arange(first // 4, first // 4 + 250)
        values[np.arange(250), broken] = np.nan
        append(history, names, range(first, first + 500), values, np.ones(values.shape, bool))
    assert len(history) <= CAPACITY
    assert 0 in history.table().steps


def test_new_and_missing_signals_count_as_not_measured() -> None:
    history = History()
    append(history, ("a", "b"), [0, 1], [[1, 2], [3, 4]], [[True, True], [True, False]])
    append(history, ("c", "a"), [5], [[6, 7]], [[True, True]])
    append(history, (), [8], np.zeros((1, 0)), np.zeros((1, 0)))
    table = history.table()
    assert table.names == ("a", "b", "c")
    nan = np.nan
    np.testing.assert_array_equal(table.steps, [0, 1, 5, 8])
    np.testing.assert_array_equal(table.values, [[1, 2, nan], [3, nan, nan], [7, nan, 6], [nan] * 3])
    np.testing.assert_array_equal(table.measured, ~np.isnan(table.values))


def test_an_empty_history_is_an_empty_table() -> None:
    history = History()
    assert (len(history), history.thinned) == (0, False)
    assert history.table().values.shape == (0, 0)


@pytest.mark.parametrize("length", [100, 3000, 50_000])
def test_rows_are_appended_after_a_truncation(length: int) -> None:
    history = fill(History(), 0, length, loss=1)
    before = history.table()
    history.truncate(length // 2)
    np.testing.assert_array_equal(history.table().steps, before.steps[before.steps < length // 2])
    fill(history, length // 2, 2 * length, loss=1)
    table = history.table()
    assert (np.diff(table.steps) > 0).all()
    np.testing.assert_array_equal(table.steps[-100:], np.arange(2 * length - 100, 2 * length))
    assert len(history) <= CAPACITY
    history.truncate(0)
    assert len(history) == 0


def test_a_table_does_not_change_with_its_history() -> None:
    history = fill(History(), 0, 100, loss=1)
    table = history.table()
    fill(history, 100, 9000, loss=1)
    np.testing.assert_array_equal(table.steps, np.arange(100))


def _training(kind: str, steps: int) -> Table:
    """A made-up training whose verdict is known."""
    rng = np.random.default_rng(0)
    loss = 80 - np.linspace(0, 60 if kind == "falling" else 0, steps) + rng.normal(size=steps)
    norm = 20 * np.exp(0.3 * rng.normal(size=steps))
    if kind == "exploded":
        norm[steps // 3 :] *= 50
        loss[steps // 3 :] += 30
    values = np.stack([loss, norm, np.ones(steps)], axis=1).astype(np.float32)
    return Table(("loss", "grad_norm", "blank_fraction"), np.arange(steps), values, np.ones(values.shape, bool))


@pytest.mark.parametrize(
    ("kind", "outcome"), [("falling", "undecided"), ("flat", "blank_collapse"), ("exploded", "exploded")]
)
def test_the_verdict_is_the_same_as_on_all_rows(kind: str, outcome: str) -> None:
    whole = _training(kind, 100_000)
    history = History()
    history.append(whole)
    rates = Table(("per",), np.array([99_999]), np.ones((1, 1), np.float32), np.ones((1, 1), bool))
    a, b = judge(whole, rates), judge(history.table(), rates)
    assert a.outcome == b.outcome == outcome
    if kind == "exploded":
        assert a.onset_step is not None
        assert b.onset_step is not None
        assert abs(a.onset_step - b.onset_step) < 200


def test_diagnosis_imports_no_trainer() -> None:
    code = (
        "import sys, stability.diagnosis.history, stability.diagnosis.readers; "
        "assert not {'torch', 'hydra', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
