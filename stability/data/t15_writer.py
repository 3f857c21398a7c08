"""Write utterances in the public T15 layout. This is how you bring your own data."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.data.hdf5_file import replacing_hdf5
from stability.data.t15_checker import features_problem, labels_problem
from stability.data.t15_layout import ID_SLOTS, file_name


@dataclass(frozen=True, eq=False, kw_only=True)
class Utterance:
    """One utterance to write.

    Attributes:
        features: The neural features, (bins, features), all finite; stored as float32.
        labels: Class ids of the spoken phonemes, (labels,), each from 1 to 40, at most 500; None if they are unknown.
        transcription: The sentence, at most 499 bytes in UTF-8.
        block: Block of the recording day.
        number: Number of the utterance in its block.
    """

    features: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]] | None
    transcription: str = ""
    block: int = 0
    number: int = 0


def write_session(folder: Path, split: str, utterances: Iterable[Utterance]) -> Path:
    """Write the utterances of one split of one session.

    The file appears, or replaces an earlier one, only when it is complete. The same utterances give the same bytes.

    Args:
        folder: The session's folder; it is made if it is missing. Its name is the session's name. The folders next to
            it are the other days of the data set. Their parent is the path to give to `open_dataset` and `data.path`.
        split: "train", "val" or "test". For "test", neither labels nor transcription are stored.
        utterances: Consumed one at a time, so a generator saves memory. All need the same number of features. The
            features should be z-scored for each feature and session, as the augmentation noise is in units of their
            standard deviation. A bin is 20 ms in the public recordings.

    Returns:
        The file, `folder/data_{split}.hdf5`.

    Raises:
        StabilityError: An utterance does not fit the layout, or the file cannot be written. An earlier file stays.
    """
    target = folder / file_name(split)
    try:
        with replacing_hdf5(target) as (file, check_written):
            n_features = None
            for index, utterance in enumerate(utterances):
                group = file.create_group(f"trial_{index:04d}")
                where = f"{target}, utterance {index}"
                features = _to_float32(utterance, n_features, where)
                n_features = features.shape[1]
                group.create_dataset("input_features", data=features)
                group.attrs["n_time_steps"] = np.int64(len(features))
                group.attrs["block_num"] = np.int64(utterance.block)
                group.attrs["trial_num"] = np.int64(utterance.number)
                group.attrs["session"] = folder.resolve().name
                if split != "test":
                    _write_labels(group, utterance, where)
                check_written()
            if n_features is None:
                raise StabilityError(f"There are no utterances to write to {target}.")
    except OSError as error:
        raise StabilityError(f"Cannot write {target}: {error}. Make room, or choose another folder.") from error
    return target


def _to_float32(utterance: Utterance, n_features: int | None, where: str) -> NDArray[np.float32]:
    features = np.asarray(utterance.features, dtype=np.float32)
    if problem := features_problem(features):
        raise StabilityError(f"{where}: {problem}")
    if n_features not in (None, features.shape[1]):
        raise StabilityError(f"{where}: has {features.shape[1]} features; the utterances before it have {n_features}")
    return features


def _write_labels(group: Any, utterance: Utterance, where: str) -> None:
    labels = np.asarray([] if utterance.labels is None else utterance.labels)
    if labels.size == 0:
        raise StabilityError(f"{where}: has no labels; only utterances of the split test may have none")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise StabilityError(
            f"{where}: labels have dtype {labels.dtype} and shape {labels.shape}; expected integers of shape (labels,)"
        )
    if labels.size > ID_SLOTS:
        raise StabilityError(f"{where}: has {labels.size} labels; the layout has room for {ID_SLOTS}")
    if problem := labels_problem(labels):
        raise StabilityError(f"{where}: {problem}")
    codes = utterance.transcription.encode()
    if len(codes) >= ID_SLOTS:
        raise StabilityError(
            f"{where}: the transcription has {len(codes)} bytes; the layout has room for {ID_SLOTS - 1}"
        )
    if 0 in codes:
        raise StabilityError(f"{where}: the transcription contains a zero byte, which marks its end in the layout")
    group.create_dataset("seq_class_ids", data=_fill_slots(labels))
    group.create_dataset("transcription", data=_fill_slots(np.frombuffer(codes, np.uint8)))
    group.attrs["seq_len"] = np.int64(labels.size)
    group.attrs["sentence_label"] = utterance.transcription


def _fill_slots(values: NDArray[Any]) -> NDArray[np.int64]:
    slots = np.zeros(ID_SLOTS, np.int64)
    slots[: len(values)] = values
    return slots
