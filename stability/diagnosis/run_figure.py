"""Draws the figure of a training: loss, error rate, blank fraction and gradient norm against steps."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Transform

from stability.core import palette
from stability.core.files import FIGURE, VERDICT, write_atomically
from stability.core.text import printable
from stability.diagnosis import table as signals
from stability.diagnosis.readers.tables import read_tables
from stability.diagnosis.verdict import read_verdict

_LINE, _CLIP, _ONSET, _BROKEN = palette.BLUE, palette.GREEN, palette.VERMILION, palette.PURPLE
_MEDIANS = 100  # points of the line of medians through a long, noisy signal


def draw_run(folder: Path, clip: float | None = None) -> Path:
    """Draw the figure of a trial into its folder, as `run.png`. A panel without data stays empty.

    Args:
        folder: The trial's folder.
        clip: The gradient norm above which gradients are clipped.

    Returns:
        The path of the figure.

    Raises:
        StabilityError: A table of signals or the verdict in the folder cannot be read.
    """
    run = read_tables(folder)
    verdict = asdict(read_verdict(folder / VERDICT)) if (folder / VERDICT).exists() else {}
    return draw(
        folder / FIGURE,
        folder.name,
        run.signals,
        run.validation,
        verdict=verdict,
        clip=clip,
        metric=run.metric,
        unit=run.unit,
    )


def draw(
    path: Path,
    name: str,
    table: signals.Table,
    validation: signals.Table,
    verdict: Mapping[str, Any],
    *,
    clip: float | None = None,
    healthy: signals.Table | None = None,
    metric: str = "PER",
    unit: str = "step",
) -> Path:
    """Draw the figure of a training.

    Args:
        path: The PNG to write.
        name: The title.
        table: The signals.
        validation: The validations.
        verdict: `outcome`, `cause` and `onset_step` are shown, as far as they are there.
        clip: The gradient norm above which gradients are clipped.
        healthy: The range of a healthy training, drawn behind: `NAME_low` and `NAME_high` by step.
        metric: The error rate's own name.
        unit: What the steps count: `step`, `epoch` or `row`.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(9, 9), dpi=120)
    # Fixed margins: to find the best ones takes as long as all the rest.
    figure.subplots_adjust(left=0.12, right=0.975, bottom=0.06, top=0.915, hspace=0.1)
    panels = figure.subplots(4, 1, sharex=True)
    loss, per, blank, norm = panels
    if "loss" in validation.names and "loss" not in table.names:
        _draw(loss, validation, "loss", "validation loss", marker="o")
    else:
        _draw(loss, table, "loss", "training loss")
    _draw(per, validation, "per", f"validation {_literal(metric)}", marker="o")
    _draw(blank, table, "blank_fraction", "blank fraction")
    _draw(norm, table, "grad_norm", "gradient norm\nbefore the clip")
    for panel in (loss, norm):
        _use_log_scale(panel)
    for panel in (per, blank):
        panel.set_ylim(-0.03, max(1.03, panel.get_ylim()[1]))
    if healthy is not None and len(table.steps):
        _draw_healthy(panels, healthy, int(table.steps[-1]))
    if clip is not None:
        _draw_clip(norm, clip)
    norm.set_xlabel(unit)
    norm.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(table.steps):
        norm.set_xlim(_padded(int(table.steps[0]), int(table.steps[-1])))
    _mark_steps(panels, table, verdict)
    figure.align_ylabels()
    loss.set_title(f"{_literal(name)}\n{_literal(_outcome(verdict))}", fontsize=12, wrap=True)
    image = io.BytesIO()
    figure.savefig(image)
    write_atomically(path, image.getbuffer())
    return path


def _literal(text: str) -> str:
    """Return a text that came from a file as matplotlib shows it: a dollar sign begins no formula."""
    return printable(text).replace("$", r"\$")


def _draw(panel: Axes, table: signals.Table, name: str, label: str, marker: str | None = None) -> None:
    panel.set_ylabel(label)
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    finite = np.isfinite(table[name]) if name in table.names else np.zeros(0, dtype=bool)
    if not finite.any():
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", color="#777777")
        return
    steps, values = table.steps[finite], table[name][finite]
    if len(steps) == 1:
        marker = "o"  # a line needs two
    if len(steps) <= 2 * _MEDIANS:
        panel.plot(steps, values, color=_LINE, linewidth=1.2, marker=marker, markersize=4)
        return
    panel.plot(steps, values, color=_LINE, linewidth=0.7, alpha=0.4)
    groups = np.array_split(np.arange(len(steps)), _MEDIANS)
    middle = [np.median(values[group]) for group in groups]
    panel.plot([np.median(steps[group]) for group in groups], middle, color=_LINE, linewidth=1.5)


def _draw_healthy(panels: Sequence[Axes], healthy: signals.Table, last: int) -> None:
    """Draw the range of a healthy training, up to the step `last`."""
    shown = np.flatnonzero(healthy.steps <= last)
    steps = healthy.steps[shown]
    for panel, name in zip(panels, ("loss", "per", None, "grad_norm"), strict=True):
        if name is None:
            continue
        low, high = (healthy[f"{name}_{end}"][shown] for end in ("low", "high"))
        there = np.isfinite(low)
        panel.fill_between(
            steps[there], low[there] * 0.97, high[there] * 1.03, color=_CLIP, alpha=0.35, linewidth=0, label="healthy"
        )
    panels[1].legend(loc="upper right", frameon=False)


def _draw_clip(panel: Axes, clip: float) -> None:
    panel.axhline(clip, color=_CLIP, linewidth=1.4, linestyle="--")
    _label(
        panel,
        f"clipped above {clip:g}",
        at=(0.995, clip),
        transform=panel.get_yaxis_transform(),
        color=_CLIP,
        offset=(0, 9),
        align="right",
    )


def _mark_steps(panels: Sequence[Axes], table: signals.Table, verdict: Mapping[str, Any]) -> None:
    """Mark the first number that is not finite, and the onset of the fault."""
    non_finite = _first_non_finite(table, ("loss", "grad_norm"))
    if non_finite is not None:
        _mark(panels, non_finite, f"not finite at {non_finite}", color=_BROKEN, style=":", level=0.74)
    onset = verdict.get("onset_step")
    if onset is not None:
        _mark(panels, onset, f"onset at {onset}", color=_ONSET, style="-.", level=0.9)


def _use_log_scale(panel: Axes) -> None:
    """Use a log scale if it can show any of the values."""
    shown = np.concatenate([np.asarray(line.get_ydata()) for line in panel.lines] or [np.zeros(1)])
    shown = shown[shown > 0]
    if not len(shown):
        return
    panel.set_yscale("log", nonpositive="mask")
    narrow = np.ptp(np.log10(shown)) < 2
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _mark(panels: Sequence[Axes], step: int, text: str, *, color: str, style: str, level: float) -> None:
    """Draw a line through all panels at `step`. Its text is in the top panel, at the height `level` from 0 to 1."""
    for panel in panels:
        panel.axvline(step, color=color, linewidth=1.4, linestyle=style)
    top = panels[0]
    low, high = top.get_xlim()
    left = step > low + 0.8 * (high - low)  # then there is room for the text only on its left
    _label(
        top,
        text,
        at=(step, level),
        transform=top.get_xaxis_transform(),
        color=color,
        offset=(-6 if left else 6, 0),
        align="right" if left else "left",
    )


def _label(
    panel: Axes,
    text: str,
    *,
    at: tuple[float, float],
    transform: Transform,
    color: str,
    offset: tuple[int, int],
    align: Literal["left", "right"],
) -> None:
    """Write text in a box, `offset` points from the point `at` in the coordinates of `transform`."""
    plate = {"facecolor": "white", "edgecolor": color, "boxstyle": "round,pad=0.25", "linewidth": 0.8}
    panel.annotate(
        text,
        at,
        offset,
        xycoords=transform,
        textcoords="offset points",
        ha=align,
        va="center",
        bbox=plate,
        fontsize=9,
    )


def _padded(first: int, last: int) -> tuple[float, float]:
    margin = max(1.0, 0.02 * (last - first))
    return first - margin, last + margin


def _first_non_finite(table: signals.Table, names: Sequence[str]) -> int | None:
    """The first step at which one of the signals was measured and is not finite."""
    columns = [table.names.index(name) for name in names if name in table.names]
    non_finite = (table.measured & ~np.isfinite(table.values))[:, columns].any(axis=1)
    return int(table.steps[non_finite.argmax()]) if non_finite.any() else None


def _outcome(verdict: Mapping[str, Any]) -> str:
    outcome, cause = verdict.get("outcome", "no verdict yet"), verdict.get("cause")
    return f"{outcome}: {cause}" if cause else str(outcome)
