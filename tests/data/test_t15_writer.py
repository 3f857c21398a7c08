"""What `write_session` writes, and what it refuses."""

import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.data.t15_writer import Utterance, write_session
from tests.support.sessions import opened, opened_split, utterances


def test_a_written_file_has_the_public_layout(tmp_path: Path) -> None:
    (utterance,) = utterances(1, bins=20)
    file = write_session(tmp_path / "t15.2023.08.11", "train", [utterance])
    assert file == tmp_path / "t15.2023.08.11/data_train.hdf5"
    assert utterance.labels is not None
    with h5py.File(file) as content:
        assert list(content) == ["trial_0000"]
        group = content["trial_0000"]
        assert set(group) == {"input_features", "seq_class_ids", "transcription"}
        assert group["input_features"].dtype == np.float32
        np.testing.assert_array_equal(group["input_features"][()], utterance.features.astype(np.float32))
        ids, codes = group["seq_class_ids"][()], group["transcription"][()]
        assert ids.dtype == np.int64
        assert ids.shape == codes.shape == (500,)
        np.testing.assert_array_equal(ids[:5], utterance.labels)
        assert not ids[5:].any()
        assert "".join(map(chr, codes[:10])) == "sentence 0"
        assert not codes[10:].any()
        assert dict(group.attrs) == {
            "n_time_steps": 20,
            "seq_len": 5,
            "block_num": 3,
            "trial_num": 10,
            "session": "t15.2023.08.11",
            "sentence_label": "sentence 0",
        }


def test_test_files_contain_no_labels(root: Path) -> None:
    file = write_session(root / "day.2", "test", utterances(2))
    with h5py.File(file) as content:
        assert set(content["trial_0001"]) == {"input_features"}
        assert set(content["trial_0001"].attrs) == {"n_time_steps", "block_num", "trial_num", "session"}
    split = opened_split(root, "test")
    assert split.sessions == ("day.1", "day.2")
    assert split.by_day == {1: [0, 1]}
    assert [record.labels for record in split.records] == [None, None]
    assert split.read(1).shape == (60, 4)


def test_the_same_utterances_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_session(tmp_path / "a" / "day", "train", utterances(20)).read_bytes()
    assert write_session(tmp_path / "b" / "day", "train", utterances(20)).read_bytes() == first
    assert write_session(tmp_path / "b" / "day", "train", utterances(20, seed=1)).read_bytes() != first


def test_utterances_are_written_one_at_a_time(tmp_path: Path) -> None:
    earlier: list[weakref.ref[Any]] = []

    def watched() -> Iterator[Utterance]:
        for utterance in utterances(5):
            assert sum(reference() is not None for reference in earlier) <= 1
            earlier.append(weakref.ref(utterance.features))
            yield utterance
            del utterance

    write_session(tmp_path / "day", "train", watched())


def changed(**values: Any) -> Utterance:
    (utterance,) = utterances(1)
    fields = {name: getattr(utterance, name) for name in ("features", "labels", "transcription", "block", "number")}
    return Utterance(**(fields | values))


@pytest.mark.parametrize(
    ("utterance", "message"),
    [
        (
            changed(features=np.zeros(5)),
            r"utterance 1: features have shape \(5,\); expected at least",
        ),
        (changed(features=np.zeros((0, 4))), r"features have shape \(0, 4\)"),
        (changed(features=np.zeros((60, 5))), "has 5 features; the utterances before it have 4"),
        (
            changed(features=np.full((2, 4), np.inf)),
            "features have 8 non-finite values among 8; the first is inf at bin 0",
        ),
        (changed(labels=None), "has no labels; only utterances of the split test may have none"),
        (changed(labels=np.array([], int)), "has no labels"),
        (
            changed(labels=np.ones((2, 2), int)),
            r"labels have dtype int64 and shape \(2, 2\); expected integers of shape \(labels,\)",
        ),
        (changed(labels=np.ones(3)), "labels have dtype float64"),
        (changed(labels=np.ones(501, int)), "has 501 labels; the layout has room for 500"),
        (changed(labels=np.array([1, 0])), "label 0 at position 1 of 2 is not in 1 to 40"),
        (changed(labels=np.array([41, 1])), "label 41 at position 0 of 2 is not in 1 to 40"),
        (changed(transcription="x" * 500), "the transcription has 500 bytes; the layout has room for 499"),
        (changed(transcription="a\0b"), "the transcription contains a zero byte"),
    ],
)
def test_an_utterance_that_does_not_fit_the_layout_is_not_written(
    root: Path, utterance: Utterance, message: str
) -> None:
    before = (root / "day.1/data_train.hdf5").read_bytes()
    with pytest.raises(StabilityError, match=message):
        write_session(root / "day.1", "train", [*utterances(1), utterance])
    assert (root / "day.1/data_train.hdf5").read_bytes() == before
    assert sorted(file.name for file in (root / "day.1").iterdir()) == ["data_train.hdf5", "data_val.hdf5"]


def test_the_longest_labels_and_transcription_fit(tmp_path: Path) -> None:
    utterance = changed(features=np.zeros((1500, 4)), labels=np.tile([1, 2], 250), transcription="x" * 499)
    write_session(tmp_path / "data/day", "train", [utterance])
    write_session(tmp_path / "data/day", "val", [utterance])
    (record,) = opened(tmp_path / "data", patch_size=1, patch_stride=1).train.records
    assert record.transcription == "x" * 499
    np.testing.assert_array_equal(record.labels, utterance.labels)


def test_other_mistakes_of_the_caller_are_named(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="split is 'dev'; use one of train, val, test"):
        write_session(tmp_path, "dev", utterances(1))
    with pytest.raises(StabilityError, match=r"There are no utterances to write to .*data_train\.hdf5"):
        write_session(tmp_path / "day", "train", [])
    (tmp_path / "file").touch()
    with pytest.raises(StabilityError, match=r"Cannot write .*data_train\.hdf5"):
        write_session(tmp_path / "file" / "day", "train", utterances(1))


def test_a_full_disk_gives_one_clear_message(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from stability.data.t15_writer import Utterance, write_session
from stability.core.errors import StabilityError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
utterances = (Utterance(features=np.ones((99, 9)), labels=np.ones(1, int)) for _ in range(99))
try:
    write_session(Path(sys.argv[1]), "train", utterances)
except StabilityError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "day"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data_train.hdf5: [Errno 27] File too large. Make room" in done.stdout
    assert not [*(tmp_path / "day").iterdir()]
