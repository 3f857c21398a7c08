"""What importing the package brings in, and what works where only its base requirements are installed."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import stability
import stability.diagnosis
from tests.support.interpreters import EXTRAS, loaded, run_without_extras


def test_the_package_itself_loads_almost_nothing() -> None:
    assert not loaded("import stability") & {*EXTRAS, "matplotlib", "numpy", "rich", "scipy", "torch"}


def test_the_monitor_loads_no_package_that_only_training_needs() -> None:
    modules = loaded("from stability import Monitor")
    assert "torch" in modules
    assert not modules & {*EXTRAS, "matplotlib"}


def test_the_diagnosis_loads_no_trainer() -> None:
    rooms = pkgutil.walk_packages(stability.diagnosis.__path__, "stability.diagnosis.")
    names = [module.name for module in rooms if module.name != "stability.diagnosis.run_figure"]
    assert len(names) > 10
    assert not loaded(f"import {', '.join(names)}") & {*EXTRAS, "matplotlib", "torch"}


def test_a_log_is_diagnosed_without_pytorch() -> None:
    assert not loaded("import stability.diagnose") & {*EXTRAS, "torch"}


def test_windows_is_refused_in_one_sentence() -> None:
    refusal = "stability runs on Linux and macOS; on Windows, install and run it in WSL.\n"
    for name in ("-m", r"C:\Scripts\stability.exe"):  # python -m stability.train, stability train
        code = f"import sys; sys.platform, sys.argv = 'win32', [{name!r}]; import stability"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (1, f"error: {refusal}")
    code = "import sys; sys.platform = 'win32'; import stability"  # by a program of somebody else
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.endswith(f"ImportError: {refusal}")


def test_every_public_name_is_there() -> None:
    for name in stability.__all__:
        assert getattr(stability, name) is not None
        assert name in dir(stability)
    with pytest.raises(AttributeError, match="module 'stability' has no attribute 'Nothing'"):
        stability.Nothing  # noqa: B018


def test_a_log_is_diagnosed_with_the_base_packages_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{step},{50 - step}\n" for step in range(30)))
    done = run_without_extras("from stability import diagnose\nsys.exit(diagnose.main(['log.csv']))", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "undecided: no validation" in done.stdout
    assert (tmp_path / "log.csv.png").exists()


@pytest.mark.parametrize(
    "code", ["diagnose.main(['runs:/1'])", "diagnose.main(['--replay', 'trial'])", "stability.write_session"]
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(code: str, tmp_path: Path) -> None:
    done = run_without_extras(f"import stability\nfrom stability import diagnose\nsys.exit({code})", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Not installed: " in done.stderr
    assert " h5py" in done.stderr
    assert done.stderr.endswith("Run: pip install 'training-stability[train]'\n")


def test_the_version_is_a_number() -> None:
    assert stability.__version__[0].isdigit()
