"""The verdict on made-up logs that look like other people's: `logs/expected.tsv` says what is true of each.

They were written by somebody who had not read the detectors. The folder `first` was used to mend what was wrong, and
`second` was kept for one test, which all of its logs passed.
"""

import re
from pathlib import Path

import pytest

from stability.diagnosis.judge_log import judge_recording
from stability.diagnosis.readers import read_runs

LOGS = Path(__file__).parent / "logs"
ROWS = [
    [*line.split("\t"), ""][:4] for line in (LOGS / "expected.tsv").read_text().splitlines() if not line.startswith("#")
]  # path, what is true, what must be said, what must not be said


@pytest.mark.parametrize(("log", "accepted", "rejected"), [(log, yes, no) for log, _, yes, no in ROWS])
def test_the_verdict_on_a_log(log: str, accepted: str, rejected: str) -> None:
    """A pattern that begins with ^ is for the outcome and cause of the first run, any other for all that is said."""
    runs = read_runs(LOGS / log)
    verdicts = [judge_recording(run) for run in runs]
    short = [f"{v.outcome}: {v.cause}" if v.cause else v.outcome for v in verdicts]
    said = "\n".join(
        f"{run.name}: {line}\n{verdict.advice}" for run, line, verdict in zip(runs, short, verdicts, strict=True)
    )
    assert re.search(accepted, short[0] if accepted.startswith("^") else said, re.IGNORECASE), said
    if rejected:
        assert not re.search(rejected, short[0] if rejected.startswith("^") else said, re.IGNORECASE), said


def test_every_log_is_expected() -> None:
    assert {log for log, *_ in ROWS} == {str(p.relative_to(LOGS)) for p in LOGS.glob("*/*")}
