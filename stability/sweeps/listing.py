"""Lists the trials of a sweep by cell."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stability.analysis.levels import level_text
from stability.config.names import short_name
from stability.diagnosis.display import shown
from stability.sweeps.cells import Cells

_WIDTH = 500  # columns of the printed table, so that no cell is cut


def print_cells(plan: Cells, status: Mapping[Path, str]) -> None:
    """Print a row for each cell, with the status of each of its trials.

    Args:
        plan: The trials.
        status: What is known of each trial, by its folder.
    """
    table = Table(*map(short_name, plan.factors), "seeds" if plan.seed else "", box=None, header_style="dim")
    for cell, trials in plan.cells.items():
        each = [status[trial.folder] for trial in trials]
        if plan.seed:
            each = [f"seed {trial.settings.get(plan.seed)}: {own}" for trial, own in zip(trials, each, strict=True)]
        table.add_row(*(shown(level_text(level)) for _, level in cell), shown(", ".join(each)))
    Console(highlight=False, soft_wrap=True, width=_WIDTH).print(table)
