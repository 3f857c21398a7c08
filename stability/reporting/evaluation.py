"""The results of an evaluation: a table on the terminal; files and a figure in a folder."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from stability.core import palette
from stability.core.errors import StabilityError
from stability.core.files import short_path, write_atomically
from stability.core.text import counted, csv_cell, listed, plain
from stability.data.phonemes import PHONEMES
from stability.diagnosis.display import shown
from stability.trials.evaluation import Evaluation

_NAMES = [name.strip() for name in PHONEMES[1:]]
_DELETED, _INSERTED = "deleted", "inserted"
_MOST_CONFUSIONS = 6  # printed
_WIDTH = 500  # columns of a printed table, so that no cell is cut


class Edits(NamedTuple):
    """The edits that turn what was spoken into what was decoded, and the number of labels."""

    labels: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def per(self) -> float:
        """The phoneme error rate: all edits over all labels."""
        return sum(self[1:]) / self.labels


def count_edits(confusions: NDArray[np.int64]) -> Edits:
    """Count edits from counts by spoken and heard phoneme, (41, 41)."""
    spoken = confusions[1:]
    both = spoken[:, 1:]
    return Edits(int(spoken.sum()), int(both.sum() - np.trace(both)), int(spoken[:, 0].sum()), int(confusions[0].sum()))


def write_evaluation(found: Evaluation, folder: Path) -> None:
    """Write the results of an evaluation into a folder: numbers, tables and a figure. Print where they are.

    Args:
        found: The evaluation, of utterances with labels.
        folder: The folder, which is made if it is missing. Earlier results in it are replaced.

    Raises:
        StabilityError: The folder cannot be written.
    """
    assert found.confusions is not None
    total = found.confusions.sum(0)
    edits = count_edits(total)
    summary = {
        "checkpoint": str(found.trained.path.resolve()),
        "data": str(found.data.resolve()),
        "split": found.split,
        "per": edits.per,
        "utterances": sum(found.utterances),
        **edits._asdict(),
        "device": found.device,
        "precision": found.precision,
        "excluded": [*found.excluded],
    }
    picture = io.BytesIO()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_confusions(total, f"{found.split}: PER {edits.per:.4f}").savefig(picture, dpi=150)
        write_atomically(folder / "sessions.csv", _csv(_session_rows(found)))
        write_atomically(folder / "confusion.csv", _csv(_confusion_rows(total)))
        write_atomically(folder / "confusion.png", picture.getvalue())
        write_atomically(folder / "evaluation.json", json.dumps(plain(summary), indent=2).encode())
    except OSError as error:
        raise StabilityError(
            f"Cannot write in {folder}: {error.strerror or error}. Make room, or give another folder with --out FOLDER."
        ) from error
    Console(highlight=False, soft_wrap=True).print(f"[dim]results[/] {shown(short_path(folder))}")


def show_evaluation(found: Evaluation, logits_file: Path | None) -> None:
    """Print an evaluation: a line for each session, and what is heard wrongly most often.

    Args:
        found: The evaluation.
        logits_file: Where its logits are, if any.
    """
    console = Console(highlight=False, soft_wrap=True)
    known = f"{len(found.sessions)} of {counted(found.trained.days, 'session')}"
    console.print(f"{shown(short_path(found.trained.path))}, {found.split} of {shown(found.data)}: {known}")
    console.print(f"  [dim]{found.device}, {found.precision}[/]")
    if found.confusions is None:
        console.print(
            f"  {counted(sum(found.utterances), 'utterance')} without labels, so there is no error rate",
        )
    else:
        rows = _session_rows(found)
        table = Table(box=None, header_style="dim")
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "session" else "right")
        for session, *numbers in [*rows[1:], ["all", sum(found.utterances), *_numbers(found.confusions.sum(0))]]:
            table.add_row(shown(session), *(f"{n:.4f}" if isinstance(n, float) else f"{n:,}" for n in numbers))
        Console(highlight=False, width=None if console.is_terminal else _WIDTH).print(table)
        if worst := _most_often(found.confusions.sum(0)):
            console.print(f"[dim]most often[/] {shown(listed(worst))}")
    if found.excluded:
        console.print(f"[dim]left out[/] {counted(len(found.excluded), 'bad utterance')}")
    if logits_file is not None:
        console.print(f"[dim]logits[/] {shown(short_path(logits_file))}")


def draw_confusions(confusions: NDArray[np.int64], title: str) -> Figure:
    """Draw which phoneme is heard as which, as shares of the times that it was spoken.

    Args:
        confusions: Counts by spoken and heard phoneme, (41, 41).
        title: The title.
    """
    turned = np.roll(confusions, -1, (0, 1))  # inserted and deleted come last
    shares = turned / np.maximum(turned.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(PHONEMES)), [*_NAMES, _DELETED], rotation=90, fontsize=8)
    axes.set_yticks(range(len(PHONEMES)), [*_NAMES, _INSERTED], fontsize=8)
    for line in (axes.axhline, axes.axvline):
        line(len(_NAMES) - 0.5, color=palette.GREY, linewidth=0.7)
    axes.set(xlabel="heard", ylabel="spoken", title=title)
    figure.colorbar(image, label="share of a row", shrink=0.6)
    return figure


def _session_rows(found: Evaluation) -> list[list[Any]]:
    assert found.confusions is not None
    rows = zip(found.sessions, found.utterances, found.confusions, strict=True)
    head = ["session", "utterances", "per", *Edits._fields]
    return [head, *([session, utterances, *_numbers(own)] for session, utterances, own in rows)]


def _numbers(confusions: NDArray[np.int64]) -> list[Any]:
    edits = count_edits(confusions)
    return [edits.per, *edits]


def _confusion_rows(confusions: NDArray[np.int64]) -> list[list[Any]]:
    turned = np.roll(confusions, -1, (0, 1)).tolist()
    names = zip([*_NAMES, _INSERTED], turned, strict=True)
    return [["spoken", *_NAMES, _DELETED], *([name, *counts] for name, counts in names)]


def _most_often(confusions: NDArray[np.int64]) -> list[str]:
    """The most frequent errors, in words."""
    wrong = confusions * (1 - np.eye(len(confusions), dtype=np.int64))
    places = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = [(*divmod(int(place), len(wrong)), int(wrong.flat[place])) for place in places]
    return [f"{_error(spoken, heard)} ({count:,})" for spoken, heard, count in pairs if count]


def _error(spoken: int, heard: int) -> str:
    if not heard:
        return f"{_NAMES[spoken - 1]} deleted"
    return f"{_NAMES[heard - 1]} inserted" if not spoken else f"{_NAMES[spoken - 1]} heard as {_NAMES[heard - 1]}"


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()
