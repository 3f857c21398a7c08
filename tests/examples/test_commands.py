"""The examples of `trainer=command`, run by the commands of their pages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stability.analysis.trials import read_trials
from stability.core.checkout import ROOT

EXAMPLES = ROOT / "docs" / "examples"
OFFICIAL = os.environ.get("OFFICIAL", "")  # a clone of the official trainer: make test-slow OFFICIAL=FOLDER


def run_page(name: str, block: int, folder: Path, **environment: str) -> str:
    """Run a block of commands of an example's page, in a copy of the example, and return what it prints."""
    shutil.copytree(EXAMPLES / name, folder / "docs/examples" / name)
    commands = re.findall(r"```bash\n(.*?)```", (EXAMPLES / name / "README.md").read_text(), re.DOTALL)[block]
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_names_the_option_of_a_script_that_is_at_fault(tmp_path: Path) -> None:
    printed = run_page("argparse-script", 0, tmp_path)
    assert "6 of 12 trials are unhealthy (6 exploded); lr has the largest effect on this." in printed
    study = tmp_path / "docs/examples/argparse-script/outputs/script"
    assert "lr has the largest effect on this" in (study / "report.html").read_text()
    found = read_trials([study]).trials
    assert {trial.factors["settings.lr"] for trial in found if trial.outcome == "exploded"} == {30}
    assert {trial.factors["settings.lr"] for trial in found if trial.outcome == "stable"} == {0.1}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not OFFICIAL, reason="OFFICIAL names no clone of the official trainer")
def test_the_page_names_the_setting_of_the_official_trainer_that_is_at_fault(tmp_path: Path) -> None:
    python = os.environ.get("OFFICIAL_PYTHON", sys.executable)
    environment = {"OFFICIAL": str(Path(OFFICIAL).resolve()), "OFFICIAL_PYTHON": python}
    printed = run_page("official-trainer", 1, tmp_path, SESSIONS=str(tmp_path / "sessions"), **environment)
    assert "4 of 8 trials are unhealthy (4 exploded); lr_max has the largest effect on this." in printed
    study = tmp_path / "docs/examples/official-trainer/outputs/official-trainer"
    found = read_trials([study]).trials
    assert {trial.factors["settings.lr_max"] for trial in found if trial.outcome == "exploded"} == {20}
    assert {trial.metric for trial in found} == {"PER"}
