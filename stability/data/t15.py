"""The public layout of the T15 recordings, read and written: a folder a session, a file a split."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.data.phonemes import SILENCE
from stability.data.progress import progress

if TYPE_CHECKING:  # a set is read and written without PyTorch
    from torch import Tensor

SPLITS: Final = ("train", "val", "test")

_ROOM = 500  # entries of `seq_class_ids` and `transcription`, zero-padded
_LAYOUT = "expected one folder a session with data_train.hdf5, data_val.hdf5 or data_test.hdf5 in it"
_ON_BAD_TRIAL = ("error", "exclude")
_LISTED = 10  # bad trials named in a message
_INDEX_VERSION = 1  # raise it when the scan learns to check more


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial to be written.

    features: (bins, features), finite; stored as float32.
    labels: class ids of the phonemes spoken, 1 to 40, at most 500; None where they are not known.
    transcription: the sentence, at most 499 bytes in UTF-8.
    block, number: the block of the recording day and the trial's number in it.
    """

    features: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]] | None
    transcription: str
    block: int
    number: int


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a stored trial beside its features. `labels` is None where there are none (test)."""

    day: int
    name: str
    n_time_steps: int
    labels: NDArray[np.int64] | None
    transcription: str


class _Entry(NamedTuple):
    """What the index keeps of a trial; `problem` is what is wrong with it under any model."""

    name: str
    n_time_steps: int
    n_features: int
    labels: list[int] | None
    transcription: str
    problem: str | None


class _Sink(io.FileIO):
    """A file that keeps its first write error for `check` to raise.

    HDF5 must not see it: after a failed write it cannot close the file and takes the whole process down.
    """

    _error: OSError | None = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self._error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self.tell()


Following = Callable[[], Sequence[int]]


class Rows(Protocol):
    """A split's features where training wants them."""

    def read(self, i: int) -> NDArray[np.float32]:
        """The features of trial `i`: (bins, features)."""

    def padded(self, trials: Sequence[int], following: Following) -> "Tensor":
        """Some trials as a batch (B, T, F) in float32, padded with zeros. `following` tells which come next."""


class _Files:
    """Files that are kept open.

    A forked or unpickled copy opens them anew: HDF5 handles do not survive either.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[int, Path], Any] = {}

    def __reduce__(self) -> tuple[type["_Files"], tuple[()]]:
        return _Files, ()

    def read(self, path: Path, name: str) -> NDArray[np.float32]:
        try:
            return _features(self._file(path)[name])
        except (OSError, RuntimeError, KeyError) as error:
            raise _unreadable(path, error) from error

    def numbers(self, path: Path, name: str) -> tuple[int | None, int | None]:
        try:
            group = self._file(path)[name]
            return _integer(group, "block_num"), _integer(group, "trial_num")
        except (OSError, RuntimeError, KeyError) as error:
            raise _unreadable(path, error) from error

    def _file(self, path: Path) -> Any:
        file = self._open.get((os.getpid(), path))
        if file is None:
            file = self._open[os.getpid(), path] = _open_file(path)
        return file


@dataclass(frozen=True, eq=False)
class Split:
    """The trials of all days that serve one purpose; their features stay in the files unless they are kept in `rows`.

    sessions: the names of the session folders; a day is a position in it.
    n_features: features a bin, the same in all trials.
    records: the trials, by day and then by name.
    by_day: the positions in `records` of each day's trials; days without any are not in it.
    excluded: a message for each bad trial that was left out.
    rows: the features where training wants them; None: in the files.
    """

    sessions: tuple[str, ...]
    n_features: int
    records: tuple[Record, ...]
    by_day: dict[int, list[int]]
    excluded: tuple[str, ...]
    _paths: tuple[Path, ...]
    _files: _Files
    rows: Rows | None = None

    def read(self, i: int) -> NDArray[np.float32]:
        """The features of trial `i`: (bins, features), not to be written to.

        Raises StabilityError if the file has become unreadable, or another one, since it was checked.
        """
        if self.rows is not None:
            return self.rows.read(i)
        record = self.records[i]
        path = self._paths[record.day]
        features = self._files.read(path, record.name)
        if features.shape != (record.n_time_steps, self.n_features):
            raise StabilityError(f"{path} has changed since it was checked: give the same command again")
        return features

    def numbers(self, i: int) -> tuple[int | None, int | None]:
        """The block of trial `i` and its number in that; None where its file does not say. Raises as `read` does."""
        record = self.records[i]
        return self._files.numbers(self._paths[record.day], record.name)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the trials, by day."""
        return tuple(self._paths[day] for day in self.by_day)

    @property
    def path(self) -> Path:
        """The folder that holds the session folders."""
        return self._paths[0].parents[1]


@dataclass(frozen=True)
class Dataset:
    """The training and validation trials of the same sessions, checked.

    place: where their features are, in words. on_gpu: the bytes that they take there.
    """

    train: Split
    val: Split
    place: str = "read from its files"
    on_gpu: int = 0

    @property
    def sessions(self) -> tuple[str, ...]:
        """The names of the session folders, in the order of the days."""
        return self.train.sessions

    @property
    def n_features(self) -> int:
        """Features a bin."""
        return self.train.n_features

    @property
    def excluded(self) -> tuple[str, ...]:
        """A message for each bad trial that was left out."""
        return self.train.excluded + self.val.excluded


def write_session(folder: Path, split: str, trials: Iterable[Trial]) -> Path:
    """Write one session's trials of one split, and so bring your own data.

    folder: the session's folder, made if it is missing; its name is the session's name. Sibling folders are
        the other days of the data set, and their parent is what `open_dataset` and `data.path` take.
    split: "train", "val" or "test". In "test" no labels and no transcription are stored.
    trials: consumed one at a time. All have the same number of features, which should be z-scored per feature
        and session, as the augmentation noise is in units of their standard deviation. A bin is 20 ms in the
        public recordings.

    Returns the file, folder/data_{split}.hdf5. It appears, or replaces an earlier one, when it is complete;
    the same trials give the same bytes. Raises StabilityError, and leaves what was there, if a trial does not
    fit the layout or the file cannot be written.
    """
    if split not in SPLITS:
        raise StabilityError(f"split is {split!r}; it is one of {', '.join(SPLITS)}")
    target = folder / f"data_{split}.hdf5"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _Sink(temporary, "w+") as sink, h5py.File(sink, "w") as file:
            n_features = None
            for index, trial in enumerate(trials):
                group = file.create_group(f"trial_{index:04d}")
                where = f"{target}, trial {index}"
                features = _writable_features(trial, n_features, where)
                n_features = features.shape[1]
                group.create_dataset("input_features", data=features)
                group.attrs["n_time_steps"] = np.int64(len(features))
                group.attrs["block_num"] = np.int64(trial.block)
                group.attrs["trial_num"] = np.int64(trial.number)
                group.attrs["session"] = folder.resolve().name
                if split != "test":
                    _write_labels(group, trial, where)
                sink.check()
            if n_features is None:
                raise StabilityError(f"{target}: there are no trials to write")
        sink.check()  # HDF5 wrote what it still held
        temporary.replace(target)
    except OSError as error:
        raise StabilityError(f"{target} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return target


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
    """Open the training and validation trials under `path` and check every one of them.

    path: the folder that holds the session folders.
    sessions: names of session folders, in the order of the days; None: all, sorted by name.
    on_bad_utterance: "error" stops and lists the bad trials, "exclude" leaves them out and lists them in
        `excluded`. Bad is a trial with NaN or infinite features, without labels, with labels out of range or
        more of them than CTC can align, shorter than a patch, or at odds with its own attributes.
    patch_size, patch_stride: of the decoder, in bins.
    max_cut: bins that training may cut from the start of a trial.
    index_dir: where the result of the scan is kept, so that each file is scanned only once until it changes.

    Days without training or validation trials are fine. Raises StabilityError if there is nothing to train on
    or to validate with, a file cannot be read, feature counts differ, or bad trials are there and are errors.
    """
    cuts = {"train": max_cut, "val": 0}
    train, val = _open(path, cuts, sessions, on_bad_utterance, patch_size, patch_stride, index_dir)
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
    """Open one split alone, uncut, as `open_dataset` does; "test" is the one that needs no labels."""
    if split not in SPLITS:
        raise StabilityError(f"split is {split!r}; it is one of {', '.join(SPLITS)}")
    return _open(path, {split: 0}, sessions, on_bad_utterance, patch_size, patch_stride, index_dir)[0]


def frames_needed(labels: Sequence[int]) -> int:
    """Output frames without which CTC cannot align these labels."""
    # one label a frame at most, and a blank between equal neighbours
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def _writable_features(trial: Trial, n_features: int | None, where: str) -> NDArray[np.float32]:
    features = np.asarray(trial.features, dtype=np.float32)
    if problem := _features_problem(features):
        raise StabilityError(f"{where}: {problem}")
    if n_features not in (None, features.shape[1]):
        raise StabilityError(f"{where}: has {features.shape[1]} features, the trials before it have {n_features}")
    return features


def _write_labels(group: Any, trial: Trial, where: str) -> None:
    labels = np.asarray([] if trial.labels is None else trial.labels)
    if labels.size == 0:
        raise StabilityError(f"{where}: has no labels; only test trials go without")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise StabilityError(f"{where}: labels are {labels.dtype} of shape {labels.shape}, not a row of integers")
    if labels.size > _ROOM:
        raise StabilityError(f"{where}: has {labels.size} labels; the layout has room for {_ROOM}")
    if problem := _labels_problem(labels):
        raise StabilityError(f"{where}: {problem}")
    codes = trial.transcription.encode()
    if len(codes) >= _ROOM or 0 in codes:
        raise StabilityError(
            f"{where}: the transcription has {len(codes)} bytes; the layout has room for {_ROOM - 1}, none of them zero"
        )
    group.create_dataset("seq_class_ids", data=_padded(labels))
    group.create_dataset("transcription", data=_padded(np.frombuffer(codes, np.uint8)))
    group.attrs["seq_len"] = np.int64(labels.size)
    group.attrs["sentence_label"] = trial.transcription


def _padded(values: NDArray[Any]) -> NDArray[np.int64]:
    padded = np.zeros(_ROOM, np.int64)
    padded[: len(values)] = values
    return padded


def _open(
    path: Path,
    cuts: dict[str, int],  # by split: bins that may be cut from a trial
    sessions: Sequence[str] | None,
    on_bad_utterance: str,
    patch_size: int,
    patch_stride: int,
    index_dir: Path,
) -> list[Split]:
    if on_bad_utterance not in _ON_BAD_TRIAL:
        raise StabilityError(f"data.on_bad_utterance is {on_bad_utterance!r}; it is one of {', '.join(_ON_BAD_TRIAL)}")
    names = _session_names(path, sessions)
    files = {split: tuple(path / name / f"data_{split}.hdf5" for name in names) for split in cuts}
    scanned = _scan_all([file for file in chain(*files.values()) if os.path.lexists(file)], index_dir)

    records: dict[str, list[Record]] = {split: [] for split in cuts}
    bad: dict[str, list[str]] = {split: [] for split in cuts}
    n_features: dict[int, str] = {}  # the first trial that has so many
    for split, cut in cuts.items():
        for day, file in enumerate(files[split]):
            for entry in scanned.get(file, ()):
                where = f"{file.relative_to(path)} {entry.name}"
                problem = entry.problem or _target_problem(entry, split, cut, patch_size, patch_stride)
                if problem:
                    bad[split].append(f"{where}: {problem}")
                    continue
                labels = None if entry.labels is None else np.array(entry.labels, np.int64)
                records[split].append(Record(day, entry.name, entry.n_time_steps, labels, entry.transcription))
                n_features.setdefault(entry.n_features, where)

    messages = [*chain(*bad.values())]
    if messages and on_bad_utterance == "error":
        total = sum(map(len, scanned.values()))
        raise StabilityError(
            f"{len(messages)} of {total} trials in {path} are bad:\n{_listed(messages)}\n"
            "mend them, or go on without them: data.on_bad_utterance=exclude"
        )
    for split in cuts:
        if not records[split]:
            why = f"all are bad:\n{_listed(bad[split])}" if bad[split] else f"no data_{split}.hdf5 holds any"
            raise StabilityError(f"no {split} trial in {path} for the sessions {', '.join(names)}: {why}")
    if len(n_features) > 1:
        counts = ", ".join(f"{where} has {count}" for count, where in n_features.items())
        raise StabilityError(f"feature counts differ in {path}: {counts}; all trials need the same")

    (count,) = n_features
    opened = _Files()
    return [
        Split(
            sessions=names,
            n_features=count,
            records=tuple(records[split]),
            by_day=_by_day(records[split]),
            excluded=tuple(bad[split]),
            _paths=files[split],
            _files=opened,
        )
        for split in cuts
    ]


def _by_day(records: list[Record]) -> dict[int, list[int]]:
    days: dict[int, list[int]] = {}
    for position, record in enumerate(records):
        days.setdefault(record.day, []).append(position)
    return days


def _listed(messages: list[str]) -> str:
    lines = [f"  {message}" for message in messages[:_LISTED]]
    if len(messages) > _LISTED:
        lines.append(f"  and {len(messages) - _LISTED} more")
    return "\n".join(lines)


def _session_names(path: Path, wanted: Sequence[str] | None) -> tuple[str, ...]:
    try:
        if not path.is_dir():
            state = "is a file, not a folder" if path.exists() else "does not exist"
            raise StabilityError(f"data path {path} {state}; {_LAYOUT}")
        found = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _is_session(folder))
    except OSError as error:
        raise StabilityError(f"data path {path} cannot be read: {error}") from error
    if not found and _is_session(path):
        raise StabilityError(f"data path {path} is itself a session folder; give its parent {path.resolve().parent}")
    if not found:
        raise StabilityError(f"data path {path} holds no session folder; {_LAYOUT}")
    if wanted is None:
        return tuple(found)
    if missing := [name for name in wanted if name not in found]:
        raise StabilityError(f"no session {', '.join(missing)} in {path}; there are: {', '.join(found)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise StabilityError(f"sessions are [{', '.join(wanted)}]; name at least one, and each only once")
    return tuple(wanted)


def _is_session(folder: Path) -> bool:
    return any(os.path.lexists(folder / f"data_{split}.hdf5") for split in SPLITS)


def _target_problem(entry: _Entry, split: str, cut: int, patch_size: int, patch_stride: int) -> str | None:
    """What keeps this decoder from training on a trial, or None."""
    bins = entry.n_time_steps - cut
    length = f"{entry.n_time_steps} bins" + (f" less a cut of up to {cut}" if cut else "")
    if bins < patch_size:
        return f"{length} are shorter than one patch of {patch_size}"
    if split == "test":
        return None
    if not entry.labels:
        return f"has no labels, which {split} trials need"
    frames = (bins - patch_size) // patch_stride + 1
    needed = frames_needed(entry.labels)
    if frames >= needed:
        return None
    count = len(entry.labels)
    return (
        f"CTC cannot align {count} labels with {needed - count} repeats, which need {needed} frames: "
        f"{length} give {frames} (patch {patch_size}, stride {patch_stride})"
    )


def _scan_all(files: list[Path], index_dir: Path) -> dict[Path, list[_Entry]]:
    """The entries of each file, from the index where it is up to date."""
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise StabilityError(f"a data file cannot be read: {error}") from error
    scanned = {}
    with progress("checking the data", sum(stat.st_size for stat in stats)) as advance:
        for file, stat in zip(files, stats, strict=True):
            scanned[file] = _scan(file, stat, index_dir)
            advance(stat.st_size)
    return scanned


def _scan(file: Path, stat: os.stat_result, index_dir: Path) -> list[_Entry]:
    resolved = str(file.resolve())
    key = [_INDEX_VERSION, resolved, stat.st_size, stat.st_mtime_ns]
    index = index_dir / f"{hashlib.sha256(resolved.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # not there, or not an index
        saved = json.loads(index.read_text())
        if saved["key"] == key:
            return [_Entry(*row) for row in saved["trials"]]
    try:
        with _open_file(file) as content:
            entries = [_scan_trial(name, content[name]) for name in content]
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(file, error) from error
    temporary = index.with_suffix(f".{os.getpid()}.tmp")
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"key": key, "trials": entries}))
        temporary.replace(index)
    except OSError as error:
        raise StabilityError(f"the index of the data cannot be written: {error}") from error
    return entries


def _open_file(path: Path) -> Any:
    # without locking: read-only and network file systems often have none, and a finished file needs none
    return h5py.File(path, "r", locking=False)


def _unreadable(path: Path, error: Exception) -> StabilityError:
    return StabilityError(f"{path} cannot be read as HDF5; is it complete? ({error})")


def _scan_trial(name: str, group: Any) -> _Entry:
    if not isinstance(group, h5py.Group) or not isinstance(group.get("input_features"), h5py.Dataset):
        return _Entry(name, 0, 0, None, "", "has no dataset input_features")
    stored = group["input_features"]
    if stored.dtype.kind != "f" or stored.ndim != 2:
        what = f"input_features are {stored.dtype} of shape {stored.shape}, not floats of shape (bins, features)"
        return _Entry(name, 0, 0, None, "", what)
    bins, count = stored.shape
    steps = _integer(group, "n_time_steps")
    labels, labels_problem = _scan_labels(group)
    problems = [
        _features_problem(_features(group)),
        None if steps == bins else f"n_time_steps is {steps}, but input_features have {bins} bins",
        labels_problem,
    ]
    return _Entry(name, bins, count, labels, _transcription(group), "; ".join(filter(None, problems)) or None)


def _features(group: Any) -> NDArray[np.float32]:
    features: NDArray[np.float32] = group["input_features"].astype(np.float32)[()]
    return features


def _scan_labels(group: Any) -> tuple[list[int] | None, str | None]:
    if "seq_class_ids" not in group and "seq_len" not in group.attrs:
        return None, None
    if "seq_class_ids" not in group:
        return None, "has seq_len, but no seq_class_ids"
    ids = group["seq_class_ids"][()]
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        return None, f"seq_class_ids are {ids.dtype} of shape {ids.shape}, not a row of integers"
    length = _integer(group, "seq_len")
    if length is None or not 0 <= length <= len(ids):
        return None, f"seq_len is {length}, but {len(ids)} label ids are stored"
    labels = ids[:length]
    return labels.tolist(), _labels_problem(labels)


def _integer(group: Any, attribute: str) -> int | None:
    value = np.asarray(group.attrs.get(attribute, ""))
    return int(value.item()) if value.size == 1 and value.dtype.kind in "iu" else None


def _transcription(group: Any) -> str:
    label = group.attrs.get("sentence_label")
    if isinstance(label, str):
        return label
    codes = group["transcription"][()] if "transcription" in group else np.zeros(0, np.uint8)
    if codes.dtype.kind not in "iu":
        return ""
    text: bytes = codes.astype(np.uint8).tobytes()
    return text.split(b"\0")[0].decode(errors="replace")


def _features_problem(features: NDArray[np.float32]) -> str | None:
    if features.ndim != 2 or features.size == 0:
        return f"features have shape {features.shape}, not (bins, features)"
    finite = np.isfinite(features)
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return (
        f"{finite.size - finite.sum()} of {finite.size} features are not finite, "
        f"the first is {features[row, column]} at bin {row}, feature {column}"
    )


def _labels_problem(labels: NDArray[np.integer[Any]]) -> str | None:
    wrong = np.flatnonzero((labels < 1) | (labels > SILENCE))
    if not wrong.size:
        return None
    return f"label {labels[wrong[0]]} at position {wrong[0]} of {labels.size} is not in 1 to {SILENCE}"
