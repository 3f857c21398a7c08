import itertools
import os
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.data import progress, t15
from stability.data.phonemes import BLANK, PHONEMES, SILENCE
from stability.data.t15 import Dataset, Split, Trial, open_dataset, open_split, write_session

DIGITS = Path(__file__).parents[3] / "shared/data/spoken-digits"


def trials(count: int, bins: int = 60, features: int = 4, seed: int = 0) -> Iterator[Trial]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        labels = rng.permutation(np.arange(1, 41))[:5]
        yield Trial(rng.normal(size=(bins, features)), labels, f"sentence {number}", 3, number + 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two days with three training and two validation trials each."""
    root = tmp_path / "data"
    for seed, day in enumerate(["day.1", "day.2"]):
        write_session(root / day, "train", trials(3, seed=seed))
        write_session(root / day, "val", trials(2, seed=seed + 10))
    return root


def opened(root: Path, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {"patch_size": 14, "patch_stride": 4, "max_cut": 2}
    settings["index_dir"] = root.parent / "index"
    return open_dataset(root, **(settings | changes))


def opened_split(root: Path, split: str, **changes: Any) -> Split:
    settings: dict[str, Any] = {"patch_size": 14, "patch_stride": 4, "index_dir": root.parent / "index"}
    return open_split(root, split, **(settings | changes))


def failure(root: Path, **changes: Any) -> str:
    with pytest.raises(StabilityError) as caught:
        opened(root, **changes)
    return str(caught.value)


def test_phonemes_are_the_classes_of_the_public_checkpoints() -> None:
    first = "BLANK AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH"
    second = "K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
    assert [*PHONEMES] == [*first.split(), *second.split(), " | "]
    assert (PHONEMES[BLANK], PHONEMES[SILENCE]) == ("BLANK", " | ")


# writing


def test_written_file_has_the_public_layout(tmp_path: Path) -> None:
    (trial,) = trials(1, bins=20)
    file = write_session(tmp_path / "t15.2023.08.11", "train", [trial])
    assert file == tmp_path / "t15.2023.08.11/data_train.hdf5"
    assert trial.labels is not None
    with h5py.File(file) as content:
        assert list(content) == ["trial_0000"]
        group = content["trial_0000"]
        assert set(group) == {"input_features", "seq_class_ids", "transcription"}
        assert group["input_features"].dtype == np.float32
        np.testing.assert_array_equal(group["input_features"][()], trial.features.astype(np.float32))
        ids, codes = group["seq_class_ids"][()], group["transcription"][()]
        assert ids.dtype == np.int64
        assert ids.shape == codes.shape == (500,)
        np.testing.assert_array_equal(ids[:5], trial.labels)
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


def test_test_files_carry_no_labels(root: Path) -> None:
    file = write_session(root / "day.2", "test", trials(2))
    with h5py.File(file) as content:
        assert set(content["trial_0001"]) == {"input_features"}
        assert set(content["trial_0001"].attrs) == {"n_time_steps", "block_num", "trial_num", "session"}
    split = opened_split(root, "test")
    assert split.sessions == ("day.1", "day.2")
    assert split.by_day == {1: [0, 1]}
    assert [record.labels for record in split.records] == [None, None]
    assert split.read(1).shape == (60, 4)


def test_same_trials_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_session(tmp_path / "a" / "day", "train", trials(20)).read_bytes()
    assert write_session(tmp_path / "b" / "day", "train", trials(20)).read_bytes() == first
    assert write_session(tmp_path / "b" / "day", "train", trials(20, seed=1)).read_bytes() != first


def test_trials_are_written_one_at_a_time(tmp_path: Path) -> None:
    earlier: list[weakref.ref[Any]] = []

    def watched() -> Iterator[Trial]:
        for trial in trials(5):
            assert sum(reference() is not None for reference in earlier) <= 1
            earlier.append(weakref.ref(trial.features))
            yield trial
            del trial

    write_session(tmp_path / "day", "train", watched())


def changed(**values: Any) -> Trial:
    (trial,) = trials(1)
    fields = {name: getattr(trial, name) for name in ("features", "labels", "transcription", "block", "number")}
    return Trial(**(fields | values))


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (changed(features=np.zeros(5)), r"trial 1: features have shape \(5,\), not \(bins, features\)"),
        (changed(features=np.zeros((0, 4))), r"features have shape \(0, 4\)"),
        (changed(features=np.zeros((60, 5))), "has 5 features, the trials before it have 4"),
        (
            changed(features=np.full((2, 4), np.inf)),
            "8 of 8 features are not finite, the first is inf at bin 0",
        ),
        (changed(labels=None), "has no labels; only test trials go without"),
        (changed(labels=np.array([], int)), "has no labels"),
        (changed(labels=np.ones((2, 2), int)), r"labels are int64 of shape \(2, 2\), not a row of integers"),
        (changed(labels=np.ones(3)), "labels are float64"),
        (changed(labels=np.ones(501, int)), "has 501 labels; the layout has room for 500"),
        (changed(labels=np.array([1, 0])), "label 0 at position 1 of 2 is not in 1 to 40"),
        (changed(labels=np.array([41, 1])), "label 41 at position 0 of 2 is not in 1 to 40"),
        (changed(transcription="x" * 500), "the transcription has 500 bytes; the layout has room for 499"),
        (changed(transcription="a\0b"), "none of them zero"),
    ],
)
def test_what_does_not_fit_the_layout_is_not_written(root: Path, trial: Trial, message: str) -> None:
    before = (root / "day.1/data_train.hdf5").read_bytes()
    with pytest.raises(StabilityError, match=message):
        write_session(root / "day.1", "train", [*trials(1), trial])
    assert (root / "day.1/data_train.hdf5").read_bytes() == before
    assert sorted(file.name for file in (root / "day.1").iterdir()) == ["data_train.hdf5", "data_val.hdf5"]


def test_longest_target_and_transcription_fit(tmp_path: Path) -> None:
    trial = changed(features=np.zeros((1500, 4)), labels=np.tile([1, 2], 250), transcription="x" * 499)
    write_session(tmp_path / "data/day", "train", [trial])
    write_session(tmp_path / "data/day", "val", [trial])
    (record,) = opened(tmp_path / "data", patch_size=1, patch_stride=1).train.records
    assert record.transcription == "x" * 499
    np.testing.assert_array_equal(record.labels, trial.labels)


def test_other_faults_of_a_writer_call_are_named(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="split is 'dev'; it is one of train, val, test"):
        write_session(tmp_path, "dev", trials(1))
    with pytest.raises(StabilityError, match="there are no trials to write"):
        write_session(tmp_path / "day", "train", [])
    (tmp_path / "file").touch()
    with pytest.raises(StabilityError, match="cannot be written"):
        write_session(tmp_path / "file" / "day", "train", trials(1))


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from stability.data.t15 import Trial, write_session
from stability.core.errors import StabilityError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
trials = (Trial(np.ones((99, 9)), np.ones(1, int), "", 0, i) for i in range(99))
try:
    write_session(Path(sys.argv[1]), "train", trials)
except StabilityError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "day"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "data_train.hdf5 cannot be written: [Errno 27] File too large" in done.stdout
    assert not [*(tmp_path / "day").iterdir()]


# reading


def test_what_was_written_is_read(root: Path) -> None:
    data = opened(root)
    assert data.sessions == ("day.1", "day.2")
    assert data.n_features == 4
    assert data.excluded == ()
    assert data.train.by_day == {0: [0, 1, 2], 1: [3, 4, 5]}
    assert data.val.by_day == {0: [0, 1], 1: [2, 3]}
    for i, trial in enumerate([*trials(3, seed=0), *trials(3, seed=1)]):
        record = data.train.records[i]
        assert (record.day, record.name, record.n_time_steps) == (i // 3, f"trial_{i % 3:04d}", 60)
        assert record.transcription == trial.transcription
        assert record.labels is not None
        assert record.labels.dtype == np.int64
        np.testing.assert_array_equal(record.labels, trial.labels)
        assert data.train.read(i).dtype == np.float32
        np.testing.assert_array_equal(data.train.read(i), trial.features.astype(np.float32))


def test_days_may_lack_a_split(root: Path) -> None:
    (root / "day.1/data_val.hdf5").unlink()
    (root / "day.2/data_train.hdf5").unlink()
    write_session(root / "day.0", "test", trials(1))
    (root / "notes").mkdir()
    (root / "README.md").touch()
    data = opened(root)
    assert data.sessions == ("day.0", "day.1", "day.2")
    assert data.train.by_day == {1: [0, 1, 2]}
    assert data.val.by_day == {2: [0, 1]}


def test_sessions_choose_and_order_the_days(root: Path) -> None:
    data = opened(root, sessions=["day.2", "day.1"])
    assert data.sessions == ("day.2", "day.1")
    first = next(trials(1, seed=1)).features.astype(np.float32)
    np.testing.assert_array_equal(data.train.read(0), first)
    assert opened(root, sessions=["day.2"]).train.by_day == {0: [0, 1, 2]}


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_converted(root: Path, dtype: type) -> None:
    with h5py.File(root / "day.1/data_train.hdf5", "r+") as file:
        values = file["trial_0000/input_features"][()].astype(dtype)
        replace(file["trial_0000"], "input_features", values)
    read = opened(root).train.read(0)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_transcription_is_read_from_its_codes_where_the_sentence_is_missing(root: Path) -> None:
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
from stability.data.t15 import open_split
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


# the index


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scanned: list[str] = []
    scan = t15._scan_trial

    def counting(name: str, group: Any) -> Any:
        scanned.append(name)
        return scan(name, group)

    monkeypatch.setattr(t15, "_scan_trial", counting)
    return scanned


def test_files_are_scanned_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = count_scans(monkeypatch)
    first = opened(root)
    assert len(scanned) == 10
    second = opened(root, patch_size=7, max_cut=0)
    assert len(scanned) == 10
    assert second.sessions == first.sessions
    for a, b in zip(first.train.records, second.train.records, strict=True):
        assert (a.day, a.name, a.n_time_steps, a.transcription) == (
            b.day,
            b.name,
            b.n_time_steps,
            b.transcription,
        )
        np.testing.assert_array_equal(a.labels, b.labels)


def test_a_changed_file_is_scanned_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(root)
    scanned = count_scans(monkeypatch)
    write_session(root / "day.1", "train", trials(4))
    assert len(opened(root).train.records) == 7
    assert len(scanned) == 4
    os.utime(root / "day.1/data_val.hdf5", ns=(0, 0))
    opened(root)
    assert len(scanned) == 6


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"key": 3', '{"key": null, "trials": []}'])
def test_a_broken_index_is_written_anew(root: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    opened(root)
    for index in (root.parent / "index").iterdir():
        index.write_text(content)
    scanned = count_scans(monkeypatch)
    opened(root)
    opened(root)
    assert len(scanned) == 10


def test_an_index_that_cannot_be_written_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "the index of the data cannot be written" in failure(root, index_dir=tmp_path / "file/index")


def test_progress_shows_on_a_terminal_only(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    opened(root)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    opened(root)
    out, err = capsys.readouterr()
    assert (out, "checking the data" in err) == ("", True)


# bad trials


def replace(group: Any, name: str, values: Any) -> None:
    del group[name]
    group[name] = values


def put(group: Any, name: str, index: Any, value: Any) -> None:
    group[name][index] = value


def attribute(group: Any, name: str, value: Any) -> None:
    group.attrs[name] = value


def without_labels(group: Any) -> None:
    del group["seq_class_ids"]
    del group.attrs["seq_len"]


def without(group: Any, dataset: str) -> None:
    del group[dataset]


def long_target(group: Any) -> None:
    put(group, "seq_class_ids", slice(0, 12), [3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    attribute(group, "seq_len", 12)


def short(group: Any) -> None:
    replace(group, "input_features", np.zeros((15, 4), np.float32))
    attribute(group, "n_time_steps", 15)


BAD: list[tuple[Callable[[Any], None], str]] = [
    (
        lambda g: put(g, "input_features", (7, 2), np.nan),
        "1 of 240 features are not finite, the first is nan at bin 7, feature 2",
    ),
    (
        lambda g: put(g, "input_features", (slice(3, 5), 1), -np.inf),
        "2 of 240 features are not finite, the first is -inf at bin 3, feature 1",
    ),
    (
        lambda g: replace(g, "input_features", np.full((60, 4), 1e300)),
        "240 of 240 features are not finite, the first is inf at bin 0, feature 0",
    ),
    (
        lambda g: replace(g, "input_features", np.zeros(60, np.float32)),
        "input_features are float32 of shape (60,), not floats of shape (bins, features)",
    ),
    (
        lambda g: replace(g, "input_features", np.zeros((60, 4), int)),
        "input_features are int64 of shape (60, 4), not floats of shape (bins, features)",
    ),
    (
        lambda g: replace(g, "input_features", np.zeros((0, 4), np.float32)),
        "features have shape (0, 4), not (bins, features); n_time_steps is 60, but input_features have 0 bins",
    ),
    (lambda g: without(g, "input_features"), "has no dataset input_features"),
    (lambda g: attribute(g, "n_time_steps", 61), "n_time_steps is 61, but input_features have 60 bins"),
    (lambda g: attribute(g, "n_time_steps", "x"), "n_time_steps is None, but input_features have 60 bins"),
    (without_labels, "has no labels, which train trials need"),
    (lambda g: attribute(g, "seq_len", 0), "has no labels, which train trials need"),
    (lambda g: without(g, "seq_class_ids"), "has seq_len, but no seq_class_ids"),
    (lambda g: g.attrs.__delitem__("seq_len"), "seq_len is None, but 500 label ids are stored"),
    (lambda g: attribute(g, "seq_len", 501), "seq_len is 501, but 500 label ids are stored"),
    (lambda g: attribute(g, "seq_len", -1), "seq_len is -1, but 500 label ids are stored"),
    (lambda g: put(g, "seq_class_ids", 4, 41), "label 41 at position 4 of 5 is not in 1 to 40"),
    (lambda g: put(g, "seq_class_ids", 2, -3), "label -3 at position 2 of 5 is not in 1 to 40"),
    (lambda g: attribute(g, "seq_len", 6), "label 0 at position 5 of 6 is not in 1 to 40"),
    (
        lambda g: replace(g, "seq_class_ids", np.ones(500)),
        "seq_class_ids are float64 of shape (500,), not a row of integers",
    ),
    (
        long_target,
        "CTC cannot align 12 labels with 2 repeats, which need 14 frames: "
        "60 bins less a cut of up to 2 give 12 (patch 14, stride 4)",
    ),
    (short, "15 bins less a cut of up to 2 are shorter than one patch of 14"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD)
def test_bad_trials_stop_or_are_left_out(root: Path, spoil: Callable[[Any], None], reason: str) -> None:
    with h5py.File(root / "day.2/data_train.hdf5", "r+") as file:
        spoil(file["trial_0001"])
    named = f"day.2/data_train.hdf5 trial_0001: {reason}"
    assert failure(root) == (
        f"1 of 10 trials in {root} are bad:\n  {named}\nmend them, or go on without them: data.on_bad_utterance=exclude"
    )
    data = opened(root, on_bad_utterance="exclude")
    assert data.excluded == (named,)
    assert data.train.by_day == {0: [0, 1, 2], 1: [3, 4]}
    assert [record.name for record in data.train.records[3:]] == ["trial_0000", "trial_0002"]
    good = [*trials(3, seed=1)][2].features.astype(np.float32)
    np.testing.assert_array_equal(data.train.read(4), good)


def test_something_else_than_a_trial_is_named(root: Path) -> None:
    with h5py.File(root / "day.1/data_val.hdf5", "r+") as file:
        file["notes"] = np.zeros(3)
    assert "day.1/data_val.hdf5 notes: has no dataset input_features" in failure(root)


def test_validation_is_not_cut(root: Path) -> None:
    for split in ("train", "val"):
        with h5py.File(root / f"day.1/data_{split}.hdf5", "r+") as file:
            short(file["trial_0000"])
            attribute(file["trial_0000"], "seq_len", 1)
    assert opened(root, on_bad_utterance="exclude").excluded == (
        "day.1/data_train.hdf5 trial_0000: 15 bins less a cut of up to 2 are shorter than one patch of 14",
    )
    assert opened(root, max_cut=1).excluded == ()
    assert len(opened_split(root, "train").records) == 6


def test_test_trials_may_be_bad_too(root: Path) -> None:
    file = write_session(root / "day.1", "test", trials(2))
    with h5py.File(file, "r+") as content:
        put(content["trial_0001"], "input_features", (0, 0), np.nan)
    with pytest.raises(StabilityError, match=r"1 of 2 trials .* are bad"):
        opened_split(root, "test")
    split = opened_split(root, "test", on_bad_utterance="exclude")
    assert len(split.records) == len(split.excluded) == 1


def test_only_the_first_bad_trials_are_listed(root: Path) -> None:
    file = write_session(root / "day.1", "train", trials(30))
    with h5py.File(file, "r+") as content:
        for group in content.values():
            put(group, "input_features", (0, 0), np.nan)
    message = failure(root)
    assert message.startswith(f"30 of 37 trials in {root} are bad:")
    assert "trial_0009: 1 of 240" in message
    assert "trial_0010" not in message
    assert "\n  and 20 more\n" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_lost_all_its_trials_is_an_error(root: Path, split: str) -> None:
    for day in ("day.1", "day.2"):
        with h5py.File(root / day / f"data_{split}.hdf5", "r+") as content:
            for group in content.values():
                without_labels(group)
    message = failure(root, on_bad_utterance="exclude")
    assert message.startswith(f"no {split} trial in {root} for the sessions day.1, day.2: all are bad:\n")
    assert f"day.1/data_{split}.hdf5 trial_0000: has no labels, which {split} trials need" in message


def test_the_ways_with_bad_trials_are_two(root: Path) -> None:
    assert failure(root, on_bad_utterance="skip") == "data.on_bad_utterance is 'skip'; it is one of error, exclude"


def test_ctc_rule_agrees_with_all_alignments(tmp_path: Path) -> None:
    patch, stride, max_cut = 3, 2, 1
    alignable = {frames: {collapse(path) for path in itertools.product(range(3), repeat=frames)} for frames in range(7)}
    targets = [target for length in range(1, 4) for target in itertools.product([1, 2], repeat=length)]
    cases = [(bins, target) for bins in range(3, 14) for target in targets]
    for name in ("train", "val"):
        written = (Trial(np.zeros((bins, 1)), np.array(target), "", 0, 0) for bins, target in cases)
        write_session(tmp_path / "data/day", name, written)
    settings = {"patch_size": patch, "patch_stride": stride, "max_cut": max_cut, "on_bad_utterance": "exclude"}
    data = opened(tmp_path / "data", **settings)
    for split, cuts in ((data.train, [0, 1]), (data.val, [0])):
        expected = {
            f"trial_{i:04d}"
            for i, (bins, target) in enumerate(cases)
            if all(target in alignable[len(range(0, bins - cut - patch + 1, stride))] for cut in cuts)
        }
        assert {record.name for record in split.records} == expected
        assert 0 < len(expected) < len(cases)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


# fatal whatever on_bad_utterance says


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
    assert message.startswith(f"{file} cannot be read as HDF5; is it complete? (")
    assert reason in message


def test_an_unreadable_file_is_fatal(root: Path) -> None:
    file = root / "day.2/data_val.hdf5"
    file.unlink()
    file.mkdir()
    assert str(file) in failure(root)
    file.rmdir()
    file.symlink_to(root / "gone")
    assert re.search(r"a data file cannot be read: .*No such file.*data_val\.hdf5", failure(root))


def test_a_file_that_goes_away_is_named(root: Path) -> None:
    data = opened(root)
    (root / "day.1/data_train.hdf5").unlink()
    with pytest.raises(StabilityError, match=r"day\.1/data_train\.hdf5 cannot be read as HDF5"):
        data.train.read(0)


def test_a_file_that_has_changed_since_it_was_checked_is_named(root: Path) -> None:
    data = opened(root)
    write_session(root / "day.1", "train", trials(3, bins=50))
    with pytest.raises(StabilityError, match=r"day\.1/data_train\.hdf5 has changed since it was checked"):
        data.train.read(0)


def test_a_wrong_path_is_explained(root: Path, tmp_path: Path) -> None:
    layout = "expected one folder a session with data_train.hdf5, data_val.hdf5 or data_test.hdf5 in it"
    gone, empty, file = tmp_path / "gone", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    assert failure(gone) == f"data path {gone} does not exist; {layout}"
    assert failure(empty) == f"data path {empty} holds no session folder; {layout}"
    assert failure(file) == f"data path {file} is a file, not a folder; {layout}"
    day = root / "day.1"
    assert failure(day) == f"data path {day} is itself a session folder; give its parent {root.resolve()}"


def test_feature_counts_must_agree(root: Path) -> None:
    write_session(root / "day.2", "val", trials(2, features=5))
    assert failure(root, on_bad_utterance="exclude") == (
        f"feature counts differ in {root}: day.1/data_train.hdf5 trial_0000 has 4, "
        "day.2/data_val.hdf5 trial_0000 has 5; all trials need the same"
    )


def test_wrong_sessions_are_explained(root: Path) -> None:
    assert failure(root, sessions=["day.1", "day.9"]) == f"no session day.9 in {root}; there are: day.1, day.2"
    assert "name at least one, and each only once" in failure(root, sessions=[])
    assert "sessions are [day.1, day.1]" in failure(root, sessions=["day.1", "day.1"])
    with pytest.raises(StabilityError, match="split is 'dev'; it is one of train, val, test"):
        opened_split(root, "dev")


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_trial_at_all_is_an_error(root: Path, split: str) -> None:
    (root / f"day.1/data_{split}.hdf5").unlink()
    with h5py.File(root / f"day.2/data_{split}.hdf5", "w"):
        pass
    reason = f"no data_{split}.hdf5 holds any"
    assert failure(root) == f"no {split} trial in {root} for the sessions day.1, day.2: {reason}"


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
