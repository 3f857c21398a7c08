"""Logs of other programs, made up."""

import json
from collections.abc import Sequence
from pathlib import Path

from stability.diagnosis.readers import Recording, read_log


def read(folder: Path, text: str | bytes) -> Recording:
    """The recording of a log with that text."""
    log = folder / "log"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(log)


def losses(steps: Sequence[int], form: str = "csv") -> str:
    """A log whose loss is 10,000 plus the number of its row."""
    rows = [(step, 10_000 + row) for row, step in enumerate(steps)]
    if form == "csv":
        return "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in rows)
    return "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows)


def official(steps: range, loss: float = 50.0) -> str:
    """The official trainer's lines for these steps."""
    return "".join(
        f"2025-11-06 01:34:20,425: Train batch {step}: loss: {loss:.2f} grad norm: 48.85 time: 0.555\n"
        for step in steps
    )
