"""Finds out, by controlled experiment, why a training run blew up or never got going.

The names below are the public face. Each is imported when it is first used: PyTorch takes seconds to import, and not
every command needs it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    _refusal = "stability runs on Linux and macOS; on Windows, install and run it in WSL."
    if sys.argv[0].endswith(("-m", "stability", "stability.exe")):  # a command of ours: no traceback
        raise SystemExit(f"error: {_refusal}")
    raise ImportError(_refusal)  # Hydra looks into our plugin for every app: only an ImportError does not end the app

if TYPE_CHECKING:
    from stability.core.errors import StabilityError
    from stability.data.t15_writer import write_session
    from stability.diagnosis.finding import Finding
    from stability.diagnosis.readers import read_log
    from stability.diagnosis.verdict import Verdict
    from stability.watch.monitor import Monitor

    __version__: str

__all__ = ["Finding", "Monitor", "StabilityError", "Verdict", "__version__", "read_log", "write_session"]

_MODULES = {
    "Finding": "stability.diagnosis.finding",
    "Monitor": "stability.watch.monitor",
    "StabilityError": "stability.core.errors",
    "Verdict": "stability.diagnosis.verdict",
    "read_log": "stability.diagnosis.readers",
    "write_session": "stability.data.t15_writer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "write_session":
        from stability.core.extras import require

        require("train", "h5py")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed distribution's version; in a checkout that is not installed, the one in its pyproject.toml."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    from stability.core.checkout import ROOT

    try:
        return version("training-stability")
    except PackageNotFoundError:
        project = ROOT / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"
