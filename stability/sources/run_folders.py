"""A folder with a folder for each run, in which some log is: TensorBoard's event files, CSV, JSON, a console's output.

The settings of a run are those that it kept: TensorBoard's hparams, or a file beside its log. What they do not say is
read from the names of its folders, such as `lr=0.1,seed=2`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stability.analysis.trial import Trial
from stability.analysis.yaml_files import read_config
from stability.core.errors import StabilityError
from stability.core.files import REPORT
from stability.core.text import load_json
from stability.diagnosis.readers import Recording, read_event_files, tensorboard_events
from stability.diagnosis.readers.folder import may_be_log
from stability.sources.task import Run, Task, most_readings, natural, read_log

_KEPT = (
    "hparams.yaml", "params.json", "config.json", "config.yaml", "args.json", "args.yaml", "params.yaml",
    "hyperparameters.json", "settings.yaml", "settings.json", "files/config.yaml",
)  # fmt: skip
_IN_NAME = re.compile(r"(?:^|[/,;_\s-])([A-Za-z][A-Za-z0-9_.]*?)=([^=/]*?)(?=$|/|[,;_\s-]+[A-Za-z][A-Za-z0-9_.]*?=)")
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # of Hugging Face, with a copy of the log so far
_OF_HPARAMS = re.compile(r"\d+(\.\d+)?")  # the folder that add_hparams makes below that of the run


def tasks(folder: Path, names: Mapping[str, str]) -> list[Task]:
    """Return a task for each run below a folder; for the folder itself if no other holds a log."""
    every = [path for path in folder.rglob("*") if path.is_file() and tensorboard_events.is_event_file(path)]
    if not every:
        runs = _runs(folder)
        return [Task(run, partial(_trial, folder, run, partial(read_log, run, names), ())) for run in runs]
    groups = dict[Path, list[Path]]()
    for run, files in tensorboard_events.group_by_run(every).items():
        below = _OF_HPARAMS.fullmatch(run.name) and any(path.parent == run.parent for path in every)
        groups.setdefault(run.parent if below else run, []).extend(files)
    return [
        Task(run, partial(_trial, folder, run, partial(_read_events, run, groups[run], names), groups[run]))
        for run in sorted(groups, key=natural)
    ]


def _runs(folder: Path) -> list[Path]:
    """The folders of the runs: those below that hold a log, or else the folder itself."""
    found = sorted(_below(folder), key=natural)
    return found if found or not any(map(may_be_log, folder.iterdir())) else [folder]


def _below(folder: Path) -> Iterator[Path]:
    """The folders below one that hold a log, but not those inside of these."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith((".", REPORT))]
        holds = any(may_be_log(Path(place, name)) for name in files)
        if Path(place) != folder and (holds or any(map(_CHECKPOINT.fullmatch, inner))):
            yield Path(place)
            inner.clear()


def _trial(folder: Path, run: Path, read: partial[Recording], files: Sequence[Path]) -> Trial:
    inside = run.relative_to(folder).as_posix()
    name = run.resolve().name if inside == "." else inside
    settings = dict(_IN_NAME.findall(inside)) | _kept(run) | tensorboard_events.read_hparams(files)
    return Run(name, settings, read, place=run).task.trial()


def _read_events(run: Path, files: Sequence[Path], names: Mapping[str, str]) -> Recording:
    return most_readings(read_event_files(run, files, names))


def _kept(run: Path) -> dict[str, Any]:
    """The settings in the first file of a run that has some."""
    for name in _KEPT:
        path = run / name
        if not path.is_file():
            continue
        try:
            found = load_json(path.read_bytes()) if path.suffix == ".json" else read_config(path)
        except (OSError, ValueError, StabilityError):
            continue  # tags of Python objects, say: the run counts all the same
        if isinstance(found, dict) and found:
            return {str(name): _unwrapped(value) for name, value in found.items() if not str(name).startswith("_")}
    return {}


def _unwrapped(value: Any) -> Any:
    """The value in what W&B keeps of a setting: `{desc: null, value: 0.1}`."""
    return value["value"] if isinstance(value, dict) and {*value} <= {"desc", "value"} and "value" in value else value
