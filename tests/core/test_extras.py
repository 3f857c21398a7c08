"""Optional packages that are missing."""

import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from stability.core.checkout import ROOT
from stability.core.errors import StabilityError
from stability.core.extras import PACKAGES, require


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(StabilityError) as failed:
        require("train")
    assert str(failed.value) == "Not installed: h5py and mlflow. Run: pip install 'training-stability[train]'"
    with pytest.raises(StabilityError, match=r"^Not installed: h5py\. Run: "):
        require("train", "omegaconf", "h5py")


def test_installed_packages_pass() -> None:
    require("train")
    require("cluster", "submitit")


def test_the_packages_of_an_extra_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    for extra, packages in PACKAGES.items():
        named = " ".join(project["optional-dependencies"][extra]).lower()
        assert all(any(name.lower() in named for name in distributions.get(package, [package])) for package in packages)
        plugins = named.count("hydra-optuna-sweeper")  # Hydra imports it, and we do not
        assert len(packages) == len(project["optional-dependencies"][extra]) - plugins
