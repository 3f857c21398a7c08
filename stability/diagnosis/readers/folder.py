"""A folder: of one of our own trials, or with logs of other programs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stability.core.errors import StabilityError
from stability.core.files import CONFIG, SIGNALS_FILE
from stability.core.text import counted, first_of
from stability.diagnosis.finding import readings
from stability.diagnosis.readers import allennlp, mlflow_store, tensorboard_events, wandb_folder
from stability.diagnosis.readers.charts import group_charts
from stability.diagnosis.readers.flight import is_flight
from stability.diagnosis.readers.flight import read as read_flight
from stability.diagnosis.readers.log import DamagedLogError
from stability.diagnosis.readers.parts import join_parts
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.readers.tables import read_tables

_LOGS = (".csv", ".tsv", ".jsonl", ".json", ".log", ".txt", ".out", ".err")
_NAMES = ("training_log", "log")  # the second is that of ESPnet 1 and others with Chainer's LogReport
# Formats with a folder per run: how its files are found among others, and read.
_RUN_FOLDERS = ((mlflow_store.group_by_run, mlflow_store.read), (allennlp.group_by_run, allennlp.read))
_MOST = 200  # files that are tried
_ENOUGH = 20  # losses that two trainings have in common only if they are one
_AS_PRINTED = 1e-3  # how far a loss may be rounded


def read(
    path: Path, read_files: Callable[[Sequence[Path]], list[Recording]], progress: Callable[[int, int], None]
) -> list[Recording]:
    """Read a trial's signals and validations, a Monitor's recording, or the trainings in the files of another folder.

    Files without a training are ignored, and so are further logs of the same training, such as those in checkpoints.
    A note names the logs that are damaged. `read_files` reads a file, or several charts together.

    Returns:
        The recordings. There is none if what is there, such as TensorBoard's event files, contains no training.

    Raises:
        StabilityError: There is no log, or none that can be read.
    """
    if (path / SIGNALS_FILE).exists():
        return [read_trial(path)]
    if is_flight(path):
        return [read_flight(path)]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    consoles, others = wandb_folder.outputs(files)
    event_files = [file for file in files if tensorboard_events.is_event_file(file)]
    runs, unread = list[Recording](), ""
    for run, own_files in tensorboard_events.group_by_run(event_files).items():
        try:
            runs += tensorboard_events.read(run, own_files, _name(run, path), progress)
        except StabilityError as error:
            unread = f"TensorBoard's event files were not read. {error}"
    errors, damaged, by_file = list[StabilityError](), list[str](), dict[Path, list[Recording]]()
    read_already = set[Path]()
    for group_by_run, read_run in _RUN_FOLDERS:
        for run, own_files in group_by_run(others).items():
            read_already.update(own_files)
            try:
                runs += read_run(run, own_files, _name(run, path), progress)
            except StabilityError as error:
                errors.append(error)
                damaged += [str(error).removesuffix(".")] if isinstance(error, DamagedLogError) else []
    texts = [file for file in others if _is_text(file) and file not in read_already]
    for group in group_charts([*sorted(consoles), *texts[:_MOST]]):
        inside = str(group[0].relative_to(path).parent)
        prefix = "" if inside == "." else f"{inside}/"
        notes = (wandb_folder.NOTE,) if group[0] in consoles else ()
        try:
            found = read_files(group)
            by_file[group[0]] = [replace(r, name=f"{prefix}{r.name}", notes=(*notes, *r.notes)) for r in found]
        except StabilityError as error:
            errors.append(error)
            if isinstance(error, DamagedLogError):
                beside = f" (and {counted(len(group) - 1, 'other chart')} in its folder)" if len(group) > 1 else ""
                damaged.append(f"{str(error).removesuffix('.')}{beside}")
    runs += join_parts(by_file)
    if not runs and (unread or errors or not (event_files or read_already)):
        raise StabilityError(unread or _why_nothing(path, files, errors))
    lost = f"Left out what cannot be read: {first_of(damaged, 3, '; ')}." if damaged else ""
    untried = f"Only the first {_MOST} of {len(texts)} text files in the folder were read." if texts[_MOST:] else ""
    left_out = [note for note in (unread, lost, untried) if note]
    return [replace(run, notes=(*run.notes, *left_out)) for run in _without_copies(runs)]


def _name(run: Path, path: Path) -> str:
    """The name of the folder of a run below `path`."""
    inside = run.relative_to(path).as_posix()
    return path.resolve().name if inside == "." else inside


def may_be_log(path: Path) -> bool:
    """Return whether a file may be a log, by its name."""
    return _is_text(path) or tensorboard_events.is_event_file(path) or wandb_folder.is_history(path)


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in _LOGS or path.name in _NAMES


def _why_nothing(path: Path, files: Sequence[Path], errors: Sequence[StabilityError]) -> str:
    """What to answer if no file in a folder contains a training."""
    if histories := [file for file in files if wandb_folder.is_history(file)]:
        return wandb_folder.why_not(histories[0])
    if len(errors) == 1:
        return str(errors[0])
    return (
        f"{path} has no {SIGNALS_FILE} with rows: it is not a trial's folder, or no step has been trained. It contains "
        f"no other log that can be read.{f' The first of {len(errors)} files: {errors[0]}' if errors else ''}"
    )


def _without_copies(runs: Sequence[Recording]) -> list[Recording]:
    """Leave out what another log tells as well, with more readings."""
    kept = list[int]()
    copies: dict[int, list[str]] = {}
    for place in sorted(range(len(runs)), key=lambda place: -_readings(runs[place])):
        same = next((other for other in kept if _are_same(runs[other], runs[place])), None)
        if same is None:
            kept.append(place)
        else:
            copies.setdefault(same, []).append(runs[place].name)
    return [_with_note(runs[place], copies.get(place, [])) for place in sorted(kept)]


def _with_note(run: Recording, copies: Sequence[str]) -> Recording:
    if not copies:
        return run
    return replace(run, notes=(*run.notes, f"Other logs of the same training were left out: {first_of(copies, 4)}."))


def _readings(run: Recording) -> int:
    return int(run.signals.measured.sum() + run.validation.measured.sum())


def _are_same(run: Recording, other: Recording) -> bool:
    """Whether two recordings have the same losses at the steps that both have, and enough such steps."""
    (steps, losses), (others, other_losses) = (
        readings(r.signals if "loss" in r.signals.names else r.validation, "loss") for r in (run, other)
    )
    common, here, there = np.intersect1d(steps, others, return_indices=True)
    if not len(common) or len(common) < min(_ENOUGH, 0.8 * min(len(steps), len(others))):
        return False
    values = losses[here]
    if len(common) > 1 and (values == values[0]).all():
        return False  # any two trainings that are dead
    return bool(np.allclose(values, other_losses[there], rtol=_AS_PRINTED, equal_nan=True))


def is_table_of_trial(path: Path) -> bool:
    """Return whether a file is the table of signals in the folder of one of our trials."""
    if path.name != SIGNALS_FILE or not (path.parent / CONFIG).exists():
        return False
    with path.open() as file:
        return file.readline().startswith("step,loss,loss_per_label,")


def read_trial(path: Path) -> Recording:
    """Read the tables in the folder of one of our trials.

    Raises:
        StabilityError: There is no row in its tables, or a file is damaged.
    """
    recording = read_tables(path)
    is_cut = not (path / SIGNALS_FILE).stat().st_size  # a table without rows has at least a header
    if is_cut or (not len(recording.signals.steps) and not len(recording.validation.steps)):
        raise StabilityError(
            f"{path} has no {SIGNALS_FILE} with rows: it is not a trial's folder, or no step has been trained."
        )
    return recording
