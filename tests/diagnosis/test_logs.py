"""The verdict on made-up logs that look like other people's: `logs/expected.tsv` says what is true of each.

They were written by somebody who had not read the detectors. The folder `first` was used to mend what was wrong, and
`second` was kept for one test, which all of its logs passed.
"""

import re
from pathlib import Path

import pytest

from stability import diagnose

LOGS = Path(__file__).parent / "logs"
ROWS = [
    [*line.split("\t"), ""][:4] for line in (LOGS / "expected.tsv").read_text().splitlines() if not line.startswith("#")
]  # path, what is true, what must be said, what must not be said
OUTCOME = re.compile(r"^(\S*: )?[a-z_]+(: | \(|, |$)")


@pytest.mark.parametrize(("log", "accepted", "rejected"), [(log, yes, no) for log, _, yes, no in ROWS])
def test_the_verdict_on_a_log(
    log: str, accepted: str, rejected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose.main([str(LOGS / log), "--figure", str(tmp_path / "figure.png")]) == 0
    heading, _, said = capsys.readouterr().out.partition("\n")
    verdict = next((line for line in [heading, *said.splitlines()] if OUTCOME.match(line)), heading)
    assert re.search(accepted, verdict if accepted.startswith("^") else f"{heading}\n{said}", re.IGNORECASE), said
    if rejected:
        assert not re.search(rejected, verdict if rejected.startswith("^") else said, re.IGNORECASE), said


def test_every_log_is_expected() -> None:
    assert {log for log, *_ in ROWS} == {str(p.relative_to(LOGS)) for p in LOGS.glob("*/*")}
