"""The record of a study that ends as soon as its claims are ruled on. It lies in the study's folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import write_atomically
from stability.core.text import load_json

_FILE = "until_ruled.json"


@dataclass(frozen=True)
class StoppingRecord:
    """What was decided about the study's trials.

    Attributes:
        claims: The SHA-256 of the file of claims with which it began.
        trials: How many trials were planned; 0 until the study has ended.
        spared: The names of the trials that no claim needed.
        given_up: The ids of the claims that are not ruled on, and that the seeds left could not rule on.
    """

    claims: str
    trials: int = 0
    spared: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()


def read_stopping_record(study: Path) -> StoppingRecord | None:
    """Read the record of a study; None if it trains all its trials.

    Raises:
        StabilityError: The record is damaged.
    """
    path = study / _FILE
    try:
        found = load_json(path.read_bytes())
        lists = {name: tuple(found.get(name, ())) for name in ("spared", "given_up")}
        return StoppingRecord(**{**found, **lists})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StabilityError(f"{path} is damaged ({error}): begin another study, with study=NAME.") from None


def write_stopping_record(study: Path, record: StoppingRecord) -> None:
    """Write the record of a study."""
    write_atomically(study / _FILE, json.dumps(asdict(record), indent=2).encode())
