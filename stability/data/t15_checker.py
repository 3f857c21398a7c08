"""Find out what a file in the T15 layout contains, and what is wrong with its utterances.

A file is scanned once. An index keeps the result until the file's size or modification time changes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.core.text import counted, load_json
from stability.data.phonemes import SILENCE
from stability.data.progress import progress
from stability.data.records import frames_needed
from stability.data.t15_layout import member, open_file, read_features, read_integer, unreadable

_INDEX_VERSION = 3  # raise it when the scan finds more, or words a problem differently


class Entry(NamedTuple):
    """An utterance in the index.

    Attributes:
        name: Name of its group in the file.
        n_time_steps: Its length in bins.
        n_features: Features in a bin.
        labels: Its class ids; None if it has none.
        transcription: The sentence, or "".
        block: Block of the recording day; None if the file does not say.
        number: Number of the utterance in its block; None if the file does not say.
        largest: Its feature that is farthest from zero, without the sign.
        problem: What makes it unusable for any model; None if it is good.
    """

    name: str
    n_time_steps: int
    n_features: int
    labels: list[int] | None
    transcription: str
    block: int | None
    number: int | None
    largest: float
    problem: str | None


def scan_files(files: Sequence[Path], index_dir: Path) -> dict[Path, list[Entry]]:
    """Scan each file, or take its entries from the index if they are up to date.

    Args:
        files: The HDF5 files.
        index_dir: The folder of the index; it is made if it is missing.

    Raises:
        StabilityError: A file cannot be read, or the index cannot be written.
    """
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise StabilityError(f"Cannot read a data file: {error}. Repair it or remove it.") from error
    scanned = {}
    with progress("checking the data", sum(stat.st_size for stat in stats)) as advance:
        for file, stat in zip(files, stats, strict=True):
            scanned[file] = _scan_file(file, stat, index_dir)
            advance(stat.st_size)
    return scanned


def features_problem(features: NDArray[np.float32]) -> str | None:
    """Say what is wrong with the features of an utterance; None if nothing is."""
    if features.ndim != 2 or features.size == 0:
        return f"features have shape {features.shape}; expected at least one bin and one feature"
    finite = np.isfinite(features)
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return (
        f"features have {counted(finite.size - finite.sum(), 'non-finite value')} among {finite.size:,}; "
        f"the first is {features[row, column]} at bin {row}, feature {column}"
    )


def labels_problem(labels: NDArray[np.integer[Any]]) -> str | None:
    """Say which label of an utterance is no phoneme; None if all are."""
    wrong = np.flatnonzero((labels < 1) | (labels > SILENCE))
    if not wrong.size:
        return None
    return f"label {labels[wrong[0]]} at position {wrong[0]} of {labels.size} is not in 1 to {SILENCE}"


def decoder_problem(entry: Entry, split: str, *, cut: int, patch_size: int, patch_stride: int) -> str | None:
    """Say why a decoder cannot use an utterance that is good in itself; None if it can.

    Args:
        entry: The utterance.
        split: The split that it belongs to. All but "test" need labels.
        cut: Bins that may be cut from its start.
        patch_size: Bins that the decoder reads for one output frame.
        patch_stride: Bins from one output frame to the next.
    """
    bins = entry.n_time_steps - cut
    length = f"{entry.n_time_steps} bins" + (f", minus a cut of up to {cut}," if cut else "")
    if bins < patch_size:
        return f"{length} are fewer than the {patch_size} of one patch"
    if split == "test":
        return None
    if not entry.labels:
        return f"has no labels, which the split {split} needs"
    frames = (bins - patch_size) // patch_stride + 1
    needed = frames_needed(entry.labels)
    if frames >= needed:
        return None
    count = len(entry.labels)
    return (
        f"CTC cannot align {count} labels with {needed - count} repeats: they need {needed} frames, but "
        f"{length} give {frames} (patch {patch_size}, stride {patch_stride})"
    )


def _scan_file(file: Path, stat: os.stat_result, index_dir: Path) -> list[Entry]:
    resolved = str(file.resolve())
    key = [_INDEX_VERSION, resolved, stat.st_size, stat.st_mtime_ns]
    index = index_dir / f"{hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # no index yet, or a damaged one
        saved = load_json(index.read_text())
        if saved["key"] == key:
            return [Entry(*row) for row in saved["utterances"]]
    try:
        with open_file(file) as content:
            entries = [_scan_utterance(name, content) for name in content]
    except (OSError, RuntimeError, KeyError) as error:
        raise unreadable(file, error) from error
    # The process id is in the name: two processes may scan the same file, and the last to finish wins.
    temporary = index.with_suffix(f".{os.getpid()}.tmp")
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"key": key, "utterances": entries}))
        temporary.replace(index)
    except OSError as error:
        raise StabilityError(
            f"Cannot write the index of the data in {index_dir}: {error}. Make room, or give another place with "
            "outputs=FOLDER."
        ) from error
    return entries


def _scan_utterance(name: str | bytes, content: Any) -> Entry:
    if isinstance(name, bytes):
        return _unusable(name.decode(errors="backslashreplace"), "its name is not UTF-8")
    try:
        return _scan_group(name, member(content, name))
    except ValueError as error:
        problem = str(error)
    except TypeError as error:  # from h5py, for a type that it does not know
        problem = f"cannot be read ({error})"
    except MemoryError:
        problem = "is larger than the free memory"
    return _unusable(name, problem)


def _scan_group(name: str, group: Any) -> Entry:
    stored = member(group, "input_features") if isinstance(group, h5py.Group) else None
    if not isinstance(stored, h5py.Dataset):
        return _unusable(name, "has no dataset input_features")
    if stored.dtype.kind != "f" or stored.ndim != 2:
        return _unusable(
            name,
            f"input_features have dtype {stored.dtype} and shape {stored.shape}; "
            "expected floats of shape (bins, features)",
        )
    bins, n_features = stored.shape
    steps = read_integer(group, "n_time_steps")
    features = read_features(group)
    labels, problem_of_labels = _scan_labels(group)
    problems = [
        features_problem(features),
        None if steps == bins else f"n_time_steps is {steps}, but input_features have {bins} bins",
        problem_of_labels,
    ]
    return Entry(
        name=name,
        n_time_steps=bins,
        n_features=n_features,
        labels=labels,
        transcription=_scan_transcription(group),
        block=read_integer(group, "block_num"),
        number=read_integer(group, "trial_num"),
        largest=float(np.abs(features).max(initial=0)),
        problem="; ".join(filter(None, problems)) or None,
    )


def _unusable(name: str, problem: str) -> Entry:
    return Entry(
        name,
        n_time_steps=0,
        n_features=0,
        labels=None,
        transcription="",
        block=None,
        number=None,
        largest=0.0,
        problem=problem,
    )


def _scan_labels(group: Any) -> tuple[list[int] | None, str | None]:
    """The labels, if they can be read, and what is wrong with them."""
    stored = member(group, "seq_class_ids")
    if stored is None and "seq_len" not in group.attrs:
        return None, None
    if not isinstance(stored, h5py.Dataset):
        return None, "has seq_len, but no seq_class_ids"
    if stored.ndim != 1 or stored.dtype.kind not in "iu":
        return None, (
            f"seq_class_ids have dtype {stored.dtype} and shape {stored.shape}; expected integers of shape (labels,)"
        )
    ids = stored[()]
    length = read_integer(group, "seq_len")
    if length is None or not 0 <= length <= len(ids):
        return None, f"seq_len is {length}, but {len(ids)} label ids are stored"
    labels = ids[:length]
    return labels.tolist(), labels_problem(labels)


def _scan_transcription(group: Any) -> str:
    label = group.attrs.get("sentence_label")
    if isinstance(label, str):
        return label
    codes = member(group, "transcription")
    if not isinstance(codes, h5py.Dataset) or codes.dtype.kind not in "iu":
        return ""
    text: bytes = codes[()].astype(np.uint8).tobytes()
    return text.split(b"\0")[0].decode(errors="replace")
