"""The flight recording of a Monitor: what it has seen when it found something, and the state before the update.

`flight.json` has the verdict, all findings so far, the validations, and the names of the last 200 batches; `flight.csv`
the signals; `flight.pt` the state_dicts. `python -m stability.diagnose FOLDER` reads them.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stability.core.files import MONITOR_RECORD, MONITOR_SIGNALS, MONITOR_STATE, write_atomically
from stability.core.text import plain
from stability.diagnosis.finding import Finding
from stability.diagnosis.table import Table, append_table
from stability.diagnosis.verdict import Verdict
from stability.watch.state import finding_state, verdict_state


def write_recording(
    folder: Path,
    *,
    verdict: Verdict | None,
    findings: Sequence[Finding],
    batches: Mapping[int, Sequence[str | int]],
    signals: Table,
    validation: Table,
    state: Mapping[str, Any],
) -> None:
    """Write a recording, `flight.json` last. It replaces the one in the folder.

    Args:
        folder: Where it is written.
        verdict: The verdict so far.
        findings: All findings so far.
        batches: The steps of the last batches, and the names of their utterances.
        signals: The signals so far.
        validation: All validations so far.
        state: What is saved as `flight.pt`.

    Raises:
        OSError: It could not be written. The folder then has none.
    """
    record = {
        "verdict": verdict_state(verdict),
        "findings": [finding_state(finding) for finding in findings],
        "validations": [
            {"step": step, "per": plain(per), "loss": plain(loss)}
            for step, (per, loss) in zip(validation.steps.tolist(), validation.values.tolist(), strict=True)
        ],
        "batches": batches,
    }
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (MONITOR_RECORD, MONITOR_SIGNALS, MONITOR_STATE):
            (folder / name).unlink(missing_ok=True)
        append_table(folder / MONITOR_SIGNALS, signals)
        write_atomically(folder / MONITOR_STATE, buffer.getbuffer())
        write_atomically(folder / MONITOR_RECORD, json.dumps(record, indent=2, allow_nan=False).encode())
    except OSError:
        for name in (MONITOR_SIGNALS, MONITOR_STATE):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise
