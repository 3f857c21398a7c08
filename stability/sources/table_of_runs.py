"""A CSV file with a row for each run: its settings, and the path of its log. Also W&B's table of runs."""

import ast
import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stability.core.errors import StabilityError
from stability.core.files import exists
from stability.core.text import first_of
from stability.diagnosis.readers import Recording
from stability.diagnosis.readers.names import find_name
from stability.sources import wandb_histories
from stability.sources.task import Run, Task, read_log

_LOG_COLUMNS = (
    "log",
    "log_path",
    "log_file",
    "logfile",
    "history",
    "metrics",
    "path",
    "file",
    "folder",
    "dir",
    "run_dir",
)
_NAME_COLUMNS = ("name", "run", "run_name", "id", "run_id")
_NUMBERING = ("", "Unnamed: 0")  # columns in which pandas numbers the rows
_OF_WANDB = ("name", "state", "created")
_RESULTS = ("loss", "val_loss", "per", "accuracy", "grad_norm", "blank_fraction")
_NOT_SETTINGS = {
    "state", "notes", "user", "tags", "created", "updated", "end time", "runtime", "sweep", "hostname", "host", "group",
    "job type", "project", "entity", "github", "git commit", "gpu count", "gpu type", "os", "python version", "id",
    "report", "command", "summary",
}  # fmt: skip


def is_table_of_wandb(path: Path) -> bool:
    """Return whether a CSV file is W&B's table of runs: of its page, or of its API with columns of dictionaries."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            titles = {title.strip().lower() for title in next(csv.reader(file), [])}
    except (OSError, csv.Error):
        return False
    return {*_OF_WANDB} <= titles or {"name", "config", "summary"} <= titles


def tasks(table: Path, names: Mapping[str, str]) -> list[Task]:
    """Return a task for each row of a table.

    Raises:
        StabilityError: It cannot be read, or no column names logs that are there.
    """
    titles, rows = _read(table)
    if is_table_of_wandb(table):
        return _of_wandb(table, titles, rows, names)
    column = _log_column(table, titles, rows)
    name = next((title for title in titles if title.lower() in _NAME_COLUMNS), column)
    settings = [title for title in titles if title not in (column, name) and not _is_result(title, rows)]
    sharing = Counter(row[column] for row in rows)
    return [
        Run(
            name=row[name] or f"row {number}",
            settings={title: row[title] for title in settings if row[title]},
            read=partial(_read_log, table, row[column], sharing[row[column]], names),
            place=place if row[column] and exists(place := _path(table, row[column])) else None,
        ).task
        for number, row in enumerate(rows, 1)
    ]


def _read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The titles and the rows of a table whose cells are parted by commas, semicolons or tabs."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StabilityError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        titles = [title.strip() for title in next(reader, [])]
        rows = dict[tuple[str, ...], dict[str, str]]()  # a row that is there twice counts once
        for cells in reader:
            if len(cells) != len(titles) and any(cells):
                raise StabilityError(
                    f"{table}, line {reader.line_num}: expected {len(titles)} cells, as in the header, "
                    f"found {len(cells)}."
                )
            if any(cells):
                row = {
                    title: cell.strip() for title, cell in zip(titles, cells, strict=True) if title not in _NUMBERING
                }
                rows.setdefault((*row.values(),), row)
    except csv.Error as error:
        raise StabilityError(f"{table}, line {reader.line_num}: {error}.") from None
    if not rows:
        raise StabilityError(f"{table} has no rows: give a header, and a row for each run.")
    titles = [title for title in titles if title not in _NUMBERING]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise StabilityError(f"{table} has more than one column {first_of(sorted(twice), 4)}.")
    return titles, [*rows.values()]


def _log_column(table: Path, titles: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """The column with the paths of the logs."""
    named = [title for title in titles if title.lower() in _LOG_COLUMNS]
    for candidates in (named, [title for title in titles if title not in named and not _is_numeric(title, rows)]):
        there = {
            title: sum(exists(_path(table, text)) for text in {row[title] for row in rows} - {""})
            for title in candidates
        }
        best = max(candidates, key=lambda title: there[title], default="")
        if best and there[best]:
            return best
    example = next((row[named[0]] for row in rows if row[named[0]]), "") if named else ""
    raise StabilityError(
        f"{table}: no row names a log that is there"
        + (
            f"; {named[0]} is {example} in the first one, which is looked for in {table.parent} and here. "
            if example
            else ". "
        )
        + "Give each run a row with its settings, and the path of its log in a column log."
    )


def _path(table: Path, text: str) -> Path:
    """The path in a cell: relative to the table, or else to the current folder."""
    beside = table.parent / text
    return beside if exists(beside) else Path(text)


def _read_log(table: Path, text: str, rows: int, names: Mapping[str, str]) -> Recording:
    if not text:
        raise StabilityError("its row names no log")
    if rows > 1:
        raise StabilityError("its log is that of other rows, too, and does not say whose it is")
    return read_log(_path(table, text), names)


def _is_result(title: str, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether a column holds a result of the runs, such as a final loss, by its name and its numbers."""
    name = find_name(title)
    return name is not None and name.signal in _RESULTS and _is_numeric(title, rows)


def _is_numeric(title: str, rows: Sequence[Mapping[str, str]]) -> bool:
    return all(_is_number(row[title]) for row in rows if row[title])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_wandb(
    table: Path, titles: Sequence[str], rows: Sequence[Mapping[str, str]], names: Mapping[str, str]
) -> list[Task]:
    histories = wandb_histories.find(table)
    lower = {title.lower(): title for title in titles}
    name, identity = lower["name"], lower.get("id", lower["name"])
    found = []
    for row in rows:
        settings = _dictionary(row[lower["config"]]) if "config" in lower else {}
        settings |= {
            title: row[title]
            for title in titles
            if row[title]
            and title.lower() not in _NOT_SETTINGS | {"name", "config"}
            and not title.startswith("_")
            and title not in histories.metrics
            and not _is_result(title, rows)
        }
        found.append(Run(row[name], settings, histories.reader(row[name], row[identity], names)).task)
    return found


def _dictionary(text: str) -> dict[str, Any]:
    """The settings in a cell that Python has written, without those of W&B itself."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return {str(k): v for k, v in found.items() if not str(k).startswith("_")} if isinstance(found, dict) else {}
