"""`tracking.json` in the folder of a trial or study: where it is sent, and how much of it has been sent."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import TRACKING, write_atomically
from stability.core.passwords import hide_passwords
from stability.core.text import load_json


@dataclass
class Mark:
    """A mark in a table: the rows up to it have been sent. Each field is a step, except for `time`.

    Sending is idempotent because it is announced first: `announced` is written to the disk before the rows up to that
    step are sent, together with the `time` (ms since 1970) they are logged under. After a kill in between, the rows
    are sent again under the same time. For MLflow they are then the same points, and it keeps one of each.
    """

    sent: int = -1
    announced: int = -1
    time: int = 0


@dataclass
class State:
    """The content of `tracking.json`. The names of the fields are part of the file's format."""

    uri: str
    experiment: str
    tags: dict[str, str]
    run_id: str | None = None
    page: str = ""  # the run's page, relative to the store's address
    parent: str | None = None  # the id of the study's run
    marks: dict[str, Mark] = field(default_factory=dict)  # by the name of the table's file
    note: str = ""  # only of a study
    attachments: list[str] = field(default_factory=list)  # only of a study: paths relative to its folder
    factors: dict[str, list[str]] = field(default_factory=dict)  # only of a study: the levels of what varies in it
    status: str = "RUNNING"
    finished: bool = False  # everything has been sent

    def is_for(self, uri: str, experiment: str) -> bool:
        """Return whether this is sent to that experiment of that store."""
        return (self.uri, self.experiment) == (uri, experiment)


def read_state(folder: Path) -> State | None:
    """Read the `tracking.json` of a trial or study; None if there is none.

    Raises:
        StabilityError: The file is damaged, or another version wrote it.
    """
    path = folder / TRACKING
    if not path.is_file():
        return None
    try:
        stored = load_json(path.read_text())
        stored["uri"] = hide_passwords(stored["uri"])  # earlier versions kept them
        stored["marks"] = {name: Mark(**mark) for name, mark in stored["marks"].items()}
        state = State(**stored)
        texts = [state.uri, state.experiment, state.page, state.note, state.status, *state.attachments]
        texts += [text for text in (state.run_id, state.parent) if text is not None]
        texts += [text for tag in state.tags.items() for text in tag]
        texts += [text for name, levels in state.factors.items() for text in (name, *levels)]
        steps = [step for mark in state.marks.values() for step in (mark.sent, mark.announced, mark.time)]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(step, int) for step in steps):
            raise TypeError("a value has another type")
        return state
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StabilityError(
            f"{path} is damaged, or another version wrote it ({error}). Delete it: everything is then sent again."
        ) from None


def write_state(folder: Path, state: State) -> None:
    """Write the `tracking.json` of a trial or study."""
    write_atomically(folder / TRACKING, json.dumps(asdict(state), indent=2).encode())
