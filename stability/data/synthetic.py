"""Make up neural recordings of real English words, in the layout of the real recordings.

The same settings give the same bytes. Times are in bins of 20 ms.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from stability.config.names import without_defaults
from stability.config.schema import Synthetic, check_bounds
from stability.core.errors import StabilityError
from stability.data.phonemes import BLANK, PHONEMES, SILENCE
from stability.data.progress import locked, progress
from stability.data.t15_writer import Utterance, write_session

_RECIPE = 1  # raise it when the same settings give other bytes
_TEST_UTTERANCES = 4
_OVERHEAD = 10_000  # bytes of an utterance in the file, without its features

# With these, CTC can align even the shortest utterance, cut by 2 bins, in patches of 14 bins every 4 bins.
_DURATION_SHAPE = 8.0  # of the gamma distribution of a phoneme's duration
_SHORTEST = 5
_QUIET = (8, 20)  # bins before the first word and after the last one: at least, and less than
_COARTICULATION_STD = 2.0
_SLOW_NOISE_MEMORY = 0.95  # the share of it that is left a bin later

# With noise = 1, a linear classifier gets about nine bins in ten right within a day, and seven in ten five days later.
_BASE_LOG_RATE = -0.5  # of threshold crossings in a bin
_LOG_RATES = (-4.0, 2.0)  # the limits for every channel
_TUNING_STD = 0.6  # of the log rate over phonemes; the noise below is in units of it
_SLOW_NOISE_STD = 0.4  # in crossings and power alike
_SHARED_NOISE_STD = 0.6  # in the power: the deviation of the crossings from their rate
_POWER_NOISE_STD = 0.7  # in the power alone


@dataclass(frozen=True)
class _Day:
    """A recording day: its random stream, and how its channels respond to phonemes."""

    rng: np.random.Generator
    tuning: NDArray[np.float64]  # (classes, channels)
    offset: NDArray[np.float64]  # (channels,)


class _Plan(NamedTuple):
    """An utterance to put together: the bins that it takes from the day's recording, its labels and its sentence."""

    bins: NDArray[np.int64]
    labels: NDArray[np.int64]
    text: str


def make_dataset(settings: Synthetic, root: Path) -> Path:
    """Return the folder of the data set with these settings; write it first if it is not there.

    Each day is a session folder `synthetic.dayNN`. The features are threshold crossings, then spike-band power of the
    same channels, z-scored for each feature and day. The second day has no validation utterances, and the last day has
    test utterances too.

    With `settings.recordings`, utterances are put together from that many recordings of each phoneme a day, which is
    fast at any size. Then, as in T15, one day in eleven has only training utterances, and each other day has as many
    test as validation utterances.

    Args:
        settings: Size, difficulty and seed of the data set.
        root: The folder that contains such data sets; it is made if it is missing. Several processes may ask at once.

    Raises:
        StabilityError: A setting is out of range, or `root` cannot be written or has too little room.
    """
    check_bounds(settings, "data.synthetic.")
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
        raise StabilityError(
            f"Cannot write the synthetic data to {root}: {error}. Give another folder with data.path=FOLDER."
        ) from error
    return folder


def _write_whole(settings: Synthetic, folder: Path) -> None:
    """Write a data set under another name, and rename it when it is complete."""
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    _check_room(settings, folder.parent)
    try:
        _write(settings, unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _check_room(settings: Synthetic, root: Path) -> None:
    words = settings.words
    mean_words = (words + 1) * (4 * words - 1) / (6 * words)  # of the larger of two draws from 1 to `words`
    mean_labels = mean_words * np.mean([len(labels) for _, labels in _vocabulary()])
    quiet = 2 * settings.bins_per_phoneme if settings.recordings else sum(_QUIET)
    bins = mean_labels * settings.bins_per_phoneme + quiet
    utterances = sum(sum(_counts(settings, day).values()) for day in range(settings.days))
    needed = int(utterances * (bins * settings.features * 4 + _OVERHEAD))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StabilityError(
            f"The synthetic data need about {decimal(needed)}, but {root} has {decimal(free)} free. Make room, give "
            "another folder with data.path=FOLDER, or make fewer days with data.synthetic.days=N."
        )


def _counts(settings: Synthetic, day: int) -> dict[str, int]:
    """The number of utterances in each split of a day."""
    train, val = settings.train_utterances, settings.val_utterances
    if settings.recordings:
        return {"train": train} if day % 11 == 1 else {"train": train, "val": val, "test": val}
    counts = {"train": train} if day == 1 else {"train": train, "val": val}
    return counts | {"test": _TEST_UTTERANCES} if day == settings.days - 1 else counts


def _write(settings: Synthetic, folder: Path) -> None:
    channels = (settings.features + 1) // 2
    shape = (len(PHONEMES), channels)
    tuning = np.random.default_rng([settings.seed, 0]).normal(size=shape)
    make_session = _assemble_session if settings.recordings else _record_session
    with progress("making up the data", settings.days) as advance:
        for index in range(settings.days):
            rng = np.random.default_rng([settings.seed, 1, index])
            if index > 0:  # a random walk that keeps its variance
                tuning = np.sqrt(1 - settings.drift**2) * tuning + settings.drift * rng.normal(size=shape)
            gains = np.exp(settings.drift * rng.normal(size=channels))
            day = _Day(rng, tuning * gains, settings.drift * rng.normal(size=channels))
            for split, utterances in make_session(day, settings, _counts(settings, index)).items():
                write_session(folder / f"synthetic.day{index + 1:02d}", split, utterances)
            advance(1)


def _record_session(day: _Day, settings: Synthetic, counts: dict[str, int]) -> dict[str, Iterator[Utterance]]:
    """Record each utterance of a day by itself."""
    session = {
        split: [_record_utterance(day, settings, block, number) for number in range(count)]
        for block, (split, count) in enumerate(counts.items())
    }
    everything = np.concatenate([utterance.features for utterance in chain(*session.values())])
    mean, std = everything.mean(axis=0), everything.std(axis=0)
    return {split: _normalise(utterances, mean, std) for split, utterances in session.items()}


def _record_utterance(day: _Day, settings: Synthetic, block: int, number: int) -> Utterance:
    text, labels = _draw_sentence(day.rng, settings.words)
    durations = _draw_durations(day.rng, len(labels), settings)
    before, after = day.rng.integers(*_QUIET, size=2)
    states = np.repeat([SILENCE, *labels, SILENCE], [before, *durations, after])
    features = _record(day, states, settings)
    return Utterance(features=features, labels=labels, transcription=text, block=block, number=number)


def _normalise(utterances: list[Utterance], mean: NDArray[np.float64], std: NDArray[np.float64]) -> Iterator[Utterance]:
    for utterance in utterances:
        yield replace(utterance, features=(utterance.features - mean) / np.where(std > 0, std, 1))


def _assemble_session(day: _Day, settings: Synthetic, counts: dict[str, int]) -> dict[str, Iterator[Utterance]]:
    """Put a day's utterances together from one recording of all phonemes in any order."""
    spoken = day.rng.permutation(np.repeat(np.arange(BLANK + 1, len(PHONEMES)), settings.recordings))
    durations = _draw_durations(day.rng, len(spoken), settings)
    recording = _record(day, np.repeat(spoken, durations), settings)
    pieces = np.split(np.arange(len(recording)), np.cumsum(durations)[:-1])
    takes = [[pieces[i] for i in np.flatnonzero(spoken == label)] for label in range(len(PHONEMES))]
    session = {split: [_plan(day.rng, takes, settings) for _ in range(count)] for split, count in counts.items()}

    # Mean and deviation over the utterances: a bin of the recording counts as often as utterances take it.
    all_bins = np.concatenate([plan.bins for plan in chain(*session.values())])
    weights = np.bincount(all_bins, minlength=len(recording))[:, None] / len(all_bins)
    mean = (weights * recording).sum(0)
    std = np.sqrt((weights * (recording - mean) ** 2).sum(0))
    normalised = ((recording - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    return {split: _assemble(normalised, plans, block) for block, (split, plans) in enumerate(session.items())}


def _plan(rng: np.random.Generator, takes: list[list[NDArray[np.int64]]], settings: Synthetic) -> _Plan:
    text, labels = _draw_sentence(rng, settings.words)
    chosen = rng.integers(settings.recordings, size=len(labels) + 2)
    states = [SILENCE, *labels.tolist(), SILENCE]
    bins = [takes[state][take] for state, take in zip(states, chosen, strict=True)]
    return _Plan(np.concatenate(bins), labels, text)


def _assemble(recording: NDArray[np.float32], plans: list[_Plan], block: int) -> Iterator[Utterance]:
    for number, (bins, labels, text) in enumerate(plans):
        yield Utterance(features=recording[bins], labels=labels, transcription=text, block=block, number=number)


@functools.cache
def _vocabulary() -> list[tuple[str, list[int]]]:
    """All words, each with the class ids of its phonemes and of the silence after it."""
    lines = resources.files("stability.data").joinpath("words.txt").read_text().splitlines()
    ids = {name: index for index, name in enumerate(PHONEMES)}
    return [(word, [*(ids[name] for name in names), SILENCE]) for word, *names in map(str.split, lines)]


def _draw_sentence(rng: np.random.Generator, most: int) -> tuple[str, NDArray[np.int64]]:
    """Draw 1 to `most` words, and the labels that spell them."""
    words = _vocabulary()
    length = rng.integers(1, most + 1, size=2).max()  # of two draws, so that longer sentences are more likely
    chosen = [words[i] for i in rng.integers(len(words), size=length)]
    return " ".join(word for word, _ in chosen), np.array([label for _, spoken in chosen for label in spoken])


def _draw_durations(rng: np.random.Generator, count: int, settings: Synthetic) -> NDArray[np.int64]:
    """Draw the durations of `count` phonemes, in bins."""
    durations = rng.gamma(_DURATION_SHAPE, settings.bins_per_phoneme / _DURATION_SHAPE, size=count)
    return np.maximum(durations.round(), _SHORTEST).astype(int)


def _record(day: _Day, states: NDArray[np.int64], settings: Synthetic) -> NDArray[np.float64]:
    """Record crossings and power, (bins, features), while the phonemes `states`, (bins,), are spoken."""
    noise = settings.noise
    drive = _smooth(day.tuning[states]) + day.offset
    drive = drive + noise * _SLOW_NOISE_STD * _slow_noise(day.rng, drive.shape)
    rate = np.exp(np.clip(_BASE_LOG_RATE + _TUNING_STD * drive, *_LOG_RATES))
    crossings = day.rng.poisson(rate)
    surprise = (crossings - rate) / np.sqrt(rate)
    power = drive + noise * (_SHARED_NOISE_STD * surprise + _POWER_NOISE_STD * day.rng.normal(size=drive.shape))
    return np.concatenate([crossings, power], axis=1)[:, : settings.features]


def _smooth(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth targets, (bins, channels), over time, as neighbouring phonemes run into each other."""
    reach = int(4 * _COARTICULATION_STD)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _COARTICULATION_STD) ** 2)
    padded = np.pad(targets, ((reach, reach), (0, 0)), mode="edge")
    smooth = np.zeros_like(targets)
    for shift, tap in enumerate(taps / taps.sum()):  # tap by tap, since BLAS may sum in any order
        smooth += tap * padded[shift : shift + len(targets)]
    return smooth


def _slow_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw a first-order autoregressive process of unit variance along the first axis."""
    noise = rng.normal(size=shape)
    fresh = np.sqrt(1 - _SLOW_NOISE_MEMORY**2)
    for before, now in pairwise(noise):
        now *= fresh
        now += _SLOW_NOISE_MEMORY * before
    return noise
