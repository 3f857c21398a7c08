"""Made-up neural recordings of real English words, in the layout of the real ones."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import resources
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from stability import config
from stability.data.phonemes import PHONEMES, SILENCE
from stability.data.t15 import Trial, write_session
from stability.errors import StabilityError

_RECIPE = 1  # raise it when the same settings come to mean other bytes
_BOUNDS = {
    "seed": (0, math.inf),
    "days": (1, 99),
    "features": (2, math.inf),
    "train_trials": (1, math.inf),
    "val_trials": (1, math.inf),
    "words": (1, 40),  # longer sentences could outgrow the layout
    "noise": (0, 100),
    "drift": (0, 1),
}
_TEST_TRIALS = 4

# times are in bins of 20 ms; CTC can align even the shortest, cut by 2, in patches of 14 every 4
_MEAN_DURATION = 9.0  # of a phoneme
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


def ensure(settings: config.Synthetic, root: Path) -> Path:
    """The folder of the set with these settings; it is written the first time.

    root: the folder that keeps sets, made if it is missing. Several processes may ask at once.

    Each day is a session folder synthetic.dayNN; the second has no validation trials, the last has test
    trials too. Features are threshold crossings, then spike-band power of the same channels, in bins of
    20 ms, z-scored per feature and day. The same settings give the same bytes. Raises StabilityError for
    settings that make no data set and for a root that cannot be written.
    """
    for name, (least, most) in _BOUNDS.items():
        if not least <= getattr(settings, name) <= most:
            bounds = f"at least {least}" if most == math.inf else f"in {least} to {most}"
            raise StabilityError(f"data.synthetic.{name} is {getattr(settings, name)}; it has to be {bounds}")
    recipe = json.dumps([_RECIPE, asdict(settings)], sort_keys=True)
    folder = root / f"synthetic-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                unfinished = folder.with_suffix(".tmp")
                if unfinished.exists():
                    shutil.rmtree(unfinished)
                _write(settings, unfinished)
                unfinished.rename(folder)
    except OSError as error:
        raise StabilityError(f"the synthetic data cannot be written to {root}: {error}") from error
    return folder


def _write(settings: config.Synthetic, folder: Path) -> None:
    words = _vocabulary()
    channels = (settings.features + 1) // 2
    shape = (len(PHONEMES), channels)
    tuning = np.random.default_rng([settings.seed, 0]).normal(size=shape)
    for day in range(settings.days):
        rng = np.random.default_rng([settings.seed, 1, day])
        if day > 0:  # a random walk that keeps its variance
            tuning = np.sqrt(1 - settings.drift**2) * tuning + settings.drift * rng.normal(size=shape)
        scaled = tuning * np.exp(settings.drift * rng.normal(size=channels))
        offset = settings.drift * rng.normal(size=channels)
        counts = {"train": settings.train_trials, "val": settings.val_trials, "test": _TEST_TRIALS}
        if day == 1:
            del counts["val"]
        if day < settings.days - 1:
            del counts["test"]
        session = {
            split: [_trial(rng, words, scaled, offset, settings, block=block, number=number) for number in range(count)]
            for block, (split, count) in enumerate(counts.items())
        }
        everything = np.concatenate([trial.features for trial in chain(*session.values())])
        mean, std = everything.mean(axis=0), everything.std(axis=0)
        for split, trials in session.items():
            write_session(folder / f"synthetic.day{day + 1:02d}", split, _normalised(trials, mean, std))


def _vocabulary() -> list[tuple[str, list[int]]]:
    """Each word with the class ids of its phonemes and the silence after it."""
    lines = resources.files("stability.data").joinpath("words.txt").read_text().splitlines()
    ids = {name: index for index, name in enumerate(PHONEMES)}
    return [(word, [*(ids[name] for name in names), SILENCE]) for word, *names in map(str.split, lines)]


def _trial(
    rng: np.random.Generator,
    words: list[tuple[str, list[int]]],
    tuning: NDArray[np.float64],  # (classes, channels)
    offset: NDArray[np.float64],  # (channels,)
    settings: config.Synthetic,
    *,
    block: int,
    number: int,
) -> Trial:
    length = rng.integers(1, settings.words + 1, size=2).max()  # of two draws: longer sentences are likelier
    chosen = [words[i] for i in rng.integers(len(words), size=length)]
    labels = np.array([label for _, spoken in chosen for label in spoken])
    durations = rng.gamma(_DURATION_SHAPE, _MEAN_DURATION / _DURATION_SHAPE, size=len(labels))
    before, after = rng.integers(*_QUIET, size=2)
    lengths = np.array([before, *np.maximum(durations.round(), _SHORTEST), after], int)
    states = np.repeat([SILENCE, *labels, SILENCE], lengths)
    drive = _coarticulated(tuning[states]) + offset
    features = _recorded(rng, drive, settings.noise)[:, : settings.features]
    return Trial(features, labels, " ".join(word for word, _ in chosen), block, number)


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
