"""Fresh interpreters: what they load, and how they do with the base packages alone."""

import subprocess
import sys
from pathlib import Path

from stability.core.extras import PACKAGES

# Without filelock, jinja2 and markupsafe, which PyTorch brings.
EXTRAS = sorted({*PACKAGES["train"]} - {"filelock", "jinja2", "markupsafe"})
WITHOUT_EXTRAS = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))  # an import of None fails\n"


def loaded(code: str) -> set[str]:
    """Return the packages that a fresh interpreter has loaded after this code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def run_without_extras(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run code in a fresh interpreter in which imports of the optional packages fail."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
