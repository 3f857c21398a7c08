"""The figure of a trial is drawn whatever the trial's folder holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.diagnosis import run_figure as figures
from tests.support.tables import append_rows

_NAMES = ("loss", "grad_norm", "blank_fraction")


def _write(folder: Path, values: NDArray[np.float32], first: int = 0) -> None:
    append_rows(folder / "signals.csv", _NAMES, range(first, first + len(values)), values)


def _healthy(rows: int) -> NDArray[np.float32]:
    x = np.linspace(0, 1, rows)
    return np.stack([300 * np.exp(-3 * x), 20 * np.exp(-x), 1 - 0.6 * x], axis=1).astype(np.float32)


def _panels(folder: Path, monkeypatch: pytest.MonkeyPatch, clip: float | None = None) -> dict[str, list[str]]:
    """Return the texts in the figure: the title, and {axis label: texts} of the panels."""
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            drawn.append(self)

    monkeypatch.setattr(figures, "Figure", Kept)
    path = figures.draw_run(folder, clip)
    assert path == folder / "run.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    title = figure.axes[0].get_title().splitlines()
    return {"title": title} | {
        axes.get_ylabel().split("\n")[0]: [text.get_text() for text in axes.texts] for axes in figure.axes
    }


def test_a_diverged_trial_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _healthy(500)
    values[350:, :2] *= np.exp(np.arange(150) / 2)[:, None]
    values[450:, 0] = np.nan
    values[440:, 1] = np.inf
    values[440:, 2] = -np.inf
    _write(tmp_path, values)
    validation = np.array([[1.2, 300], [np.nan, np.nan]], np.float32)
    append_rows(tmp_path / "validation.csv", ("per", "loss"), [199, 399], validation)
    verdict = {"outcome": "non_finite", "cause": "gradient_explosion", "onset_step": 350}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    panels = _panels(tmp_path, monkeypatch, clip=10)
    assert panels["title"] == [tmp_path.name, "non_finite: gradient_explosion"]
    assert panels["training loss"] == ["not finite at 440", "onset at 350"]
    assert panels["gradient norm"] == ["clipped above 10"]
    assert panels["validation PER"] == []


@pytest.mark.parametrize("rows", [0, 1, 2, 30_000])
def test_any_number_of_rows_is_drawn_without_validation_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    _write(tmp_path, _healthy(rows))
    panels = _panels(tmp_path, monkeypatch)
    assert panels["title"] == [tmp_path.name, "no verdict yet"]
    assert panels["validation PER"] == ["not measured"]
    assert panels["training loss"] == ([] if rows else ["not measured"])
    assert panels["gradient norm"] == ([] if rows else ["not measured"])


def test_an_empty_folder_gives_an_empty_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _panels(tmp_path, monkeypatch)["blank fraction"] == ["not measured"]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0, 3e38, 1e-45])
def test_values_that_a_log_scale_cannot_show_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    _write(tmp_path, np.full((5, 3), value, np.float32), first=7)
    expected = [] if np.isfinite(value) else ["not measured", "not finite at 7"]
    assert _panels(tmp_path, monkeypatch)["training loss"] == expected


def test_a_dollar_sign_begins_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "$a$b^{_$x$"
    folder.mkdir()
    _write(folder, _healthy(30))
    assert _panels(folder, monkeypatch)["title"][0].replace("\\$", "$") == folder.name


def test_a_damaged_verdict_is_named(tmp_path: Path) -> None:
    _write(tmp_path, _healthy(30))
    (tmp_path / "verdict.json").write_text("{")
    with pytest.raises(StabilityError, match=r"verdict\.json is damaged.*Delete it"):
        figures.draw_run(tmp_path)
