"""Write the logits of utterances into one file, HDF5 or NPZ, for a decoder into words.

Each session has a group, and in it each utterance has one, with the names of the recordings: SESSION/trial_0000. What
is in it has the names that the public evaluation gives them:

    logits           (frames, 41) float32, before the softmax, in the order of LOGIT_TO_PHONEME, which the file has too
    pred_seq         (phonemes,) the greedily decoded phonemes, as texts
    seq_class_ids    (labels,) class ids of the spoken phonemes, if the utterance has labels
    session, block_num, trial_num, seq_len, sentence_label    as in the recordings

In HDF5 the last line are attributes. In NPZ each is an array: SESSION/trial_0000/logits.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.core.files import replacing
from stability.data.hdf5_file import replacing_hdf5
from stability.data.phonemes import PHONEMES
from stability.data.records import Record

AddUtterance = Callable[[str, Record, NDArray[np.float32], Sequence[int]], None]
_AddEntry = Callable[[str, dict[str, Any], dict[str, Any]], None]  # takes a group's name, datasets and attributes
_ORDER = "LOGIT_TO_PHONEME"


def check_logits_file(path: Path, *, overwrite: bool) -> None:
    """Check that logits may be written to a file.

    Raises:
        StabilityError: The name has another ending, or there is such a file already.
    """
    if path.suffix not in _FORMATS:
        raise StabilityError(f"--logits {path}: the name has to end in {', '.join(_FORMATS)}.")
    if path.is_dir() or (path.exists() and not overwrite):
        mend = "Give the name of a file." if path.is_dir() else "Give another name, or replace it with --overwrite."
        raise StabilityError(f"--logits {path} exists. {mend}")


@contextmanager
def write_logits(path: Path) -> Iterator[AddUtterance]:
    """Open a file of logits that appears under its name at the end of the `with` block, unless the block raises.

    Args:
        path: The file, with an ending that `check_logits_file` accepts.

    Returns:
        A context manager. It gives a function that adds an utterance: its session, its record, its logits and the class
        ids of its decoded phonemes. Nothing is kept in memory.

    Raises:
        StabilityError: The file cannot be written.
    """
    try:
        with _FORMATS[path.suffix](path) as add_entry:

            def add(session: str, record: Record, logits: NDArray[np.float32], decoded: Sequence[int]) -> None:
                datasets = {"logits": logits, "pred_seq": _texts([PHONEMES[c] for c in decoded])}
                known = {"session": session, "block_num": record.block, "trial_num": record.number}
                if record.labels is not None:
                    datasets["seq_class_ids"] = record.labels
                    known |= {"seq_len": len(record.labels), "sentence_label": record.transcription}
                attributes = {name: value for name, value in known.items() if value is not None}
                add_entry(f"{session}/{record.name}", datasets, attributes)

            yield add
    except OSError as error:
        raise StabilityError(
            f"Cannot write {path}: {error.strerror or error}. Make room, or give another place with --logits."
        ) from error


@contextmanager
def _hdf5(path: Path) -> Iterator[_AddEntry]:
    with replacing_hdf5(path) as (file, check_written):
        file[_ORDER] = _texts(PHONEMES)

        def add(name: str, datasets: dict[str, Any], attributes: dict[str, Any]) -> None:
            group = file.create_group(name)
            for dataset, values in datasets.items():
                group[dataset] = values
            group.attrs.update(attributes)
            check_written()

        yield add


@contextmanager
def _npz(path: Path) -> Iterator[_AddEntry]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:

        def put(name: str, values: Any) -> None:
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asanyarray(values), allow_pickle=False)

        def add(name: str, datasets: dict[str, Any], attributes: dict[str, Any]) -> None:
            for inner, values in (datasets | attributes).items():
                put(f"{name}/{inner}", values)

        put(_ORDER, _texts(PHONEMES))
        yield add


def _texts(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """ASCII texts, in a type that both formats have."""
    return np.array(texts, "S5") if len(texts) else np.zeros(0, "S5")


_FORMATS = {".hdf5": _hdf5, ".h5": _hdf5, ".npz": _npz}
