"""Optional packages: which extra installs them, and the message when one is missing."""

from importlib.util import find_spec
from typing import Final, Literal

from stability.core.errors import StabilityError
from stability.core.text import listed

Extra = Literal["train", "report", "cluster", "tensorboard", "wandb"]

# What each extra installs, by the names that are imported. `pyproject.toml` has the distributions and their versions.
PACKAGES: Final[dict[Extra, tuple[str, ...]]] = {
    "train": (
        *("editdistance", "filelock", "h5py", "hydra", "jinja2", "markupsafe"),
        *("mlflow", "omegaconf", "optuna", "psutil", "yaml"),
    ),
    "report": ("filelock", "jinja2", "markupsafe", "mlflow", "yaml"),
    "cluster": ("submitit",),
    "tensorboard": ("google", "tensorboard"),
    "wandb": ("wandb",),
}


def require(extra: Extra, *packages: str) -> None:
    """Check that optional packages are installed. Nothing is imported.

    Call it before the first import of an optional package:

        require("train", "h5py")
        import h5py

    Args:
        extra: The extra of `training-stability` that installs the packages.
        packages: The names that are imported. If none is given, all packages of the extra are checked.

    Raises:
        StabilityError: At least one package is missing. The message names all that are, and the command to run.
    """
    missing = [name for name in packages or PACKAGES[extra] if find_spec(name) is None]
    if missing:
        raise StabilityError(f"Not installed: {listed(missing)}. Run: {install_command(extra)}")


def install_command(extra: Extra) -> str:
    """Return the command line that installs an extra."""
    return f"pip install 'training-stability[{extra}]'"
