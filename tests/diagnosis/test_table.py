"""The files of signals: every float32 comes back, a crash costs at most the line it cut."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.diagnosis import table as signals
from tests.support.tables import append_rows


def _any_floats(rows: int, columns: int) -> NDArray[np.float32]:
    """Every bit pattern is as likely: subnormal, huge, nan, inf."""
    bits = np.random.default_rng(0).integers(0, 2**32, (rows, columns), dtype=np.uint32)
    return bits.view(np.float32)


def test_values_read_back_bit_identical(tmp_path: Path) -> None:
    path = tmp_path / "signals.csv"
    values = _any_floats(5000, 3)
    values[:4, 0] = [np.nan, np.inf, -np.inf, -0.0]
    for first in range(0, len(values), 50):
        append_rows(path, ("a", "b.c", "d"), range(first, first + 50), values[first : first + 50])
    table = signals.read_table(path)
    assert table.names == ("a", "b.c", "d")
    np.testing.assert_array_equal(table.steps, np.arange(len(values)))
    np.testing.assert_array_equal(table.values, values)
    np.testing.assert_array_equal(np.signbit(table["a"][3]), True)
    assert table.measured.all()


def test_not_measured_differs_from_nan(tmp_path: Path) -> None:
    path = tmp_path / "signals.csv"
    values = np.array([[1, np.nan], [np.nan, 3]], np.float32)
    measured = np.array([[True, True], [False, True]])
    signals.append_table(path, signals.Table(("a", "b"), np.arange(2), values, measured))
    assert path.read_text() == "step,a,b\n0,1,nan\n1,,3\n"
    table = signals.read_table(path)
    np.testing.assert_array_equal(table.measured, [[True, True], [False, True]])
    np.testing.assert_array_equal(table["a"], np.array([1, np.nan], np.float32))
    with pytest.raises(KeyError):
        table["c"]


@pytest.mark.parametrize("after", [-1, 0, 1, 4998, 19_998, 19_999, 30_000])
def test_rows_after_a_step(tmp_path: Path, after: int) -> None:
    path = tmp_path / "signals.csv"
    steps = np.arange(1, 20_001)
    append_rows(path, ("a", "b"), steps, _any_floats(len(steps), 2))
    whole, tail = signals.read_table(path), signals.read_table(path, after)
    np.testing.assert_array_equal(tail.steps, steps[steps > after])
    np.testing.assert_array_equal(tail.values, whole.values[steps > after])


def test_some_of_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "signals.csv"
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    signals.append_table(path, signals.Table(("a", "b", "c"), np.arange(4), values, values != 7))
    whole, some = signals.read_table(path), signals.read_table(path, only=("c", "b", "other"))
    assert some.names == ("b", "c")
    np.testing.assert_array_equal(some.steps, whole.steps)
    np.testing.assert_array_equal(some.values, whole.values[:, 1:])
    np.testing.assert_array_equal(some.measured, whole.measured[:, 1:])
    assert signals.read_table(path, only=("other",)).steps.tolist() == [0, 1, 2, 3]


def test_every_possible_cut_loses_the_cut_line_only(tmp_path: Path) -> None:
    path = tmp_path / "signals.csv"
    append_rows(path, ("a", "b"), range(3), np.array([[1.5, -2], [np.nan, 4], [5, 6]], np.float32))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        assert list(signals.read_table(path).steps) == list(range(max(0, lines - 1)))
        signals.truncate(path, 2, ("a", "b"))  # as when a training goes on from step 2
        kept = list(range(min(2, max(0, lines - 1))))
        assert list(signals.read_table(path).steps) == kept
        append_rows(path, ("a", "b"), [2], np.array([[7, 8]], np.float32))
        assert list(signals.read_table(path).steps) == [*kept, 2]


def test_truncate(tmp_path: Path) -> None:
    path = tmp_path / "signals.csv"
    signals.truncate(path, 3, ("a",))
    assert not path.exists()
    append_rows(path, ("a",), range(0, 10, 2), np.arange(5, dtype=np.float32)[:, None])
    before = path.read_bytes()
    signals.truncate(path, 9, ("a",))
    assert path.read_bytes() == before
    signals.truncate(path, 5, ("a",))
    assert list(signals.read_table(path).steps) == [0, 2, 4]
    signals.truncate(path, 0, ("a",))
    assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("other", [("a",), ("a", "b", "c"), ("b", "a"), ("a", "x")])
def test_rows_with_other_columns_are_not_gone_on_with(tmp_path: Path, other: tuple[str, ...]) -> None:
    path = tmp_path / "signals.csv"
    append_rows(path, other, range(3), np.ones((3, len(other)), np.float32))
    before = path.read_bytes()
    with pytest.raises(StabilityError, match=r"signals\.csv has other columns .*fresh=true"):
        signals.truncate(path, 2, ("a", "b"))
    assert path.read_bytes() == before
    signals.truncate(path, 0, ("a", "b"))  # nothing of it stays
    append_rows(path, ("a", "b"), [0], np.ones((1, 2), np.float32))
    assert signals.read_table(path).names == ("a", "b")


def test_a_missing_file_is_an_empty_table(tmp_path: Path) -> None:
    table = signals.read_table(tmp_path / "signals.csv")
    assert table.names == ()
    assert table.values.shape == table.measured.shape == (0, 0)


@pytest.mark.parametrize("text", ["step,a\n0,x\n", "step,a\n0,1\n1,2,3\n", "step,a\nzero,1\n", "step,a\n\n"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signals.csv"
    path.write_text(text)
    with pytest.raises(StabilityError, match=r"signals\.csv is not a table of signals"):
        signals.read_table(path)
