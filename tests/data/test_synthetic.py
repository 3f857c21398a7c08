"""Made-up data: what it contains, that it is reproducible, and that it is written whole or not at all."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from stability.config.schema import Synthetic
from stability.core.errors import StabilityError
from stability.data import synthetic
from stability.data.phonemes import PHONEMES, SILENCE
from stability.data.records import Dataset, Split
from stability.data.t15_reader import open_dataset, open_split
from stability.data.t15_writer import write_session
from tests.support.configs import composed

DEFAULT = Synthetic(seed=0, days=6, features=32, train_utterances=60, val_utterances=16, words=3, noise=1.0, drift=0.3)
SMALL = dataclasses.replace(DEFAULT, days=3, features=8, train_utterances=6, val_utterances=3)
LINES = resources.files("stability.data").joinpath("words.txt").read_text().splitlines()
PRONUNCIATIONS = {word: phonemes for word, *phonemes in map(str.split, LINES)}


def opened(settings: Synthetic, root: Path) -> Dataset:
    folder = synthetic.make_dataset(settings, root)
    return open_dataset(folder, patch_size=14, patch_stride=4, max_cut=2, index_dir=root / "index")


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return opened(DEFAULT, tmp_path_factory.mktemp("default"))


def features_of(split: Split, day: int) -> list[NDArray[np.float32]]:
    return [split.read(i) for i in split.by_day[day]]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.hdf5"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_words_use_each_phoneme_several_times() -> None:
    assert len(PRONUNCIATIONS) == len(LINES) >= 200
    counts = Counter(phoneme for phonemes in PRONUNCIATIONS.values() for phoneme in phonemes)
    assert set(counts) == set(PHONEMES[1:SILENCE])
    assert min(counts.values()) >= 5


def test_the_default_set_has_the_described_days_utterances_and_lengths(default: Dataset) -> None:
    assert default.sessions == tuple(f"synthetic.day{day:02d}" for day in range(1, 7))
    assert default.n_features == 32
    assert [len(day) for day in default.train.by_day.values()] == [60] * 6
    assert {day: len(own) for day, own in default.val.by_day.items()} == dict.fromkeys([0, 2, 3, 4, 5], 16)
    bins = [record.n_time_steps for record in default.train.records]
    labels = [len(record.labels) for record in default.train.records if record.labels is not None]
    assert 130 <= np.mean(bins) <= 170
    assert max(bins) <= 300
    assert 10 <= np.mean(labels) <= 14


def test_labels_spell_the_sentence(default: Dataset) -> None:
    for record in default.train.records + default.val.records:
        words = record.transcription.split()
        assert 1 <= len(words) <= 3
        spelled = [name for word in words for name in [*PRONUNCIATIONS[word], PHONEMES[SILENCE]]]
        assert record.labels is not None
        assert [PHONEMES[label] for label in record.labels] == spelled


def test_the_last_day_has_test_utterances_without_labels(tmp_path: Path) -> None:
    folder = synthetic.make_dataset(SMALL, tmp_path)
    split = open_split(folder, "test", patch_size=14, patch_stride=4, index_dir=tmp_path / "index")
    assert list(split.by_day) == [2]
    assert {record.labels is None for record in split.records} == {True}
    with h5py.File(folder / "synthetic.day03/data_test.hdf5") as file:
        assert file["trial_0000"].attrs["session"] == "synthetic.day03"


def test_each_day_is_z_scored(default: Dataset) -> None:
    for day in range(5):  # the last has test utterances too
        features = features_of(default.train, day)
        if day in default.val.by_day:
            features += features_of(default.val, day)
        everything = np.concatenate(features).astype(np.float64)
        np.testing.assert_allclose(everything.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(everything.std(axis=0), 1, atol=1e-5)


def test_crossings_are_counts_and_power_correlates_with_them(default: Dataset) -> None:
    everything = np.concatenate(features_of(default.train, 0))
    levels = [len(np.unique(column)) for column in everything.T]
    assert max(levels[:16]) < 100
    assert min(levels[16:]) > 1000
    correlation = np.asarray(np.corrcoef(everything.T))[:16, 16:]
    others = correlation[~np.eye(16, dtype=bool)]
    assert correlation.diagonal().min() > 0.3
    assert correlation.diagonal().min() > np.abs(others).max()


def silence(data: Dataset, day: int) -> NDArray[Any]:
    """The pattern of the bins before the first word."""
    return np.asarray(np.mean([features[:6] for features in features_of(data.train, day)], axis=(0, 1)))


def test_drift_changes_the_tuning_from_day_to_day(tmp_path: Path) -> None:
    similarity = {}
    for drift in (0.0, 0.5, 1.0):
        settings = dataclasses.replace(DEFAULT, drift=drift, noise=0.0, days=3, train_utterances=30)
        data = opened(settings, tmp_path)
        days = [silence(data, day) for day in range(3)]
        similarity[drift] = [np.corrcoef(days[0], days[day])[0, 1] for day in (1, 2)]
    assert min(similarity[0.0]) > 0.95
    assert 0.95 > similarity[0.5][0] > similarity[0.5][1]
    assert max(np.abs(similarity[1.0])) < 0.6


def test_noise_hides_the_tuning(tmp_path: Path) -> None:
    strength = []
    for noise in (0.0, 1.0, 3.0):
        settings = dataclasses.replace(DEFAULT, noise=noise, days=1, train_utterances=30)
        strength.append(np.square(silence(opened(settings, tmp_path), 0)).mean())
    assert strength[0] > 1.5 * strength[1]
    assert strength[1] > 1.5 * strength[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"words": 40, "train_utterances": 20},
        {"words": 1, "train_utterances": 60},
        {"noise": 100.0},
        {"noise": 0.0},
        {"drift": 1.0, "features": 9},
        {"bins_per_phoneme": 5.0},
        {"bins_per_phoneme": 5.0, "recordings": 1, "noise": 100.0},
        {"days": 1, "features": 2, "train_utterances": 1, "val_utterances": 1},
    ],
)
def test_every_utterance_is_good_at_the_limits_of_the_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = dataclasses.replace(SMALL, **changes)
    data = opened(settings, tmp_path)
    assert data.excluded == ()
    assert data.n_features == settings.features


def test_the_same_settings_give_the_same_bytes_even_in_two_processes_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from stability.config.schema import Synthetic;"
        "from stability.data import synthetic;"
        f"print(synthetic.make_dataset({SMALL!r}, Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    here = synthetic.make_dataset(SMALL, tmp_path / "here")
    assert folders == {str(tmp_path / "there" / here.name)}
    assert digests(tmp_path / "there" / here.name) == digests(here)
    assert len(digests(here)) == 6
    assert {path.suffix for path in (tmp_path / "there").iterdir()} == {"", ".lock"}


def test_a_set_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = synthetic.make_dataset(SMALL, tmp_path)
    other = synthetic.make_dataset(dataclasses.replace(SMALL, seed=1), tmp_path)
    assert other != folder
    assert set(digests(folder).values()).isdisjoint(digests(other).values())
    monkeypatch.delattr(synthetic, "_write")
    assert synthetic.make_dataset(SMALL, tmp_path) == folder


def test_a_half_written_set_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def failing(*arguments: Any) -> Path:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write_session(*arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_session", failing)
        with pytest.raises(KeyboardInterrupt):
            synthetic.make_dataset(SMALL, tmp_path / "here")
    assert len(written) == 3
    assert [path.suffix for path in (tmp_path / "here").iterdir()] == [".lock"]
    there = synthetic.make_dataset(SMALL, tmp_path / "there")
    killed = tmp_path / "here" / f"{there.name}.tmp" / "synthetic.day09"  # what a killed process leaves
    killed.mkdir(parents=True)
    (killed / "data_train.hdf5").write_bytes(b"half")
    assert digests(synthetic.make_dataset(SMALL, tmp_path / "here")) == digests(there)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins_per_phoneme": 4.0}, "data.synthetic.bins_per_phoneme=4.0: it has to be from 5 to 100."),
        ({"seed": -1}, "data.synthetic.seed=-1: it has to be 0 or more."),
        ({"days": 0}, "data.synthetic.days=0: it has to be from 1 to 99."),
        ({"words": 41}, "data.synthetic.words=41: it has to be from 1 to 40."),
        ({"noise": float("nan")}, "data.synthetic.noise=nan: it has to be from 0 to 100."),
        ({"drift": 1.5}, "data.synthetic.drift=1.5: it has to be from 0 to 1."),
    ],
)
def test_settings_out_of_range_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StabilityError) as caught:
        synthetic.make_dataset(dataclasses.replace(SMALL, **changes), tmp_path)
    assert str(caught.value) == message


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StabilityError, match="Cannot write the synthetic data to"):
        synthetic.make_dataset(SMALL, tmp_path / "file" / "root")


# as large as T15


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Path]:
    """The settings of `data=synthetic_t15`, but with few features and utterances, and the folder of the set."""
    options = composed("data=synthetic_t15").data.synthetic
    assert options is not None
    settings = dataclasses.replace(options, features=12, days=13, train_utterances=12, val_utterances=3)
    return settings, synthetic.make_dataset(settings, tmp_path_factory.mktemp("assembled"))


def test_the_stand_in_of_t15_has_its_shape(assembled: tuple[Synthetic, Path], tmp_path: Path) -> None:
    _, folder = assembled
    data = open_dataset(folder, patch_size=14, patch_stride=4, max_cut=3, index_dir=tmp_path)
    assert list(data.train.by_day) == [*range(13)]
    with_validation = [day for day in range(13) if day not in (1, 12)]
    assert list(data.val.by_day) == with_validation
    test = open_split(folder, "test", patch_size=14, patch_stride=4, index_dir=tmp_path)
    assert [len(test.by_day[day]) for day in with_validation] == [3] * 11
    bins = [record.n_time_steps for record in data.train.records]
    labels = [len(record.labels) for record in data.train.records if record.labels is not None]
    assert 800 <= np.mean(bins) <= 1000
    assert min(bins) >= 100
    assert 1400 <= max(bins) <= 2200
    assert 27 <= np.mean(labels) <= 36
    everything = np.concatenate(
        [*features_of(data.train, 0), *features_of(data.val, 0), *features_of(test, 0)], dtype=np.float64
    )
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(everything.std(0), 1, atol=1e-4)


def test_the_full_size_is_that_of_t15() -> None:
    settings = composed("data=synthetic_t15").data.synthetic
    assert settings is not None
    assert (settings.days, settings.features) == (45, 512)
    days = [synthetic._counts(settings, day) for day in range(45)]
    total = {split: sum(day.get(split, 0) for day in days) for split in ("train", "val", "test")}
    assert total == pytest.approx({"train": 8072, "val": 1426, "test": 1450}, rel=0.02)
    assert sum("val" in day for day in days) == 41


def test_the_features_predict_the_phonemes(assembled: tuple[Synthetic, Path], tmp_path: Path) -> None:
    """Silence, with which every utterance begins, has the same pattern in all utterances of a day."""
    settings, folder = assembled
    data = open_dataset(folder, patch_size=14, patch_stride=4, max_cut=3, index_dir=tmp_path)
    own = np.array([features[:5].mean(0) for features in features_of(data.train, 0)])
    halves = own[: len(own) // 2].mean(0), own[len(own) // 2 :].mean(0)
    assert np.corrcoef(*halves)[0, 1] > 0.8
    again = digests(synthetic.make_dataset(dataclasses.replace(settings, days=1), tmp_path))
    assert again == {file: digest for file, digest in digests(folder).items() if file in again}


def test_a_disk_without_room_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = composed("data=synthetic_t15").data.synthetic
    assert settings is not None
    monkeypatch.setattr(synthetic, "_write", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    with pytest.raises(StabilityError, match=r"need about (19|20|21)\.\d GB, but \S+ has 3\.0 GB free\. Make room"):
        synthetic.make_dataset(settings, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
