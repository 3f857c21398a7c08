"""What is opened and read, and which paths and files are refused."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.data.phonemes import PHONEMES
from stability.data.t15_writer import write_session
from tests.support.sessions import failure, opened, opened_split, replace_dataset, utterances

DIGITS = Path(__file__).parents[3] / "shared/data/spoken-digits"


def test_what_was_written_is_read(root: Path) -> None:
    data = opened(root)
    assert data.sessions == ("day.1", "day.2")
    assert data.n_features == 4
    assert data.excluded == ()
    assert data.train.by_day == {0: [0, 1, 2], 1: [3, 4, 5]}
    assert data.val.by_day == {0: [0, 1], 1: [2, 3]}
    for i, utterance in enumerate([*utterances(3, seed=0), *utterances(3, seed=1)]):
        record = data.train.records[i]
        assert (record.day, record.name, record.n_time_steps) == (i // 3, f"trial_{i % 3:04d}", 60)
        assert record.transcription == utterance.transcription
        assert (record.block, record.number) == (3, i % 3 + 10)
        assert record.labels is not None
        assert record.labels.dtype == np.int64
        np.testing.assert_array_equal(record.labels, utterance.labels)
        assert data.train.read(i).dtype == np.float32
        np.testing.assert_array_equal(data.train.read(i), utterance.features.astype(np.float32))


def test_days_may_lack_a_split(root: Path) -> None:
    (root / "day.1/data_val.hdf5").unlink()
    (root / "day.2/data_train.hdf5").unlink()
    write_session(root / "day.0", "test", utterances(1))
    (root / "notes").mkdir()
    (root / "README.md").touch()
    data = opened(root)
    assert data.sessions == ("day.0", "day.1", "day.2")
    assert data.train.by_day == {1: [0, 1, 2]}
    assert data.val.by_day == {2: [0, 1]}


def test_hidden_folders_are_no_sessions_and_lost_ones_are_named(root: Path) -> None:
    shutil.copytree(root / "day.1", root / ".day.1")
    assert opened(root).sessions == ("day.1", "day.2")
    (root / "day.2").rename(root.parent / "elsewhere")
    (root / "day.2").symlink_to(root.parent / "elsewhere")
    assert opened(root).sessions == ("day.1", "day.2")
    (root.parent / "elsewhere").rename(root.parent / "away")
    message = f"{root / 'day.2'} is a link to {root.parent / 'elsewhere'}, which does not exist. "
    assert failure(root) == message + "Bring it back, or delete the link."
    assert opened(root, sessions=["day.1"]).sessions == ("day.1",)


def test_sessions_choose_and_order_the_days(root: Path) -> None:
    data = opened(root, sessions=["day.2", "day.1"])
    assert data.sessions == ("day.2", "day.1")
    first = next(utterances(1, seed=1)).features.astype(np.float32)
    np.testing.assert_array_equal(data.train.read(0), first)
    assert opened(root, sessions=["day.2"]).train.by_day == {0: [0, 1, 2]}


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_converted(root: Path, dtype: type) -> None:
    with h5py.File(root / "day.1/data_train.hdf5", "r+") as file:
        values = file["trial_0000/input_features"][()].astype(dtype)
        replace_dataset(file["trial_0000"], "input_features", values)
    read = opened(root).train.read(0)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_the_transcription_is_read_from_its_codes_if_the_sentence_is_missing(root: Path) -> None:
    with h5py.File(root / "day.1/data_train.hdf5", "r+") as file:
        del file["trial_0000"].attrs["sentence_label"]
        del file["trial_0001"].attrs["sentence_label"]
        del file["trial_0001"]["transcription"]
    assert [record.transcription for record in opened(root).train.records[:3]] == [
        "sentence 0",
        "",
        "sentence 2",
    ]


def test_pickled_and_forked_copies_read_too(root: Path) -> None:
    data = opened(root)
    expected = data.train.read(5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).train.read(5), expected)
    script = """
import os, sys
from pathlib import Path
import numpy as np
from stability.data.t15_reader import open_split
root = Path(sys.argv[1])
split = open_split(root, "train", patch_size=1, patch_stride=1, index_dir=root.parent / "index")
before = split.read(5)
for _ in range(2):
    if (child := os.fork()) == 0:
        os._exit(not np.array_equal(split.read(5), before))
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(split.read(5), before)
"""
    subprocess.run([sys.executable, "-c", script, root], check=True)


@pytest.mark.parametrize("on_bad_utterance", ["error", "exclude"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda good: b"", "file signature not found"),
        (lambda good: b"hello " * 999, "file signature not found"),
        (lambda good: good[: len(good) // 2], "truncated file"),
        (lambda good: good[:600] + b"\xff" * 2000 + good[2600:], ""),
    ],
)
def test_a_broken_file_is_fatal(
    root: Path, content: Callable[[bytes], bytes], reason: str, on_bad_utterance: str
) -> None:
    file = root / "day.2/data_val.hdf5"
    file.write_bytes(content(file.read_bytes()))
    message = failure(root, on_bad_utterance=on_bad_utterance)
    assert message.startswith(f"Cannot read {file} as an HDF5 file (")
    assert reason in message
    assert message.endswith("). If it is incomplete, copy it again.")


def test_an_unreadable_file_is_fatal(root: Path) -> None:
    file = root / "day.2/data_val.hdf5"
    file.unlink()
    file.mkdir()
    assert str(file) in failure(root)
    file.rmdir()
    os.mkfifo(file)
    assert failure(root).startswith(f"Cannot read {file} as an HDF5 file (it is not a regular file).")
    file.unlink()
    file.symlink_to(root / "gone")
    assert re.search(r"Cannot read a data file: .*No such file.*data_val\.hdf5", failure(root))


def test_a_file_that_was_removed_is_named(root: Path) -> None:
    data = opened(root)
    (root / "day.1/data_train.hdf5").unlink()
    with pytest.raises(StabilityError, match=r"Cannot read .*day\.1/data_train\.hdf5 as an HDF5 file"):
        data.train.read(0)


def test_a_file_that_has_changed_since_it_was_checked_is_named(root: Path) -> None:
    data = opened(root)
    write_session(root / "day.1", "train", utterances(3, bins=50))
    with pytest.raises(StabilityError, match=r"day\.1/data_train\.hdf5 has changed since it was checked"):
        data.train.read(0)


def test_a_wrong_path_is_explained(root: Path, tmp_path: Path) -> None:
    layout = (
        "Give a folder with one folder for each session, each with data_train.hdf5, data_val.hdf5 or data_test.hdf5."
    )
    gone, empty, file = tmp_path / "gone", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    assert failure(gone) == f"The data path {gone} does not exist. {layout}"
    assert failure(empty) == f"The data path {empty} contains no session folder. {layout}"
    assert failure(file) == f"The data path {file} is a file, not a folder. {layout}"
    day = root / "day.1"
    assert failure(day) == (
        f"The data path {day} is itself a session folder. Give its parent: data.path={root.resolve()}"
    )


def test_feature_counts_must_agree(root: Path) -> None:
    write_session(root / "day.2", "val", utterances(2, features=5))
    assert failure(root, on_bad_utterance="exclude") == (
        f"Feature counts differ in {root}: day.1/data_train.hdf5 trial_0000 has 4, "
        "day.2/data_val.hdf5 trial_0000 has 5. All utterances need the same number."
    )


def test_wrong_sessions_are_explained(root: Path) -> None:
    assert (
        failure(root, sessions=["day.1", "day.9"]) == f"{root} has no session day.9. Its sessions are day.1 and day.2."
    )
    assert "Name at least one, and each only once." in failure(root, sessions=[])
    assert "The sessions are [day.1, day.1]" in failure(root, sessions=["day.1", "day.1"])
    with pytest.raises(StabilityError, match="split is 'dev'; use one of train, val, test"):
        opened_split(root, "dev")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_utterances_is_an_error(root: Path, split: str) -> None:
    (root / f"day.1/data_{split}.hdf5").unlink()
    with h5py.File(root / f"day.2/data_{split}.hdf5", "w"):
        pass
    reason = f"no data_{split}.hdf5 contains any."
    assert failure(root) == f"{root} has no {split} utterances in the sessions day.1 and day.2: {reason}"


def test_bad_utterances_can_only_stop_or_be_left_out(root: Path) -> None:
    assert failure(root, on_bad_utterance="skip") == "data.on_bad_utterance is 'skip'; use error or exclude."


@pytest.mark.skipif(not DIGITS.is_dir(), reason="the spoken digits are not here")
def test_spoken_digits_are_read(tmp_path: Path) -> None:
    data = opened(DIGITS, index_dir=tmp_path)
    assert (len(data.train.records), len(data.val.records)) == (480, 120)
    assert (len(data.sessions), data.n_features) == (6, 40)
    assert [len(day) for day in data.train.by_day.values()] == [80] * 6
    record, features = data.train.records[0], data.train.read(0)
    assert record.transcription == "zero four six eight"
    assert record.labels is not None
    spelled = "Z IH R OW | F AO R | S IH K S | EY T |"
    assert " ".join(PHONEMES[label].strip() for label in record.labels) == spelled
    assert features.shape == (record.n_time_steps, 40)
