"""Each file is scanned once, and each bad utterance is found and named."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.data import t15_checker
from stability.data.phonemes import BLANK
from stability.data.t15_writer import Utterance, write_session
from tests.support.sessions import (
    count_calls,
    failure,
    opened,
    opened_split,
    put,
    remove_labels,
    replace_dataset,
    set_attribute,
    shorten,
    utterances,
)


def test_files_are_scanned_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = count_calls(monkeypatch, t15_checker, "open_file")
    first = opened(root)
    assert len(scanned) == 4
    second = opened(root, patch_size=7, max_cut=0)
    assert len(scanned) == 4
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
    scanned = count_calls(monkeypatch, t15_checker, "open_file")
    write_session(root / "day.1", "train", utterances(4))
    assert len(opened(root).train.records) == 7
    assert scanned == [(root / "day.1/data_train.hdf5",)]
    os.utime(root / "day.1/data_val.hdf5", ns=(0, 0))
    opened(root)
    assert scanned[1:] == [(root / "day.1/data_val.hdf5",)]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"key": 3', '{"key": null, "utterances": []}'])
def test_a_broken_index_is_written_again(root: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    opened(root)
    for index in (root.parent / "index").iterdir():
        index.write_text(content)
    scanned = count_calls(monkeypatch, t15_checker, "open_file")
    opened(root)
    opened(root)
    assert len(scanned) == 4


def test_an_index_that_cannot_be_written_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = failure(root, index_dir=tmp_path / "file/index")
    assert message.startswith(f"Cannot write the index of the data in {tmp_path}/file/index: ")


def remove(group: Any, dataset: str) -> None:
    del group[dataset]


def long_target(group: Any) -> None:
    put(group, "seq_class_ids", slice(0, 12), [3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    set_attribute(group, "seq_len", 12)


def replace_by_group(group: Any, name: str) -> None:
    del group[name]
    group.create_group(name)


def replace_by_times(group: Any, name: str) -> None:
    """Put a dataset of HDF5's own type for times there, which NumPy does not know."""
    del group[name]
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4,)), early)


def declare(group: Any, name: str, shape: tuple[int, ...], **options: Any) -> None:
    """Declare a dataset, and write none of its values: HDF5 reads them as zeros."""
    del group[name]
    group.create_dataset(name, shape, np.float32 if name == "input_features" else np.int32, **options)


def virtual(group: Any, source: str) -> None:
    layout = h5py.VirtualLayout((60, 4), np.float32)
    layout[:] = h5py.VirtualSource(source, "x", (60, 4))
    del group["input_features"]
    group.create_virtual_dataset("input_features", layout)


def external(group: Any) -> None:
    """Take a file outside as features."""
    outside = Path(group.file.filename).with_name("secret.bin")
    outside.write_bytes(bytes(960))
    del group["input_features"]
    group.create_dataset("input_features", (60, 4), np.float32, external=[(str(outside), 0, 960)])


BAD: list[tuple[Callable[[Any], None], str]] = [
    (
        lambda g: put(g, "input_features", (7, 2), np.nan),
        "features have 1 non-finite value among 240; the first is nan at bin 7, feature 2",
    ),
    (
        lambda g: put(g, "input_features", (slice(3, 5), 1), -np.inf),
        "features have 2 non-finite values among 240; the first is -inf at bin 3, feature 1",
    ),
    (
        lambda g: replace_dataset(g, "input_features", np.full((60, 4), 1e300)),
        "features have 240 non-finite values among 240; the first is inf at bin 0, feature 0",
    ),
    (
        lambda g: replace_dataset(g, "input_features", np.zeros(60, np.float32)),
        "input_features have dtype float32 and shape (60,); expected floats of shape (bins, features)",
    ),
    (
        lambda g: replace_dataset(g, "input_features", np.zeros((60, 4), int)),
        "input_features have dtype int64 and shape (60, 4); expected floats of shape (bins, features)",
    ),
    (
        lambda g: replace_dataset(g, "input_features", np.zeros((0, 4), np.float32)),
        "features have shape (0, 4); expected at least one bin and one feature; "
        "n_time_steps is 60, but input_features have 0 bins",
    ),
    (lambda g: remove(g, "input_features"), "has no dataset input_features"),
    (lambda g: set_attribute(g, "n_time_steps", 61), "n_time_steps is 61, but input_features have 60 bins"),
    (lambda g: set_attribute(g, "n_time_steps", "x"), "n_time_steps is None, but input_features have 60 bins"),
    (remove_labels, "has no labels, which the split train needs"),
    (lambda g: set_attribute(g, "seq_len", 0), "has no labels, which the split train needs"),
    (lambda g: remove(g, "seq_class_ids"), "has seq_len, but no seq_class_ids"),
    (lambda g: g.attrs.__delitem__("seq_len"), "seq_len is None, but 500 label ids are stored"),
    (lambda g: set_attribute(g, "seq_len", 501), "seq_len is 501, but 500 label ids are stored"),
    (lambda g: set_attribute(g, "seq_len", -1), "seq_len is -1, but 500 label ids are stored"),
    (lambda g: put(g, "seq_class_ids", 4, 41), "label 41 at position 4 of 5 is not in 1 to 40"),
    (lambda g: put(g, "seq_class_ids", 2, -3), "label -3 at position 2 of 5 is not in 1 to 40"),
    (lambda g: set_attribute(g, "seq_len", 6), "label 0 at position 5 of 6 is not in 1 to 40"),
    (
        lambda g: replace_dataset(g, "seq_class_ids", np.ones(500)),
        "seq_class_ids have dtype float64 and shape (500,); expected integers of shape (labels,)",
    ),
    (
        long_target,
        "CTC cannot align 12 labels with 2 repeats: they need 14 frames, but "
        "60 bins, minus a cut of up to 2, give 12 (patch 14, stride 4)",
    ),
    (lambda g: replace_by_group(g, "input_features"), "has no dataset input_features"),
    (lambda g: replace_by_group(g, "seq_class_ids"), "has seq_len, but no seq_class_ids"),
    (lambda g: replace_dataset(g, "input_features", h5py.Empty("f4")), "input_features has no values"),
    (lambda g: replace_dataset(g, "seq_class_ids", h5py.Empty("i4")), "seq_class_ids has no values"),
    (lambda g: replace_by_times(g, "input_features"), "cannot be read (No NumPy equivalent for TypeTimeID exists)"),
    (lambda g: replace_by_times(g, "seq_class_ids"), "cannot be read (No NumPy equivalent for TypeTimeID exists)"),
    (
        lambda g: declare(g, "input_features", (60, 4), chunks=(30, 4)),
        "input_features has the shape (60, 4), but the file holds only some of its values",
    ),
    (
        lambda g: declare(g, "seq_class_ids", (500,)),
        "seq_class_ids has the shape (500,), but the file holds only some of its values",
    ),
    (
        lambda g: declare(g, "input_features", (10**9, 10**6), chunks=(100, 100)),
        "input_features has the shape (1000000000, 1000000), which is 4.0 PB",
    ),
    (lambda g: virtual(g, "absent.hdf5"), "the values of input_features are in another file. Put them into this one"),
    (external, "the values of input_features are in another file. Put them into this one"),
    (
        lambda g: replace_dataset(g, "input_features", h5py.ExternalLink("/etc/passwd", "/x")),
        "input_features is a link. Put its values in its place",
    ),
    (
        lambda g: replace_dataset(g, "seq_class_ids", h5py.SoftLink("/nowhere")),
        "seq_class_ids is a link. Put its values in its place",
    ),
    (shorten, "15 bins, minus a cut of up to 2, are fewer than the 14 of one patch"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD)
def test_a_bad_utterance_stops_training_or_is_left_out(root: Path, spoil: Callable[[Any], None], reason: str) -> None:
    with h5py.File(root / "day.2/data_train.hdf5", "r+") as file:
        spoil(file["trial_0001"])
    named = f"day.2/data_train.hdf5 trial_0001: {reason}"
    assert failure(root) == (
        f"{root} has 1 bad utterance among 10:\n  {named}\n"
        "Repair them, or train without them: data.on_bad_utterance=exclude"
    )
    data = opened(root, on_bad_utterance="exclude")
    assert data.excluded == (named,)
    assert data.train.by_day == {0: [0, 1, 2], 1: [3, 4]}
    assert [record.name for record in data.train.records[3:]] == ["trial_0000", "trial_0002"]
    good = [*utterances(3, seed=1)][2].features.astype(np.float32)
    np.testing.assert_array_equal(data.train.read(4), good)


def test_a_group_that_is_no_utterance_is_named(root: Path) -> None:
    with h5py.File(root / "day.1/data_val.hdf5", "r+") as file:
        file["notes"] = np.zeros(3)
    assert "day.1/data_val.hdf5 notes: has no dataset input_features" in failure(root)


def test_an_utterance_that_is_a_link_is_named(root: Path) -> None:
    with h5py.File(root / "day.1/data_val.hdf5", "r+") as file:
        file["trial_7"] = h5py.ExternalLink(str(root / "day.2/data_val.hdf5"), "/trial_0000")
        file["trial_8"] = h5py.SoftLink("/trial_0000")
    message = failure(root)
    for name in ("trial_7", "trial_8"):
        assert f"day.1/data_val.hdf5 {name}: {name} is a link. Put its values in its place" in message


def test_names_do_not_command_the_terminal(root: Path) -> None:
    with h5py.File(root / "day.1/data_val.hdf5", "r+") as file:
        file["\x1b[2J\n  trial_9: nothing"] = np.zeros(3)
        file.move("trial_0000", "\u202etrial")
        put(file["\u202etrial"], "input_features", 0, np.nan)
        h5py.h5g.create(file.id, b"\xff\xfe")
    message = failure(root)
    names = (r"\x1b[2J\n  trial_9: nothing", r"\u202etrial", r"\xff\xfe")
    for name in names:
        assert f"  day.1/data_val.hdf5 {name}: " in message
    assert message.isascii()
    assert len(message.splitlines()) == len(names) + 2


def test_features_that_nobody_scaled_are_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(root)
    assert not caplog.records
    with h5py.File(root / "day.2/data_train.hdf5", "r+") as file:
        put(file["trial_0001"], "input_features", (7, 2), -1e30)
    opened(root)
    assert "has features of up to 1e+30 (day.2/data_train.hdf5 trial_0001)." in caplog.text


def test_validation_is_not_cut(root: Path) -> None:
    for split in ("train", "val"):
        with h5py.File(root / f"day.1/data_{split}.hdf5", "r+") as file:
            shorten(file["trial_0000"])
            set_attribute(file["trial_0000"], "seq_len", 1)
    assert opened(root, on_bad_utterance="exclude").excluded == (
        "day.1/data_train.hdf5 trial_0000: 15 bins, minus a cut of up to 2, are fewer than the 14 of one patch",
    )
    assert opened(root, max_cut=1).excluded == ()
    assert len(opened_split(root, "train").records) == 6


def test_a_test_utterance_may_be_bad_too(root: Path) -> None:
    file = write_session(root / "day.1", "test", utterances(2))
    with h5py.File(file, "r+") as content:
        put(content["trial_0001"], "input_features", (0, 0), np.nan)
    with pytest.raises(StabilityError, match=r"has 1 bad utterance among 2:"):
        opened_split(root, "test")
    split = opened_split(root, "test", on_bad_utterance="exclude")
    assert len(split.records) == len(split.excluded) == 1


def test_only_the_first_bad_utterances_are_listed(root: Path) -> None:
    file = write_session(root / "day.1", "train", utterances(30))
    with h5py.File(file, "r+") as content:
        for group in content.values():
            put(group, "input_features", (0, 0), np.nan)
    message = failure(root)
    assert message.startswith(f"{root} has 30 bad utterances among 37:")
    assert "trial_0009: features have 1 non-finite value" in message
    assert "trial_0010" not in message
    assert "\n  and 20 more\n" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_whose_utterances_are_all_bad_is_an_error(root: Path, split: str) -> None:
    for day in ("day.1", "day.2"):
        with h5py.File(root / day / f"data_{split}.hdf5", "r+") as content:
            for group in content.values():
                remove_labels(group)
    message = failure(root, on_bad_utterance="exclude")
    assert message.startswith(f"{root} has no {split} utterances in the sessions day.1 and day.2: all are bad:\n")
    assert f"day.1/data_{split}.hdf5 trial_0000: has no labels, which the split {split} needs" in message


def test_the_rule_for_ctc_agrees_with_all_alignments(tmp_path: Path) -> None:
    patch, stride, max_cut = 3, 2, 1
    alignable = {frames: {collapse(path) for path in itertools.product(range(3), repeat=frames)} for frames in range(7)}
    targets = [target for length in range(1, 4) for target in itertools.product([1, 2], repeat=length)]
    cases = [(bins, target) for bins in range(3, 14) for target in targets]
    for name in ("train", "val"):
        written = (Utterance(features=np.zeros((bins, 1)), labels=np.array(target)) for bins, target in cases)
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
