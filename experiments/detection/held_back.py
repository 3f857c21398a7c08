"""Score the programs and logs that were held back. Somebody else made them, with troubles as in public reports.

    python -m experiments.detection.held_back [--half test] [--only logs] [--digits FOLDER]

They are in `held_back.tar.xz`. A program trains with a `Monitor`. A log is read by `python -m stability.diagnose`. What
is true of each follows from how it was made. `expected.tsv` says which verdicts are right of it, as a regular
expression of `outcome: cause`, and what must not be said. Three programs need the spoken digits in the T15 layout.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_args

from stability.core.checkout import ROOT
from stability.diagnosis.finding import Outcome

PACKED = Path(__file__).with_name("held_back.tar.xz")
HALVES = ("design", "test", "forms_design", "forms_test")  # the last two have logs only, in other forms
_LONGEST = 600  # seconds
_SAID = re.compile(r"(VERDICT|FINDING) (\S+?) ?/ ?(\S+)")
_OUTCOME = re.compile(rf"\s*({'|'.join(get_args(Outcome))})(:|,| |$)")


class Case(NamedTuple):
    """A program or a log, and what is right of it. It is a row of a file `expected.tsv`.

    Attributes:
        path: The program, the log, or a folder of logs.
        truth: What is true of it, in words.
        right: What must be found: in the verdict if it begins with `^`, else in all that was said.
        wrong: What must not be found; `finding` stands for any finding.
    """

    path: Path
    truth: str
    right: str
    wrong: str

    @property
    def is_program(self) -> bool:
        """Whether it is a program, and not a log."""
        return self.path.suffix == ".py"


def unpacked(half: str, folder: Path) -> list[Case]:
    """Unpack a half into a folder, and return its cases."""
    with tarfile.open(PACKED) as archive:
        archive.extractall(folder, filter="data")
    return read_cases(folder / half)


def read_cases(folder: Path) -> list[Case]:
    """Return the cases in a folder with an `expected.tsv`."""
    lines = (folder / "expected.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [Case(folder / path, *(*told, "")[:3]) for path, *told in rows]


def is_right(case: Case, text: str) -> bool:
    """Return whether what was printed about a case is right."""
    said, everything = text, text.partition("\n")[2]  # without the name of the log
    if case.is_program:
        said, everything = "\n".join(f"{outcome}: {cause}" for _, outcome, cause in _SAID.findall(text)), text
    right = verdict(case, text) if case.right.startswith("^") else said
    if not re.search(case.right, right, re.IGNORECASE):
        return False
    if case.wrong == "finding":
        return "FINDING" not in text
    wrong = verdict(case, text) if case.wrong.startswith("^") else everything
    return not case.wrong or not re.search(case.wrong, wrong, re.IGNORECASE)


def verdict(case: Case, text: str) -> str:
    """Return the outcome and the cause that were printed about a case, or else the last line."""
    if case.is_program:
        found = next((f"{outcome}: {cause}" for what, outcome, cause in _SAID.findall(text) if what == "VERDICT"), "")
    else:
        found = next((line.strip() for line in text.splitlines() if _OUTCOME.match(line)), "")
    return found or (text.splitlines() or ["nothing"])[-1]


def _said(case: Case, digits: Path | None) -> str:
    """What a program prints, or what is printed about a log."""
    path = str(case.path.absolute())
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"SPOKEN_DIGITS": str(digits.absolute())} if digits else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [path] if case.is_program else ["-m", "stability.diagnose", path, "--figure", f"{folder}/figure.png"]
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=_LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {_LONGEST} s"
    return done.stdout + (done.stderr if done.returncode else "")


def run(cases: Sequence[Case], digits: Path | None = None) -> Iterator[tuple[Case, str]]:
    """Run the programs and read the logs, two at a time. Yield each case and what was printed."""
    with ThreadPoolExecutor(2) as pool:
        yield from zip(cases, pool.map(lambda case: _said(case, digits), cases), strict=True)


def main() -> None:
    """Run the cases of a half, and print each one and the number that are right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--half", choices=HALVES, default="test")
    parser.add_argument("--only", default="", help="only the cases with this in their path")
    parser.add_argument("--digits", type=Path, help="the spoken digits in the T15 layout")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / given.half
        cases = [case for case in unpacked(given.half, Path(folder)) if given.only in str(case.path.relative_to(half))]
        right = 0
        for case, text in run(cases, given.digits):
            right += (good := is_right(case, text))
            print(f"{'right' if good else 'WRONG'}  {case.path.relative_to(half)}: {verdict(case, text)}", flush=True)
            if not good:
                print(f"       {case.truth}", flush=True)
        print(f"{right} of {len(cases)} right")


if __name__ == "__main__":
    main()
