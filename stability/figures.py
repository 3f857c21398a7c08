"""The figure of a trial."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf

from stability.diagnosis import signals

_NAME = "run.png"
# Okabe and Ito's colours, which readers of any colour vision tell apart.
_LINE, _CLIP, _ONSET, _BROKEN = "#0072B2", "#E69F00", "#D55E00", "#CC79A7"


def draw_run(folder: Path) -> Path:
    """Draw loss, validation PER, blank fraction and gradient norm of the trial in `folder` against its steps.

    Writes `run.png` into the folder and returns its path. What the folder does not hold (validation, verdict,
    rows at all) stays empty. A file of signals that cannot be read raises `StabilityError`.
    """
    table = signals.read_table(folder / signals.SIGNALS)
    validation = signals.read_table(folder / signals.VALIDATION)
    verdict = _read_verdict(folder)

    figure = Figure(figsize=(9, 9), dpi=120, layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    loss, per, blank, norm = panels
    _draw(loss, table, "loss", "training loss")
    _draw(per, validation, "per", "validation PER", marker="o")
    _draw(blank, table, "blank_fraction", "blank fraction")
    _draw(norm, table, "grad_norm", "gradient norm\nbefore the clip")
    for panel in (loss, norm):
        _use_log_scale(panel)
    for panel in (per, blank):
        panel.set_ylim(-0.03, max(1.03, panel.get_ylim()[1]))
    if (clip := _clip_norm(folder)) is not None:
        norm.axhline(clip, color=_CLIP, linewidth=1.2, linestyle="--")
        norm.annotate(f"clip at {clip:g}", (1, clip), (-4, 3), norm.get_yaxis_transform(), "offset points", ha="right")
    norm.set_xlabel("step")
    norm.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(table.steps):
        norm.set_xlim(_padded(int(table.steps[0]), int(table.steps[-1])))

    broken = _first_non_finite(table, ("loss", "grad_norm"))
    if broken is not None:
        _mark(panels, broken, f"not finite at {broken}", _BROKEN, ":", level=0.76)
    if verdict.get("onset_step") is not None:
        _mark(panels, verdict["onset_step"], f"onset at {verdict['onset_step']}", _ONSET, "-.", level=0.9)
    figure.align_ylabels()
    figure.suptitle(_title(folder.name, verdict))
    path = folder / _NAME
    figure.savefig(path)
    return path


def _draw(panel: Axes, table: signals.Table, name: str, label: str, marker: str | None = None) -> None:
    panel.set_ylabel(label)
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if name not in table.names:
        return
    finite = np.isfinite(table[name])
    steps, values = table.steps[finite], table[name][finite]
    if len(steps) == 1:
        marker = "o"  # a line needs two
    panel.plot(steps, values, color=_LINE, linewidth=1.1, marker=marker, markersize=4)


def _use_log_scale(panel: Axes) -> None:
    """A log scale, if there is a value that it can show."""
    if any((np.asarray(line.get_ydata()) > 0).any() for line in panel.lines):
        panel.set_yscale("log", nonpositive="mask")


def _mark(panels: Sequence[Axes], step: int, text: str, color: str, style: str, level: float) -> None:
    """A line through all panels at `step`, named in the topmost at the height `level` of 0 to 1."""
    for panel in panels:
        panel.axvline(step, color=color, linewidth=1.4, linestyle=style)
    top = panels[0]
    low, high = top.get_xlim()
    left = step > (low + high) / 2  # the text stands where there is room
    top.annotate(
        text,
        (step, level),
        (-5 if left else 5, 0),
        top.get_xaxis_transform(),
        "offset points",
        ha="right" if left else "left",
        bbox={"facecolor": "white", "edgecolor": color, "boxstyle": "round,pad=0.25", "linewidth": 0.8},
        fontsize=9,
    )


def _padded(first: int, last: int) -> tuple[float, float]:
    margin = max(1.0, 0.02 * (last - first))
    return first - margin, last + margin


def _first_non_finite(table: signals.Table, names: Sequence[str]) -> int | None:
    """The first step at which one of the signals was measured and not finite."""
    columns = [table.names.index(name) for name in names if name in table.names]
    broken = (table.measured & ~np.isfinite(table.values))[:, columns].any(axis=1)
    return int(table.steps[broken.argmax()]) if broken.any() else None


def _title(name: str, verdict: dict[str, Any]) -> str:
    outcome = str(verdict.get("outcome", "no verdict yet")).replace("_", " ")
    cause = verdict.get("cause")
    return f"{name}\n{outcome}" + (f": {str(cause).replace('_', ' ')}" if cause else "")


def _read_verdict(folder: Path) -> dict[str, Any]:
    path = folder / "verdict.json"
    verdict: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return verdict


def _clip_norm(folder: Path) -> float | None:
    path = folder / "config.yaml"
    clip: float | None = OmegaConf.select(OmegaConf.load(path), "optimizer.clip_norm") if path.exists() else None
    return clip
