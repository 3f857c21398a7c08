"""Writes what is known of a trial that has ended into its folder: the tables, the figure and the verdict."""

from dataclasses import asdict
from pathlib import Path

from stability.core.files import FIGURE, VERDICT, write_atomically
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.readers.tables import write_tables
from stability.diagnosis.verdict import Verdict


def write_results(folder: Path, recording: Recording, verdict: Verdict) -> None:
    """Write the results of a trial. They replace what is there, the verdict last.

    Raises:
        OSError: They could not be written.
    """
    from stability.diagnosis.run_figure import draw  # late: matplotlib takes a while to import

    write_tables(folder, recording)
    draw(
        folder / FIGURE,
        folder.resolve().name,
        recording.signals,
        recording.validation,
        verdict=asdict(verdict),
        metric=recording.metric,
        unit=recording.unit,
    )
    write_atomically(folder / VERDICT, verdict.to_json().encode())
