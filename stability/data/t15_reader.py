"""Open a data set in the public T15 layout, and read its features from the files."""

import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stability.core.errors import StabilityError
from stability.core.text import counted, listed, printable
from stability.data.records import Dataset, DrawNext, Record, Split, pad
from stability.data.t15_checker import decoder_problem, scan_files
from stability.data.t15_layout import EXPECTED, file_name, is_session, open_file, read_features, unreadable

_log = logging.getLogger(__name__)

_ON_BAD_UTTERANCE = ("error", "exclude")
_LARGE = 1e4  # no feature is as large in data whose features were scaled
_MOST_LISTED = 10  # bad utterances named in a message


class FileRows:
    """The features of a split, read from its HDF5 files at each request."""

    def __init__(self, files: Sequence[Path], records: Sequence[Record], n_features: int) -> None:
        """Take the file of each day, and the utterances of all days."""
        self._files = tuple(files)
        self._records = tuple(records)
        self._n_features = n_features
        self._handles: dict[tuple[int, Path], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}  # an unpickled copy opens the files again

    def read(self, i: int) -> NDArray[np.float32]:
        """Read the features of utterance `i`, (bins, features).

        Raises:
            StabilityError: Its file cannot be read, or has changed since it was checked.
        """
        record = self._records[i]
        path = self._files[record.day]
        try:
            features = read_features(self._open(path)[record.name])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise unreadable(path, error) from error
        if features.shape != (record.n_time_steps, self._n_features):
            raise StabilityError(f"{path} has changed since it was checked. Run the same command again to check it.")
        return features

    def batch(self, utterances: Sequence[int], draw_next: DrawNext) -> Tensor:
        """Make a batch of some utterances, (B, T, F)."""
        return torch.from_numpy(pad([self.read(i) for i in utterances]))

    def _open(self, path: Path) -> Any:
        # A handle belongs to the process that opened it. A forked child would share the file's offset and a copy of
        # the library's caches with its parent, so it opens files of its own.
        key = os.getpid(), path
        if key not in self._handles:
            self._handles[key] = open_file(path)
        return self._handles[key]


def open_dataset(
    path: Path,
    *,
    sessions: Sequence[str] | None = None,
    on_bad_utterance: str = "error",
    patch_size: int,
    patch_stride: int,
    max_cut: int,
    index_dir: Path,
) -> Dataset:
    """Open the training and validation utterances in a folder, and check every one of them.

    An utterance is bad if its features are not finite, if it has no labels, if labels are out of range or more than CTC
    can align, if it is shorter than a patch, or if it contradicts its own attributes. Some days may have no training or
    no validation utterances.

    Args:
        path: The folder that contains the session folders.
        sessions: Names of session folders, in the order of the days; None: all, sorted by name.
        on_bad_utterance: "error" raises and lists the bad utterances; "exclude" leaves them out and lists them in
            `Dataset.excluded`.
        patch_size: Bins that the decoder reads for one output frame.
        patch_stride: Bins from one output frame to the next.
        max_cut: Bins that training may cut from the start of an utterance.
        index_dir: The folder for the result of the check, so that a file is scanned only once until it changes.

    Raises:
        StabilityError: There is nothing to train on or to validate on, a file cannot be read, feature counts differ, or
            utterances are bad and `on_bad_utterance` is "error".
    """
    train, val = _open_splits(
        path,
        {"train": max_cut, "val": 0},
        sessions=sessions,
        on_bad_utterance=on_bad_utterance,
        patch_size=patch_size,
        patch_stride=patch_stride,
        index_dir=index_dir,
    )
    return Dataset(train, val)


def open_split(
    path: Path,
    split: str,
    *,
    sessions: Sequence[str] | None = None,
    on_bad_utterance: str = "error",
    patch_size: int,
    patch_stride: int,
    index_dir: Path,
) -> Split:
    """Open one split alone, to be read uncut. The arguments and errors are those of `open_dataset`.

    Args:
        path: The folder that contains the session folders.
        split: "train", "val" or "test". Only "test" needs no labels.
        sessions: Names of session folders, in the order of the days; None: all, sorted by name.
        on_bad_utterance: "error" or "exclude".
        patch_size: Bins that the decoder reads for one output frame.
        patch_stride: Bins from one output frame to the next.
        index_dir: The folder for the result of the check.
    """
    (opened,) = _open_splits(
        path,
        {split: 0},
        sessions=sessions,
        on_bad_utterance=on_bad_utterance,
        patch_size=patch_size,
        patch_stride=patch_stride,
        index_dir=index_dir,
    )
    return opened


def session_names(path: Path, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the session folders in a folder, sorted; or those that are wanted, if all are there.

    Raises:
        StabilityError: The folder cannot be read, it has no sessions, or not all that are wanted.
    """
    try:
        if not path.is_dir():
            state = "is a file, not a folder" if path.exists() else "does not exist"
            raise StabilityError(f"The data path {path} {state}. {EXPECTED}")
        folders = [folder for folder in path.iterdir() if not folder.name.startswith(".")]
        found = sorted(folder.name for folder in folders if folder.is_dir() and is_session(folder))
        dangling = sorted(folder.name for folder in folders if folder.is_symlink() and not folder.exists())
    except OSError as error:
        raise StabilityError(f"Cannot read the data path {path}: {error}") from error
    if lost := [name for name in dangling if wanted is None or name in wanted]:
        raise StabilityError(
            f"{path / lost[0]} is a link to {(path / lost[0]).readlink()}, which does not exist. Bring it back, or "
            "delete the link."
        )
    if not found and is_session(path):
        raise StabilityError(
            f"The data path {path} is itself a session folder. Give its parent: data.path={path.resolve().parent}"
        )
    if not found:
        raise StabilityError(f"The data path {path} contains no session folder. {EXPECTED}")
    if wanted is None:
        return tuple(found)
    if missing := [name for name in wanted if name not in found]:
        raise StabilityError(
            f"{path} has no session {listed(missing)}. Its sessions are {listed(map(printable, found))}."
        )
    if not wanted or len(set(wanted)) < len(wanted):
        raise StabilityError(f"The sessions are [{', '.join(wanted)}]. Name at least one, and each only once.")
    return tuple(wanted)


def _open_splits(
    path: Path,
    cuts: dict[str, int],  # by split: bins that may be cut from an utterance
    *,
    sessions: Sequence[str] | None,
    on_bad_utterance: str,
    patch_size: int,
    patch_stride: int,
    index_dir: Path,
) -> list[Split]:
    if on_bad_utterance not in _ON_BAD_UTTERANCE:
        raise StabilityError(f"data.on_bad_utterance is {on_bad_utterance!r}; use {' or '.join(_ON_BAD_UTTERANCE)}.")
    file_names = {split: file_name(split) for split in cuts}
    names = session_names(path, sessions)
    files = {split: tuple(path / name / file_names[split] for name in names) for split in cuts}
    scanned = scan_files([file for file in chain(*files.values()) if os.path.lexists(file)], index_dir)

    records: dict[str, list[Record]] = {split: [] for split in cuts}
    bad: dict[str, list[str]] = {split: [] for split in cuts}
    largest = (0.0, "")  # the largest feature, and the utterance that has it
    n_features: dict[int, str] = {}  # each feature count with the first utterance that has it
    for split, cut in cuts.items():
        for day, file in enumerate(files[split]):
            for entry in scanned.get(file, ()):
                where = printable(f"{file.relative_to(path)} {entry.name}")
                problem = entry.problem or decoder_problem(
                    entry, split, cut=cut, patch_size=patch_size, patch_stride=patch_stride
                )
                if problem:
                    bad[split].append(f"{where}: {printable(problem)}")
                    continue
                record = Record(
                    day=day,
                    name=entry.name,
                    n_time_steps=entry.n_time_steps,
                    labels=None if entry.labels is None else np.array(entry.labels, np.int64),
                    transcription=entry.transcription,
                    block=entry.block,
                    number=entry.number,
                )
                records[split].append(record)
                largest = max(largest, (entry.largest, where))
                n_features.setdefault(entry.n_features, where)

    messages = [*chain(*bad.values())]
    if messages and on_bad_utterance == "error":
        total = sum(map(len, scanned.values()))
        raise StabilityError(
            f"{path} has {counted(len(messages), 'bad utterance')} among {total:,}:\n{_list_bad(messages)}\n"
            "Repair them, or train without them: data.on_bad_utterance=exclude"
        )
    for split in cuts:
        if not records[split]:
            why = f"all are bad:\n{_list_bad(bad[split])}" if bad[split] else f"no {file_names[split]} contains any."
            raise StabilityError(
                f"{path} has no {split} utterances in the sessions {listed(map(printable, names))}: {why}"
            )
    if len(n_features) > 1:
        counts = ", ".join(f"{where} has {count}" for count, where in n_features.items())
        raise StabilityError(f"Feature counts differ in {path}: {counts}. All utterances need the same number.")

    if largest[0] > _LARGE:
        _log.warning(
            "%s has features of up to %.3g (%s). Features are usually scaled to a standard deviation of 1: check the "
            "recording, or scale them.",
            path,
            *largest,
        )

    (count,) = n_features
    return [
        Split(
            path=path,
            files=tuple(files[split][day] for day in _group_by_day(records[split])),
            sessions=names,
            n_features=count,
            records=tuple(records[split]),
            by_day=_group_by_day(records[split]),
            excluded=tuple(bad[split]),
            rows=FileRows(files[split], records[split], count),
        )
        for split in cuts
    ]


def _group_by_day(records: list[Record]) -> dict[int, list[int]]:
    days: dict[int, list[int]] = {}
    for position, record in enumerate(records):
        days.setdefault(record.day, []).append(position)
    return days


def _list_bad(messages: list[str]) -> str:
    lines = [f"  {message}" for message in messages[:_MOST_LISTED]]
    if len(messages) > _MOST_LISTED:
        lines.append(f"  and {len(messages) - _MOST_LISTED:,} more")
    return "\n".join(lines)
