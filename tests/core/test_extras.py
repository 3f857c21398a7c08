"""Optional packages that are missing."""

import sys

import pytest

from stability.core.errors import StabilityError
from stability.core.extras import require


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
