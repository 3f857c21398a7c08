"""Made-up neural recordings of real English words, in the layout of the real ones."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from stability.config.names import without_defaults
from stability.config.schema import Synthetic
from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK, PHONEMES, SILENCE
from stability.data.progress import locked, progress
from stability.data.t15 import Trial, write_session

_RECIPE = 1  # raise it when the same settings come to mean other bytes
_BOUNDS = {
    "seed": (0, math.inf),
    "days": (1, 99),
    "features": (2, math.inf),
    "train_utterances": (1, math.inf),
    "val_utterances": (1, math.inf),
    "words": (1, 40),  # longer sentences could outgrow the layout
    "noise": (0, 100),
    "drift": (0, 1),
    "bins_per_phoneme": (5, 100),
    "recordings": (0, 100),
}
_TEST_TRIALS = 4
_OVERHEAD = 10_000  # bytes of a trial beside its features

_Words = list[tuple[str, list[int]]]  # each with the class ids of its phonemes and the silence after it

# times are in bins of 20 ms; CTC can align even the shortest, cut by 2, in patches of 14 every 4
_DURATION_SHAPE = 8.0
_SHORTEST = 5
_QUIET = (8, 20)  # before the first and after the last word
_COARTICULATION_STD = 2.0
_SLOW_NOISE_MEMORY = 0.95  # what is left of it a bin later

# noise = 1 leaves a linear classifier about nine bins in ten within a day, and seven five days later
_BASE_LOG_RATE = -0.5  # of threshold crossings a bin
_LOG_RATES = (-4.0, 2.0)  # what a channel cannot leave
_TUNING_STD = 0.6  # of the log rate over phonemes; the noise below is in units of it
_SLOW_NOISE_STD = 0.4  # in crossings and power alike
_SHARED_NOISE_STD = 0.6  # in the power, together with the crossings
_POWER_NOISE_STD = 0.7  # in the power alone


def ensure(settings: Synthetic, root: Path) -> Path:
    """The folder of the set with these settings; it is written the first time.

    root: the folder that keeps sets, made if it is missing. Several processes may ask at once.

    Each day is a session folder synthetic.dayNN. Features are threshold crossings, then spike-band power of the
    same channels, in bins of 20 ms, z-scored per feature and day. The second day has no validation trials, the last
    has test trials too. With `recordings`, trials are put together from so many recordings of each phoneme a day,
    which is fast at any size; and as in T15, one day in eleven has training trials alone, the others as many test as
    validation trials. The same settings give the same bytes. Raises StabilityError for settings that make no data
    set, and for a root that cannot be written or has no room for it.
    """
    for name, (least, most) in _BOUNDS.items():
        if not least <= getattr(settings, name) <= most:
            bounds = f"at least {least}" if most == math.inf else f"in {least} to {most}"
            raise StabilityError(f"data.synthetic.{name} is {getattr(settings, name)}; it has to be {bounds}")
    recipe = json.dumps([_RECIPE, without_defaults(settings)], sort_keys=True)
    folder = root / f"synthetic-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{folder}.lock"), f"writing {folder}"):
            if not folder.is_dir():
                _write_whole(settings, folder)
    except OSError as error:
        raise StabilityError(f"the synthetic data cannot be written to {root}: {error}") from error
    return folder


def _write_whole(settings: Synthetic, folder: Path) -> None:
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    _check_room(settings, folder.parent)
    try:
        _write(settings, unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _check_room(settings: Synthetic, root: Path) -> None:
    words = settings.words
    mean_words = (words + 1) * (4 * words - 1) / (6 * words)  # the larger of two draws from 1 to `words`
    mean_labels = mean_words * np.mean([len(labels) for _, labels in _vocabulary()])
    quiet = 2 * settings.bins_per_phoneme if settings.recordings else sum(_QUIET)
    bins = mean_labels * settings.bins_per_phoneme + quiet
    trials = sum(sum(_counts(settings, day).values()) for day in range(settings.days))
    needed = int(trials * (bins * settings.features * 4 + _OVERHEAD))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StabilityError(
            f"the synthetic data need about {decimal(needed)}, and {root} has {decimal(free)} free: make room, give "
            "another folder with data.path=FOLDER, or make fewer days with data.synthetic.days=N"
        )


def _counts(settings: Synthetic, day: int) -> dict[str, int]:
    """How many trials of each split a day has."""
    train, val = settings.train_utterances, settings.val_utterances
    if settings.recordings:
        return {"train": train} if day % 11 == 1 else {"train": train, "val": val, "test": val}
    counts = {"train": train} if day == 1 else {"train": train, "val": val}
    return counts | {"test": _TEST_TRIALS} if day == settings.days - 1 else counts


def _write(settings: Synthetic, folder: Path) -> None:
    words = _vocabulary()
    channels = (settings.features + 1) // 2
    shape = (len(PHONEMES), channels)
    tuning = np.random.default_rng([settings.seed, 0]).normal(size=shape)
    make = _assembled_session if settings.recordings else _recorded_session
    with progress("making up the data", settings.days) as advance:
        for day in range(settings.days):
            rng = np.random.default_rng([settings.seed, 1, day])
            if day > 0:  # a random walk that keeps its variance
                tuning = np.sqrt(1 - settings.drift**2) * tuning + settings.drift * rng.normal(size=shape)
            scaled = tuning * np.exp(settings.drift * rng.normal(size=channels))
            offset = settings.drift * rng.normal(size=channels)
            for split, trials in make(rng, words, scaled, offset, settings, _counts(settings, day)).items():
                write_session(folder / f"synthetic.day{day + 1:02d}", split, trials)
            advance(1)


def _recorded_session(
    rng: np.random.Generator,
    words: _Words,
    tuning: NDArray[np.float64],  # (classes, channels)
    offset: NDArray[np.float64],  # (channels,)
    settings: Synthetic,
    counts: dict[str, int],
) -> dict[str, Iterator[Trial]]:
    """A day's trials, each recorded anew."""
    session = {
        split: [_trial(rng, words, tuning, offset, settings, block=block, number=number) for number in range(count)]
        for block, (split, count) in enumerate(counts.items())
    }
    everything = np.concatenate([trial.features for trial in chain(*session.values())])
    mean, std = everything.mean(axis=0), everything.std(axis=0)
    return {split: _normalised(trials, mean, std) for split, trials in session.items()}


class _Utterance(NamedTuple):
    """A trial to be put together: which bins of the day's recording it has, and what is said."""

    bins: NDArray[np.int64]
    labels: NDArray[np.int64]
    text: str


def _assembled_session(
    rng: np.random.Generator,
    words: _Words,
    tuning: NDArray[np.float64],  # (classes, channels)
    offset: NDArray[np.float64],  # (channels,)
    settings: Synthetic,
    counts: dict[str, int],
) -> dict[str, Iterator[Trial]]:
    """A day's trials, put together from one recording of all phonemes in any order."""
    spoken = rng.permutation(np.repeat(np.arange(BLANK + 1, len(PHONEMES)), settings.recordings))
    lengths = _durations(rng, len(spoken), settings)
    drive = _coarticulated(tuning[np.repeat(spoken, lengths)]) + offset
    recording = _recorded(rng, drive, settings.noise)[:, : settings.features]
    pieces = np.split(np.arange(len(recording)), np.cumsum(lengths)[:-1])
    of_phoneme = [[pieces[i] for i in np.flatnonzero(spoken == label)] for label in range(len(PHONEMES))]

    def utterance() -> _Utterance:
        text, labels = _sentence(rng, words, settings.words)
        takes = rng.integers(settings.recordings, size=len(labels) + 2)
        said = [SILENCE, *labels.tolist(), SILENCE]
        bins = [of_phoneme[label][take] for label, take in zip(said, takes, strict=True)]
        return _Utterance(np.concatenate(bins), labels, text)

    session = {split: [utterance() for _ in range(count)] for split, count in counts.items()}
    all_bins = np.concatenate([u.bins for u in chain(*session.values())])
    weights = np.bincount(all_bins, minlength=len(recording))[:, None] / len(all_bins)
    mean = (weights * recording).sum(0)
    std = np.sqrt((weights * (recording - mean) ** 2).sum(0))
    normalised = ((recording - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    return {split: _assembled(normalised, us, block) for block, (split, us) in enumerate(session.items())}


def _assembled(recording: NDArray[np.float32], utterances: list[_Utterance], block: int) -> Iterator[Trial]:
    for number, (bins, labels, text) in enumerate(utterances):
        yield Trial(recording[bins], labels, text, block, number)


def _vocabulary() -> _Words:
    lines = resources.files("stability.data").joinpath("words.txt").read_text().splitlines()
    ids = {name: index for index, name in enumerate(PHONEMES)}
    return [(word, [*(ids[name] for name in names), SILENCE]) for word, *names in map(str.split, lines)]


def _trial(
    rng: np.random.Generator,
    words: _Words,
    tuning: NDArray[np.float64],  # (classes, channels)
    offset: NDArray[np.float64],  # (channels,)
    settings: Synthetic,
    *,
    block: int,
    number: int,
) -> Trial:
    text, labels = _sentence(rng, words, settings.words)
    durations = _durations(rng, len(labels), settings)
    before, after = rng.integers(*_QUIET, size=2)
    lengths = np.array([before, *durations, after])
    states = np.repeat([SILENCE, *labels, SILENCE], lengths)
    drive = _coarticulated(tuning[states]) + offset
    features = _recorded(rng, drive, settings.noise)[:, : settings.features]
    return Trial(features, labels, text, block, number)


def _sentence(rng: np.random.Generator, words: _Words, most: int) -> tuple[str, NDArray[np.int64]]:
    """Some words, and the labels that spell them."""
    length = rng.integers(1, most + 1, size=2).max()  # of two draws: longer sentences are likelier
    chosen = [words[i] for i in rng.integers(len(words), size=length)]
    return " ".join(word for word, _ in chosen), np.array([label for _, spoken in chosen for label in spoken])


def _durations(rng: np.random.Generator, count: int, settings: Synthetic) -> NDArray[np.int64]:
    """Of so many phonemes, in bins."""
    durations = rng.gamma(_DURATION_SHAPE, settings.bins_per_phoneme / _DURATION_SHAPE, size=count)
    return np.maximum(durations.round(), _SHORTEST).astype(int)


def _recorded(rng: np.random.Generator, drive: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Crossings and power, (bins, 2 * channels), of channels with this drive, (bins, channels)."""
    drive = drive + noise * _SLOW_NOISE_STD * _slow_noise(rng, drive.shape)
    rate = np.exp(np.clip(_BASE_LOG_RATE + _TUNING_STD * drive, *_LOG_RATES))
    crossings = rng.poisson(rate)
    surprise = (crossings - rate) / np.sqrt(rate)
    power = drive + noise * (_SHARED_NOISE_STD * surprise + _POWER_NOISE_STD * rng.normal(size=drive.shape))
    return np.concatenate([crossings, power], axis=1)


def _coarticulated(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Targets (bins, channels) smoothed over time; tap by tap, since BLAS may sum in any order."""
    reach = int(4 * _COARTICULATION_STD)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _COARTICULATION_STD) ** 2)
    padded = np.pad(targets, ((reach, reach), (0, 0)), mode="edge")
    smooth = np.zeros_like(targets)
    for shift, tap in enumerate(taps / taps.sum()):
        smooth += tap * padded[shift : shift + len(targets)]
    return smooth


def _slow_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A first-order autoregressive process of unit variance along the first axis."""
    noise = rng.normal(size=shape)
    fresh = np.sqrt(1 - _SLOW_NOISE_MEMORY**2)
    for before, now in pairwise(noise):
        now *= fresh
        now += _SLOW_NOISE_MEMORY * before
    return noise


def _normalised(trials: list[Trial], mean: NDArray[np.float64], std: NDArray[np.float64]) -> Iterator[Trial]:
    for trial in trials:
        yield replace(trial, features=(trial.features - mean) / np.where(std > 0, std, 1))
