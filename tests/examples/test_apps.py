"""The examples of Hydra apps, run by the commands of their pages."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stability.analysis.trials import read_trials
from stability.core.checkout import ROOT
from tests.support.hydra13 import python_with_hydra_13

EXAMPLES = ROOT / "docs" / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run_page(name: str, folder: Path, python: Path) -> str:
    """Run the sweeps in the first block of commands of an example's page that has some. Return what they print."""
    example = folder / name
    shutil.copytree(EXAMPLES / name, example)
    blocks = re.findall(r"```bash\n(.*?)```", (example / "README.md").read_text(), re.DOTALL)
    sweeps = [line for line in next(b for b in blocks if "train.py" in b).splitlines() if line.startswith("python ")]
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = ""
    for sweep in sweeps:
        done = subprocess.run(
            ["bash", "-c", sweep], cwd=example, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done
        printed += done.stdout
    return printed


def test_epsilon_is_named_that_keeps_a_lightning_app_from_learning(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = python_with_hydra_13(tmp_path_factory.mktemp("hydra") / "1.3")
    printed = run_page("hydra-lightning", tmp_path, python)
    assert "12 jobs: 0 done, 12 to do, in multirun/train" in printed
    assert "optimizer.eps has the largest effect on this." in printed
    found = read_trials([tmp_path / "hydra-lightning/multirun/train"]).trials
    assert {trial.factors["optimizer.eps"] for trial in found if trial.healthy} == {1e-8}
    causes = {trial.cause for trial in found if trial.factors["optimizer.eps"] == 1.0}
    assert causes == {"step_too_small"}
    assert {trial.seed for trial in found} == {0, 1, 2}


def test_the_stride_is_named_that_makes_frames_too_long_for_wav2vec2(tmp_path: Path) -> None:
    printed = run_page("wav2vec2", tmp_path, Path(sys.executable))
    assert "6 of 12 trials are unhealthy (6 bad_data); model.stride has the largest effect on this." in printed
    found = read_trials([tmp_path / "wav2vec2/multirun/train"]).trials
    failed = [trial for trial in found if trial.outcome == "bad_data"]
    assert {(trial.factors["model.stride"], trial.cause) for trial in failed} == {(16, "infeasible_target")}
    assert {trial.factors["model.stride"] for trial in found if trial.healthy} == {2}
