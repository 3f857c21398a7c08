"""What a study's folder records of its last sweep: the command, the sweeper, and the claims. Hydra wrote it there."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from stability.analysis.boundary import LR
from stability.core.errors import StabilityError
from stability.core.passwords import hide_passwords
from stability.core.text import listed

BISECTIONS = ("BisectionSweeper", "AppBisection")
SEARCHES = (
    *BISECTIONS,
    "ExplainSweeper",
    "RepairSweeper",
    "ResumingSweeper",
    "OptunaSweeper",
)  # sweepers that choose each trial by the outcomes so far
TRAIN = ("python", "-m", "stability.train")

_QUOTED = r"^(trainer\.\w+=)'([^'\\]*)'$"  # what `stability.train` quotes itself


def typed(words: Iterable[str]) -> list[str]:
    """Return overrides as they are typed: without the quotes that are added anyway, and without passwords."""
    return [hide_passwords(re.sub(_QUOTED, r"\1\2", word)) for word in words]


def common_overrides(study: Path) -> list[str]:
    """Return the overrides of the last sweep in a study's folder as they are typed; none if they are not recorded."""
    return typed(_recorded(study, "hydra", "overrides", "task") or ())


def sweep_command(study: Path) -> str:
    """Return the command of the last sweep in a study's folder; empty if it is not recorded there.

    Of somebody's own Hydra app only the name of the script is recorded, and not where it is.
    """
    own, hydras = (_recorded(study, "hydra", "overrides", kind) for kind in ("task", "hydra"))
    if not isinstance(own, list):
        return ""
    # Hydra records its mode too, which --multirun has set.
    hydras = [word for word in hydras if not word.startswith("hydra.mode=")]
    app = _recorded(study, "hydra", "job", "name")
    if _recorded(study, "hydra", "callbacks", "sweep") or not app:
        program = [*TRAIN]
    else:
        program, hydras = ["python", f"{app}.py"], [word for word in hydras if word != default_folder_override(app)]
    return shlex.join([*program, "--multirun", *typed([*own, *hydras])])


def default_folder_override(app: str) -> str:
    """Return the override that gives a sweep of an app its folder, if the user gives none."""
    return f"hydra.sweep.dir='multirun/{app}'"


def sweeper(study: Path) -> str:
    """Return the class of the last sweeper in a study's folder, as `BisectionSweeper`; empty if it is not recorded."""
    return str(_recorded(study, "hydra", "sweeper", "_target_")).rpartition(".")[2]


def searched_setting(studies: Sequence[Path]) -> str:
    """Return the setting whose largest healthy value the last sweeps by bisection have looked for."""
    found = dict.fromkeys(str(name) for study in studies if (name := _recorded(study, "hydra", "sweeper", "setting")))
    return next(iter(found), LR)


def stated_claims(studies: Sequence[Path]) -> str | None:
    """Return the claims that the last sweeps in some studies' folders have stated; None if they have stated none.

    Raises:
        StabilityError: They have stated different ones.
    """
    stated = dict.fromkeys(
        str(name)
        for study in studies
        for place in (("sweep",), ("hydra", "callbacks", "stability"))  # of our own sweeps, of an app's
        if (name := _recorded(study, *place, "claims"))
    )
    if len(stated) > 1:
        raise StabilityError(f"The studies state different claims, {listed(stated)}: choose with --claims.")
    return next(iter(stated), None)


def _recorded(study: Path, *names: str) -> Any:
    """Return a setting of the last sweep from the file that Hydra wrote; empty if there is none."""
    try:
        value = yaml.safe_load((study / "multirun.yaml").read_text())
        for name in names:
            value = value[name]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return ""
    return value
