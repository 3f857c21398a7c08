"""The figures of a study: a phase diagram, training curves by cell, and a forest plot of effects."""

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from stability.analysis.boundary import Boundary
from stability.analysis.effects import RATIOS, Effect, Response, recorded_responses
from stability.analysis.levels import Level, is_number, level_text, ordered
from stability.analysis.matching import cells_of, main_factors
from stability.analysis.trial import Record, Trial, Trials, read_record
from stability.config.names import short_name
from stability.core import palette
from stability.core.files import write_atomically
from stability.core.text import listed
from stability.diagnosis.finding import Series, finite_readings
from stability.diagnosis.outcomes import MARKS
from stability.reporting.wording import cell_text, changed_text, counts_text

_EPSILON, _LR, _NOISE = "optimizer.epsilon", "schedule.lr_max", "aug.white_noise_std"
_MOST_TICKS, _MOST_NAMES, _MOST_PANELS, _MOST_MARKS = 8, 24, 6, 9
_MOST_CELLS, _MOST_SEEDS, _POINTS = 8, 8, 150
_MOST_ROWS = 32
_LONGEST = 64  # characters of a row's name
_LEAST_SPAN = 2.0  # on either side of a log axis' middle, so that it has two ticks
_MOST_POWERS, _SHORT = 4, 1.3  # of ten: between the first and the last tick; where an axis has 2 and 5 too
_ENOUGH_SEEDS = 6
_FEW = "2 to 5 seeds: no exact p is below 0.05"
_REFERENCE = "no effect"
_PITCH = 1.7  # between the marks of a cell, as a multiple of their size; a diamond is 1.4 sizes wide
_MOST_RATIOS = 6
_PANELS = {
    "healthy": "healthy\n(points)",
    "per": "final {metric}\n(difference)",
    "steps": "steps on the plateau\n(ratio)",
    "norm_spike": "gradient-norm spike\n(ratio)",
}
_INK, _RULE = palette.LIGHT["ink"], palette.LIGHT["rule"]  # a page in a dark scheme replaces these
_EFFECT, _RATIO, _DASHES = palette.BLUE, palette.GREY, (0, (4, 3))
_CURVES = {
    "loss": "training loss",
    "per": "validation {metric}",
    "blank_fraction": "blank share",
    "grad_norm": "gradient norm",
}
_IN_CAPTION = {
    "loss": "training loss",
    "per": "validation {metric}",
    "blank_fraction": "share of blank frames",
    "grad_norm": "gradient norm before the clip",
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar sign in a name begins no formula
    "svg.hashsalt": "stability",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.7,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
}


class Picture(NamedTuple):
    """A figure.

    Attributes:
        name: The name of its files.
        figure: The figure.
        caption: What it shows in words, also for readers who do not see it, and what it leaves out.
    """

    name: str
    figure: Figure
    caption: str


def draw_phase(trials: Trials, boundaries: Sequence[Boundary] = ()) -> Picture | None:
    """Draw the phase diagram: the outcome of every trial, with a panel for each level of a third factor.

    The axes are learning rate and epsilon. If these do not both vary, they are the two factors with the most levels.

    Args:
        trials: The trials.
        boundaries: The largest healthy learning rates, which are drawn if the axes are learning rate and epsilon.

    Returns:
        The figure; None if no factor varies.
    """
    x, y, third, pooled = _axes_of(main_factors(trials))
    if x is None:
        return None
    horizontal, vertical = _Scale(trials, x), _Scale(trials, y)
    levels = [*main_factors(trials)[third]] if third else [None]
    columns = min(2, len(levels))
    lines = math.ceil(len(levels) / columns)
    width, height = 9.6 if columns > 1 else 6.4, 3.6 if y else 1.7  # inches: of all panels, and of one
    figure = Figure(figsize=(width, 0.9 + lines * height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    diagonal = (x, y) == (_LR, _EPSILON) and horizontal.log and vertical.log
    counted = False
    for place, (panel, level) in enumerate(zip(panels, levels, strict=False)):
        own = [t for t in trials.trials if third is None or t.factors.get(third) == level]
        horizontal.apply(panel.xaxis)
        vertical.apply(panel.yaxis)
        panel.set(xlim=(horizontal.low, horizontal.high), ylim=(vertical.low, vertical.high))
        panel.grid(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        if third:
            panel.set_title(f"{short_name(third)} {level_text(level)}", fontsize=10.5, loc="left", pad=16)
        if diagonal:
            _draw_ratios(panel, trials.trials, horizontal, vertical)
        if place % columns:
            panel.set_ylabel("")
        lowest = place + columns >= len(levels)
        panel.tick_params(labelbottom=lowest)
        if not lowest:
            panel.set_xlabel("")
        size = _MarkSize(own, horizontal, vertical, inches=(width / columns, height))
        counted |= size.counted
        _draw_cells(panel, own, horizontal, vertical, size)
        if diagonal:
            inside = [b for b in boundaries if third is None or b.cell.get(third, level) == level]
            _draw_boundaries(panel, inside, below=size.lines * _PITCH / 2 * size.points + 4)
    for panel in panels[len(levels) :]:
        panel.set_visible(False)
    handles = [_handle(name) for name in MARKS if any(t.outcome == name for t in trials.trials)]
    if diagonal:
        handles.append(Line2D([], [], color=_RATIO, linewidth=0.8, linestyle=_DASHES, label="lr/ε constant"))
        if any(math.isfinite(boundary.value) for boundary in boundaries):
            handles.append(Line2D([], [], color=_INK, marker="|", markersize=9, label="largest healthy lr"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3 * columns, frameon=False, handletextpad=0.4)
    caption = f"The outcome of every trial by {f'{short_name(y)} and ' if y else ''}{short_name(x)}"
    caption += f", with a panel for each level of {short_name(third)}" if third else ""
    by_seed = " The trials of a cell are next to each other, in the order of their seeds."
    caption += "." + (" The numbers count the trials of a cell." if counted else by_seed)
    caption += f" Pooled: {', '.join(map(short_name, pooled))}." if pooled else ""
    return Picture("phase", figure, caption)


def draw_curves(trials: Trials) -> Picture | None:
    """Draw the training curves of up to 8 representative cells, with a row for each cell and a line for each seed.

    Returns:
        The figure; None if there are no trials.
    """
    cells = cells_of(trials)
    chosen = _representative(cells)
    if not chosen:
        return None
    records = {cell: [read_record(trial) for trial in cells[cell][:_MOST_SEEDS]] for cell in chosen}
    every = [record for own in records.values() for record in own]
    curves = [name for name in _CURVES if trials.trials[0].ours or any(len(_readings(r, name)[0]) for r in every)]
    if not curves:
        return None
    figure = Figure(figsize=(9.6, 0.7 + 1.35 * len(chosen)), layout=ConstrainedLayoutEngine(hspace=0.03, h_pad=0.12))
    panels = figure.subplots(len(chosen), len(curves), squeeze=False, sharex=True, sharey="col")
    for row, cell in zip(panels, chosen, strict=True):
        own = cells[cell]
        for trial, record in zip(own, records[cell], strict=False):
            _draw_trial(row, curves, trial, record)
        name = cell_text(dict(zip(main_factors(trials), cell, strict=True)))
        title = f"{name}  ({counts_text(own)})" if name else counts_text(own)
        heading = row[0].annotate(
            title, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=9
        )
        heading.set_in_layout(False)  # it is wider than its panel, and continues over the next
    for column, signal in zip(panels.T, curves, strict=True):
        column[0].annotate(
            _CURVES[signal].format(metric=trials.metric),
            (0.5, 1),
            (0, 19),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
        column[-1].set_xlabel("step")
        column[-1].xaxis.set_major_locator(MaxNLocator(3, integer=True))
        if signal in ("per", "blank_fraction"):
            column[0].set_ylim(-0.03, 1.05)
        else:
            _use_log(column)
    shown = [outcome for outcome in MARKS if any(t.outcome == outcome for cell in chosen for t in cells[cell])]
    handles = [Line2D([], [], color=MARKS[outcome].colour, label=outcome) for outcome in shown]
    handles.append(Line2D([], [], color=_INK, marker="v", linestyle=":", markersize=5, label="onset"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    caption = f"{listed([_IN_CAPTION[name].format(metric=trials.metric) for name in curves])}, against steps."
    caption = caption[0].upper() + caption[1:]
    if len(chosen) < len(cells):
        caption += f" {len(chosen)} of {len(cells)} cells are shown, with every outcome among them."
    if any(len(cells[cell]) > _MOST_SEEDS for cell in chosen):
        caption += f" Only the first {_MOST_SEEDS} seeds of a cell are shown."
    return Picture("curves", figure, caption)


def draw_effects(found: Sequence[Effect], metric: str = "PER") -> Picture | None:
    """Draw a forest plot of effects, with a panel for each response that was recorded.

    Args:
        found: The effects.
        metric: The error rate's own name.

    Returns:
        The figure; None if no effect has matched trials.
    """
    rows: dict[str, dict[str, Effect]] = defaultdict(dict)
    for effect in found:
        if effect.matches:
            rows[changed_text(effect)][effect.response] = effect
    if not rows:
        return None
    kept = _largest(rows)
    figure = Figure(figsize=(9.6, 1.3 + 0.27 * len(kept)), layout="constrained")
    responses = recorded_responses(found)
    panels = figure.subplots(1, len(responses), sharey=True, squeeze=False)[0]
    first_pair = next((i for i, name in enumerate(kept) if len(rows[name]["healthy"].factors) > 1), None)
    for panel, response in zip(panels, responses, strict=True):
        ratio = response in RATIOS
        effects = {place: own for place, name in enumerate(kept) if (own := rows[name].get(response))}
        if ratio:
            panel.set_xscale("log")
        panel.axvline(1 if ratio else 0, color=_INK, linewidth=0.8, label=_REFERENCE)
        panel.set_xlim(*_limits([*effects.values()], response))
        for place, effect in effects.items():
            _draw_effect(panel, place, effect)
        if first_pair:
            panel.axhline(first_pair - 0.5, color=_RULE, linewidth=0.8)
        panel.set_title(_PANELS[response].format(metric=metric), fontsize=9)
        panel.grid(True, axis="x")
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        if ratio:
            _set_log_ticks(panel.xaxis, panel.get_xlim())
        else:
            panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            scale = 100 if response == "healthy" else 1
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _, scale=scale: _signed(value * scale)))
    panels[0].set_yticks(range(len(kept)), map(_label, kept), fontsize=8.5)
    panels[0].set_ylim(len(kept) - 0.4, -0.6)
    figure.legend(
        handles=[
            Line2D([], [], color=_EFFECT, marker="o", label="6 seeds or more"),
            Line2D([], [], color=_EFFECT, marker="o", markerfacecolor="none", linewidth=0.8, label=_FEW),
            Line2D([], [], color=_EFFECT, marker="x", linestyle="", label="1 seed: no interval"),
            Line2D([], [], color=_INK, marker="|", linestyle="", markersize=12, label=_REFERENCE),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )  # fmt: skip
    caption = "Effects of the second level against the first, with 95 % intervals, all else and the seed equal."
    caption += " A × B: how much larger the effect of A is at the second level of B than at the first."
    caption += f" The largest {len(kept)} of {len(rows)} are shown." if len(kept) < len(rows) else ""
    return Picture("effects", figure, caption)


def save_figures(
    folder: Path, trials: Trials, found: Sequence[Effect], boundaries: Sequence[Boundary] = ()
) -> list[Picture]:
    """Draw all figures of a study, and write each into a folder as SVG and PNG.

    Figures of an earlier report that these trials do not have are removed.

    Args:
        folder: Where to write.
        trials: The trials.
        found: Their effects.
        boundaries: The largest healthy learning rates.
    """
    with rc_context(_STYLE):
        drawn = draw_phase(trials, boundaries), draw_curves(trials), draw_effects(found, trials.metric)
        pictures = [picture for picture in drawn if picture is not None]
        for name in {"phase", "curves", "effects"} - {picture.name for picture in pictures}:
            for kind in ("svg", "png"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
        for picture in pictures:
            for kind, options in (("svg", {"metadata": {"Date": None}, "transparent": True}), ("png", {"dpi": 150})):
                image = io.BytesIO()
                picture.figure.savefig(image, format=kind, **options)
                picture.figure.set_layout_engine("none")  # laid out already: a second time would only take longer
                write_atomically(folder / f"{picture.name}.{kind}", image.getbuffer())
    return pictures


class _Scale:
    """The places of a factor's levels on an axis: side by side, at their logarithms or, if many, at their values."""

    def __init__(self, trials: Trials, name: str | None) -> None:
        self.name = name or ""
        self.levels = (None,) if name is None else ordered({trial.factors.get(name) for trial in trials.trials})
        self.crowded = len(self.levels) > _MOST_TICKS
        numbers = all(map(is_number, self.levels))
        self.log = numbers and self.levels[0] > 0 and len(self.levels) > 1
        self.linear = numbers and not self.log and self.crowded
        self._ranks = {level: float(rank) for rank, level in enumerate(self.levels)}
        places = sorted(map(self.place, self.levels))
        self.pitch = min((b - a for a, b in pairwise(places)), default=1.0)
        margin = max(0.6 * self.pitch, 0.08 * (places[-1] - places[0])) if self.log or self.linear else 0.6
        self.low, self.high = places[0] - margin, places[-1] + margin

    def place(self, level: Level) -> float:
        return math.log10(level) if self.log else float(level) if self.linear else self._ranks[level]

    def apply(self, axis: Axis) -> None:
        if self.linear:
            axis.set_major_locator(MaxNLocator(_MOST_TICKS))
            axis.set_label_text(short_name(self.name))
            return
        if self.log and self.crowded:
            ticks = [(float(e), level_text(10.0**e)) for e in range(math.ceil(self.low), math.floor(self.high) + 1)]
        else:
            shown = self.levels[:: math.ceil(len(self.levels) / _MOST_NAMES)]
            ticks = [(self.place(level), level_text(level) if self.name else "") for level in shown]
        axis.set_major_locator(FixedLocator([place for place, _ in ticks]))
        axis.set_ticklabels([text for _, text in ticks])
        axis.set_label_text(short_name(self.name) if self.name else "")


def _axes_of(factors: Mapping[str, Sequence[Level]]) -> tuple[str | None, str | None, str | None, list[str]]:
    """Choose the factors of a phase diagram's two axes and of its panels. The other factors are pooled."""
    rest = sorted(factors, key=lambda name: (name not in (_LR, _EPSILON), -len(factors[name])))
    if not {_LR, _EPSILON} <= {*rest}:
        rest.sort(key=lambda name: -len(factors[name]))
    axes = sorted(rest[:2], key=lambda name: (name == _EPSILON, name != _LR))  # lr horizontal, epsilon vertical
    third = min(
        (name for name in rest[2:] if len(factors[name]) <= _MOST_PANELS),
        key=lambda name: (name != _NOISE, -len(factors[name])),
        default=None,
    )
    x, y, *_ = (*axes, None, None)
    return x, y, third, [name for name in rest[2:] if name != third]


def _draw_ratios(panel: Axes, trials: Sequence[Trial], horizontal: "_Scale", vertical: "_Scale") -> None:
    """Draw lines of constant lr/ε next to trials, with a label where they leave the panel."""
    near = {round(horizontal.place(t.factors[_LR]) - vertical.place(t.factors[_EPSILON])) for t in trials}
    for ratio in sorted(near)[:: math.ceil(len(near) / _MOST_RATIOS)]:
        panel.axline((ratio, 0), slope=1, color=_RATIO, linewidth=0.8, linestyle=_DASHES, zorder=0.5)
        at = vertical.high + ratio
        if horizontal.low < at < horizontal.high:
            place, shift, align = (at, vertical.high), (0, 3), {"ha": "center", "va": "bottom"}
        else:
            place, shift, align = (horizontal.high, horizontal.high - ratio), (3, 0), {"ha": "left", "va": "center"}
        text = f"lr/ε {_power_text(10.0**ratio)}"
        panel.annotate(text, place, shift, textcoords="offset points", fontsize=7.5, color=_RATIO, **align)  # type: ignore[arg-type]


def _draw_boundaries(panel: Axes, boundaries: Sequence[Boundary], *, below: float) -> None:
    """Draw the largest healthy learning rates and their intervals, some points below the marks of their trials."""
    offset = ScaledTranslation(0, -below / 72, panel.figure.dpi_scale_trans)
    for bracket in boundaries:
        if _EPSILON not in bracket.cell or not math.isfinite(bracket.value):
            continue
        low, middle, high = np.log10([bracket.low, bracket.value, bracket.high])
        y = math.log10(bracket.cell[_EPSILON])
        at: Any = {"color": _INK, "transform": panel.transData + offset, "zorder": 4}
        panel.plot([low, high], [y, y], linewidth=1.2, **at)
        panel.plot([middle], [y], marker="|", markersize=6, markeredgewidth=1.6, **at)


class _MarkSize:
    """How the marks of a panel's cells are arranged, so that none touches another.

    Attributes:
        counted: Whether each outcome is drawn once, with its number, because a cell has many trials.
        across: Marks next to each other.
        lines: Lines of marks in the largest cell.
        points: The size of a mark.
    """

    def __init__(
        self, trials: Sequence[Trial], horizontal: "_Scale", vertical: "_Scale", *, inches: tuple[float, float]
    ) -> None:
        """Take the trials of a panel and its approximate size."""
        cells = _outcomes_by_place(trials, horizontal, vertical)
        most = max(map(len, cells.values()), default=1)
        self.counted = most > _MOST_MARKS
        shown = max((len({*outcomes}) for outcomes in cells.values()), default=1) if self.counted else most
        # A number takes as much room as a mark and a half.
        x, y = (
            scale.pitch / (scale.high - scale.low) * 60 * size
            for scale, size in zip((horizontal, vertical), inches, strict=True)
        )

        def fitting(across: int) -> float:
            return min(x / across / (2.5 if self.counted else 1), y / math.ceil(shown / across)) / _PITCH

        self.across = 1 if self.counted else max(range(1, shown + 1), key=lambda n: (min(fitting(n), 9), n))
        self.lines = math.ceil(shown / self.across)
        self.points = float(np.clip(fitting(self.across), 2, 9))


def _outcomes_by_place(
    trials: Sequence[Trial], horizontal: "_Scale", vertical: "_Scale"
) -> dict[tuple[float, float], list[str]]:
    """The outcomes of the trials at each place of a panel, in the order of their seeds."""
    cells: dict[tuple[float, float], list[str]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.place):
        x, y = (scale.place(trial.factors.get(scale.name)) for scale in (horizontal, vertical))
        cells[x, y].append(trial.outcome)
    return cells


def _draw_cells(
    panel: Axes, trials: Sequence[Trial], horizontal: "_Scale", vertical: "_Scale", size: _MarkSize
) -> None:
    """Draw the trials of every cell next to each other, or if there are many, each outcome once with its number."""
    pitch = _PITCH * size.points
    marks: dict[tuple[str, tuple[float, float]], list[tuple[float, float]]] = defaultdict(list)
    for place, outcomes in _outcomes_by_place(trials, horizontal, vertical).items():
        shown = [name for name in MARKS if name in outcomes] if size.counted else outcomes
        wide = min(len(shown), size.across)
        high = math.ceil(len(shown) / wide)
        for i, outcome in enumerate(shown):
            shift = (i % wide - (wide - 1) / 2) * pitch, ((high - 1) / 2 - i // wide) * pitch
            marks[outcome, shift].append(place)
            if size.counted:
                text, at = str(outcomes.count(outcome)), (shift[0] + size.points, shift[1])
                panel.annotate(text, place, at, textcoords="offset points", va="center", fontsize=7)
    for (outcome, shift), places in marks.items():
        _draw_marks(panel, outcome, places, shift=shift, size=size.points)


def _draw_marks(
    panel: Axes, outcome: str, places: Sequence[tuple[float, float]], *, shift: tuple[float, float], size: float
) -> None:
    """Draw the mark of an outcome at some places, shifted by some points."""
    mark = MARKS[outcome]
    offset = ScaledTranslation(shift[0] / 72, shift[1] / 72, panel.figure.dpi_scale_trans)
    panel.plot(
        *zip(*places, strict=True),
        linestyle="",
        marker=mark.marker,
        markersize=size * (1.3 if mark.marker == "*" else 1),
        color=mark.colour,
        markerfacecolor=mark.colour if mark.filled else "none",
        markeredgewidth=1.3,
        transform=panel.transData + offset,
        zorder=3,
    )


def _label(text: str) -> str:
    """A text that leaves room for the figure: of a long one, its beginning and its end."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _handle(outcome: str) -> Line2D:
    mark = MARKS[outcome]
    face = mark.colour if mark.filled else "none"
    return Line2D([], [], linestyle="", marker=mark.marker, color=mark.colour, markerfacecolor=face, label=outcome)


def _representative(cells: Mapping[tuple[Level, ...], Sequence[Trial]]) -> list[tuple[Level, ...]]:
    """Choose cells with every outcome among them: for each outcome its purest cell, then the most mixed cells."""
    chosen: dict[tuple[Level, ...], int] = {}
    for outcome in MARKS:
        shares = {cell: [t.outcome for t in own].count(outcome) / len(own) for cell, own in cells.items()}
        best = max(shares, key=lambda cell: (shares[cell], len(cells[cell])), default=None)
        if best is not None and shares[best]:
            chosen.setdefault(best, 0)
    for cell in sorted(cells, key=lambda cell: -len({t.outcome for t in cells[cell]})):
        if len(chosen) < _MOST_CELLS:
            chosen.setdefault(cell, 0)
    order = list(MARKS)
    return sorted(list(chosen)[:_MOST_CELLS], key=lambda cell: np.mean([order.index(t.outcome) for t in cells[cell]]))


def _readings(record: Record, name: str) -> Series:
    return finite_readings(record.validation if name == "per" else record.signals, name)


def _draw_trial(row: Sequence[Axes], curves: Sequence[str], trial: Trial, record: Record) -> None:
    """Draw the curves of a trial in the panels of a row, and its onset."""
    onset = record.verdict.onset_step if record.verdict else None
    mark = MARKS[trial.outcome]
    for panel, name in zip(row, curves, strict=True):
        steps, values = _readings(record, name)
        groups = np.array_split(np.arange(len(steps)), min(len(steps), _POINTS)) if len(steps) else []
        middle = np.max if name == "grad_norm" else np.median  # of norms, the spikes matter
        panel.plot(
            [steps[group[-1]] for group in groups],
            [middle(values[group]) for group in groups],
            color=mark.colour,
            linewidth=0.9,
            alpha=0.85,
            marker="." if len(groups) < 12 else None,
            markersize=3,
        )
        if onset is not None:
            panel.axvline(onset, color=mark.colour, linewidth=0.8, linestyle=":")
            panel.plot(
                [onset],
                [1],
                transform=panel.get_xaxis_transform(),
                marker="v",
                color=mark.colour,
                markersize=5,
                clip_on=False,
            )
        panel.grid(True)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)


def _use_log(column: Sequence[Axes]) -> None:
    """Use a log scale, if a value is above 0."""
    shown = np.concatenate([np.zeros(0), *(np.asarray(line.get_ydata()) for panel in column for line in panel.lines)])
    shown = shown[shown > 0]
    if len(shown):
        column[0].set_yscale("log", nonpositive="mask")
        middle = math.sqrt(shown.min()) * math.sqrt(shown.max())
        low, high = min(shown.min() / 1.2, middle / _LEAST_SPAN), max(shown.max() * 1.2, middle * _LEAST_SPAN)
        column[0].set_ylim(low, high)
        _set_log_ticks(column[0].yaxis, (low, high))


def _set_log_ticks(axis: Axis, ends: tuple[float, float]) -> None:
    """Set a few ticks on a log axis: powers of ten, evenly from 1; on a short axis also 2 and 5 times them."""
    low, high = (math.log10(end) for end in ends)
    every = max(1, math.ceil((high - low) / _MOST_POWERS))
    ticks = [float(f"1e{e}") for e in range(math.floor(low), math.ceil(high) + 1) if e % every == 0]
    if high - low < _SHORT:
        ticks = [factor * tick for tick in ticks for factor in (1, 2, 5)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power_text(value)))


def _power_text(value: float) -> str:
    """Write a tick of a log axis: 0.01, 500, 1e-6, 2e4."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if abs(value) > 1e-9 else "0"


def _largest(rows: Mapping[str, Mapping[str, Effect]]) -> list[str]:
    """Choose the rows to show: those of single factors, then the largest of those of pairs."""

    def key(name: str) -> tuple[bool, float, float]:
        healthy, steps = rows[name]["healthy"], rows[name].get("steps")
        pair = len(healthy.factors) > 1
        return pair, -abs(healthy.effect) if pair else 0.0, -abs(math.log(steps.effect)) if pair and steps else 0.0

    return sorted(rows, key=key)[:_MOST_ROWS]


def _limits(effects: Sequence[Effect], response: Response) -> tuple[float, float]:
    """Choose the limits of a panel: all effects, and as much of their intervals as leaves the effects visible.

    Differences of shares and of error rates end at 1, and those of such differences at 2: no panel goes further.
    """
    ratio = response in RATIOS
    middles = np.array([e.effect for e in effects])
    ends = np.array([end for e in effects if e.seeds > 1 for end in (e.low, e.high)])
    if ratio:
        middles, ends = np.log(middles), np.log(np.maximum(ends, 1e-300))
    largest = max(float(np.abs(middles).max()), 0.05)
    ends = np.abs(ends[np.isfinite(ends)])
    reach = min(max(largest, float(ends.max(initial=0.0))), 2.5 * largest)
    possible = max(largest, *(len(effect.factors) for effect in effects))
    reach = 1.08 * (max(reach, math.log(_LEAST_SPAN)) if ratio else min(reach, possible))
    return (math.exp(-reach), math.exp(reach)) if ratio else (-reach, reach)


def _draw_effect(panel: Axes, place: int, effect: Effect) -> None:
    few, ratio = effect.seeds < _ENOUGH_SEEDS, effect.response in RATIOS
    if effect.seeds > 1:
        everything = effect.high == math.inf if ratio else effect.high - effect.low >= 2 * len(effect.factors)
        ends = [max(effect.low, 1e-300), min(effect.high, 1e300)] if ratio else [effect.low, effect.high]
        style: Any = (0, (1, 3)) if everything else "-"  # dotted if it excludes nothing
        panel.plot(ends, [place, place], color=_EFFECT, linewidth=0.8 if few else 1.6, linestyle=style)
    marker, face = ("x", _EFFECT) if effect.seeds == 1 else ("o", "white" if few else _EFFECT)
    panel.plot([effect.effect], [place], color=_EFFECT, marker=marker, markersize=5, markerfacecolor=face, zorder=3)
