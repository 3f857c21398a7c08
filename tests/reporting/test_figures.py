"""The figures of a study show its trials, whatever factors vary."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stability.analysis.boundary import Boundary
from stability.analysis.effects import effects
from stability.analysis.trial import Trial, Trials
from stability.analysis.trials import read_trials
from stability.diagnosis.outcomes import MARKS
from stability.reporting.figures import draw_curves, draw_effects, draw_phase, save_figures
from tests.support.studies import EPSILON, LR, NOISE, write_study
from tests.support.tables import append_rows
from tests.support.trials import trial


def crossed(levels: Mapping[str, list[Any]], outcome: str = "stable", seeds: int = 1) -> Trials:
    """Trials of every combination; `x__y` is the factor x.y."""
    cells = [dict(zip(levels, cell, strict=True)) for cell in product(*levels.values())]
    made = [trial(seed, outcome=outcome, **cell) for cell in cells for seed in range(seeds)]
    return Trials(tuple(made))


PHASE: dict[str, list[Any]] = {
    "optimizer__epsilon": [1e-8, 1e-4, 0.1],
    "schedule__lr_max": [1e-4, 1e-2, 1.0],
    "aug__white_noise_std": [0.25, 1.0],
}


def marks(panel: Axes) -> list[tuple[Line2D, tuple[float, float]]]:
    """The trials drawn in a panel: for each the line that it is a point of, and its place."""
    drawn = (line for line in panel.lines if line.get_marker() in {mark.marker for mark in MARKS.values()})
    return [(line, (float(x), float(y))) for line in drawn for x, y in np.asarray(line.get_xydata())]


def test_every_trial_has_a_mark_at_its_cell() -> None:
    picture = draw_phase(crossed(PHASE, seeds=3))
    assert picture is not None
    left, right = (panel for panel in picture.figure.axes if panel.get_visible())
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("noise 0.25", "noise 1")
    assert (left.get_xlabel(), left.get_ylabel()) == ("lr", "epsilon")
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.0001", "0.01", "1"]
    places = Counter(place for _, place in marks(right))
    assert places == {(x, y): 3 for x in (-4.0, -2.0, 0.0) for y in (-8.0, -4.0, -1.0)}
    (ratio, *_) = (line for line in left.lines if line.get_linestyle() == "--")
    (x0, y0), slope = ratio.get_xy1(), ratio.get_slope()  # type: ignore[attr-defined]
    assert (slope, x0 - y0) == (1, round(x0 - y0))  # lr/ε is the same along it, and a power of ten


def test_every_outcome_is_drawn_with_its_mark() -> None:
    for name, mark in MARKS.items():
        picture = draw_phase(crossed({"optimizer__epsilon": [1e-8, 0.1], "schedule__lr_max": [0.1, 1.0]}, name))
        assert picture is not None
        drawn = marks(picture.figure.axes[0])
        assert {(line.get_marker(), line.get_color()) for line, _ in drawn} == {(mark.marker, mark.colour)}
        (legend,) = picture.figure.legends
        assert name in [text.get_text() for text in legend.get_texts()]


def test_many_seeds_are_drawn_as_numbers() -> None:
    picture = draw_phase(crossed(PHASE, seeds=20))
    assert picture is not None
    assert len(marks(picture.figure.axes[0])) == 9
    assert [text.get_text() for text in picture.figure.axes[0].texts].count("20") == 9


@pytest.mark.parametrize("seeds", [1, 3, 5, 9, 20])
@pytest.mark.parametrize("rates", [[1e-4, 1e-2, 1.0], [0.01 * 1.2**n for n in range(24)]])
def test_no_two_marks_of_a_phase_diagram_overlap(seeds: int, rates: list[float]) -> None:
    outcomes = ["stable", "slow", "blank_collapse", "non_finite"]
    cells = [(e, lr, s) for e in PHASE["optimizer__epsilon"] for lr in rates for s in range(seeds)]
    made = [
        trial(s, outcome=outcomes[(s + n) % 4], optimizer__epsilon=e, schedule__lr_max=lr)
        for n, (e, lr, s) in enumerate(cells)
    ]
    edge = Boundary({EPSILON: 1e-4}, rates[1], rates[0], rates[2], ())
    picture = draw_phase(Trials(tuple(made)), [edge])
    assert picture is not None
    picture.figure.draw_without_rendering()
    (panel,) = picture.figure.axes
    drawn = marks(panel)
    at = np.array([line.get_transform().transform(place) for line, place in drawn])
    sizes = np.array([line.get_markersize() for line, _ in drawn]) * picture.figure.dpi / 72
    apart = np.abs(at[:, None] - at).max(axis=2) + np.eye(len(at)) * 1e3
    assert (apart >= (sizes[:, None] + sizes) / 2).all()
    (bar,) = (x for x in panel.lines if len(x.get_xdata()) == 2 and x.get_linestyle() == "-")  # type: ignore[arg-type]
    height = bar.get_transform().transform(bar.get_xydata())[0, 1]
    assert (np.abs(at[:, 1] - height) > sizes / 2).all()


def test_lines_of_a_ratio_are_next_to_trials() -> None:
    factors = {"optimizer__epsilon": [1e-8, 0.1], "schedule__lr_max": [0.002, 0.005]}
    picture = draw_phase(crossed(factors))
    assert picture is not None
    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    assert texts == ["lr/ε 0.01", "lr/ε 0.1", "lr/ε 1e5", "lr/ε 1e6"]


def test_axes_without_numbers_and_pooled_factors() -> None:
    factors = {"loss__reduction": ["per_label_mean", "per_utterance_sum"], "precision__dtype": ["bf16", "fp16", "fp32"]}
    picture = draw_phase(crossed(factors))
    assert picture is not None
    panel = picture.figure.axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["bf16", "fp16", "fp32"]
    both = draw_phase(crossed(PHASE | {"batch__size": [48, 64], "loss__reduction": ["a", "b"]}))
    assert both is not None
    assert both.caption.endswith("Pooled: batch, loss.")


@pytest.mark.parametrize("levels", [[0.002, 0.005], [0.0, 1.0], [True, False], [None, 10.0], [(1, 2), (3,)]])
def test_a_study_of_one_factor_of_any_kind_has_a_phase_diagram(levels: list[Any]) -> None:
    picture = draw_phase(crossed({"optimizer__clip_norm": levels}))
    assert picture is not None
    assert len(marks(picture.figure.axes[0])) == 2
    assert draw_phase(crossed({}, seeds=3)) is None


@pytest.mark.parametrize("level", [lambda n: n / 2000, lambda n: f"text {n}"])
def test_an_axis_of_many_levels_has_few_ticks(level: Callable[[int], Any]) -> None:
    picture = draw_phase(crossed({"model__dropout": [level(n) for n in range(1000)]}))
    assert picture is not None
    picture.figure.draw_without_rendering()
    (panel,) = picture.figure.axes
    assert 4 <= len(panel.get_xticks()) <= 24
    assert len(marks(panel)) == 1000


def test_boundaries_are_drawn_in_their_panel() -> None:
    edges = [
        Boundary({EPSILON: 1e-4, NOISE: 1.0}, 0.03, 0.02, 0.05, ()),
        Boundary({EPSILON: 0.1, NOISE: 0.25}, 0.3, 0.2, 0.5, ()),
    ]
    picture = draw_phase(crossed(PHASE), edges)
    assert picture is not None
    right = picture.figure.axes[1]
    (bar,) = (line for line in right.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-")  # type: ignore[arg-type]
    assert np.allclose(bar.get_xdata(), np.log10([0.02, 0.05]))
    assert np.allclose(bar.get_ydata(), -4)


def test_curves_show_every_outcome_and_its_onset(tmp_path: Path) -> None:
    outcomes = ["stable", "slow", "undecided", "blank_collapse", "mode_collapse", "exploded", "non_finite"]
    levels = [10.0**-k for k in range(14)]
    study = write_study(
        tmp_path / "study",
        {LR: levels, "seed": [0, 1]},
        lambda t: outcomes[max(0, levels.index(t[LR]) - 7)],
        steps=30,
    )
    trials = read_trials([study])
    picture = draw_curves(trials)
    assert picture is not None
    assert "8 of 14 cells are shown" in picture.caption
    texts = [(text.get_text(), axes) for axes in picture.figure.axes for text in axes.texts]
    rows = {text: axes for text, axes in texts if text.startswith("lr ")}
    assert len(rows) == 8
    assert all(any(outcome in text for text in rows) for outcome in outcomes)
    (failed,) = (axes for text, axes in rows.items() if "exploded" in text)
    curves = [line for line in failed.lines if len(line.get_xdata()) == 30]  # type: ignore[arg-type]
    assert len(curves) == 2
    assert [line.get_xdata()[0] for line in failed.lines if line.get_marker() == "v"] == [6, 6]  # type: ignore[index]


def test_a_cell_of_many_factors_does_not_push_the_panels_apart(tmp_path: Path) -> None:
    factors = (
        LR,
        EPSILON,
        NOISE,
        "optimizer.weight_decay_day",
        "schedule.warmup_steps",
        "data.synthetic.train_utterances",
    )
    levels: dict[str, list[Any]] = {"seed": [0], **{name: [1, 2] for name in factors}}
    picture = draw_curves(read_trials([write_study(tmp_path / "study", levels, lambda _: "stable", steps=30)]))
    assert picture is not None
    picture.figure.draw_without_rendering()
    first, second = (axes.get_position() for axes in picture.figure.axes[:2])
    assert second.x0 - first.x1 < first.width / 2


def test_trials_whose_tables_are_gone_have_empty_curves(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", {"seed": [0]}, lambda _: "stable", steps=30)
    trials = read_trials([study])
    for table in study.glob("*/*.csv"):
        table.unlink()
    assert draw_curves(trials) is not None
    assert draw_curves(Trials(())) is None


@pytest.mark.parametrize(("seeds", "marker", "face"), [(1, "x", None), (3, "o", "white"), (7, "o", "#0072B2")])
def test_effects_of_few_seeds_are_marked(seeds: int, marker: str, face: str | None) -> None:
    rng = np.random.default_rng(0)
    made = [trial(s, per=x + rng.normal(0, 0.1), a=x) for s in range(seeds) for x in (0.1, 0.4)]
    found = effects(Trials(tuple(made)))
    picture = draw_effects(found)
    assert picture is not None
    per = picture.figure.axes[1]
    (mark,) = (line for line in per.lines if line.get_marker() == marker)
    (effect,) = (e for e in found if e.response == "per")
    assert mark.get_xdata() == [effect.effect]
    assert face is None or mark.get_markerfacecolor() == face
    spans = [line.get_xdata() for line in per.lines if line.get_marker() == "None" and line.get_color() == "#0072B2"]
    assert len(spans) == (seeds > 1)
    if spans:
        assert np.allclose(spans[0], [effect.low, effect.high])


def test_effects_end_where_they_can_and_no_effect_is_marked() -> None:
    rng = np.random.default_rng(0)
    made = [
        trial(
            s,
            outcome="stable" if x else "exploded",
            healthy=bool(x),
            per=float(np.clip(x - 0.1 + rng.normal(0, 0.3), 0, 1)),
            a=x,
        )
        for s in range(2)
        for x in (0, 1)
    ]
    picture = draw_effects(effects(Trials(tuple(made))))
    assert picture is not None
    for panel in picture.figure.axes[:2]:
        assert 1 < panel.get_xlim()[1] <= 1.0801
    for panel in picture.figure.axes[2:]:
        ticks = [tick for tick in panel.get_xticks() if panel.get_xlim()[0] <= tick <= panel.get_xlim()[1]]
        assert len(ticks) >= 3
        assert 1 in ticks
    (legend,) = picture.figure.legends
    assert "no effect" in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.0, 1e3, ["1", "10", "100", "1000"]),
        (8.0, 25.0, ["10", "20"]),
        (30.0, 31.0, ["20", "50"]),
        (2e-7, 3e9, ["1e-5", "1", "1e5"]),
        (1e5, 1e5, ["1e5", "2e5"]),
    ],
)
def test_log_axes_have_readable_ticks(tmp_path: Path, low: float, high: float, ticks: list[str]) -> None:
    study = write_study(tmp_path / "study", {"seed": [0]}, lambda _: "stable", steps=30)
    trials = read_trials([study])
    path = study / "trial0-seed0" / "signals.csv"
    path.unlink()
    append_rows(path, ("loss", "grad_norm"), range(30), np.tile(np.geomspace(low, high, 30), (2, 1)).T.astype("f4"))
    picture = draw_curves(trials)
    assert picture is not None
    picture.figure.draw_without_rendering()
    axis = picture.figure.axes[3].yaxis
    first, last = picture.figure.axes[3].get_ylim()
    shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    assert [text.get_text() for place, text in shown if first <= place <= last] == ticks


def test_trials_that_cannot_be_compared_give_no_figure() -> None:
    apart: list[Trial] = [trial(0, a=0), trial(1, a=1)]
    assert draw_effects(effects(Trials(tuple(apart)))) is None


def test_a_dollar_sign_begins_no_formula(tmp_path: Path) -> None:
    trials = crossed({"data__path": ["$a$b^{_$", "$"], "schedule__lr_max": [0.1, 1.0]}, seeds=2)
    save_figures(tmp_path, trials, effects(trials))
    assert "$a$b^{_$" in (tmp_path / "phase.svg").read_text()
