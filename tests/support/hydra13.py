"""An environment with Hydra 1.3, in which other projects still live."""

import subprocess
import sys
import sysconfig
import venv
from functools import cache
from pathlib import Path

import pytest

from stability.core.checkout import ROOT

_OWN = ("hydra", "omegaconf", "antlr4")  # packages that are of other versions there
_PACKAGES = ("hydra-core==1.3.2", "hydra-joblib-launcher==1.2.0", "hydra-submitit-launcher==1.2.0")


@cache
def python_with_hydra_13(folder: Path) -> Path:
    """Make the environment in a folder, with all other packages of this one, and return its Python.

    The test is skipped where Hydra 1.3 cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *_PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Hydra 1.3 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    others = folder / "others"
    others.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith((*_OWN, "__")) and not package.name.endswith(".pth"):
            (others / package.name).symlink_to(package)
    (site,) = folder.glob(f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
    (site / "others.pth").write_text(f"{others}\n{ROOT / 'stability/app/plugin'}\n")  # as an installation has it
    return python
