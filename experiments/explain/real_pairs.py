"""Pairs of real trainings with known causes: a small decoder, one layer of 24 units, 60 steps, on the embedded data.

HEALTHY is the same in all pairs. In FAILED, some settings have values that were planted as bad, alone or together, and
others values that should be harmless. The cause is not believed but measured, on seeds that no method sees: all
combinations of the settings at issue, once with HEALTHY's and once with FAILED's values of all others, each with 10
seeds. Those fail that fail more often than the middle between the two sides. The smallest of them are the causes. If
the other settings change any of this, the pair has no known answer: it is printed, and not scored.

Trials are kept in `outputs/benchmark-explain`, so none is trained twice. Two pairs are of spoken digits.
"""

import csv
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.detection.recipes import DIGITS
from experiments.explain.pairs import Pair
from stability.analysis.beliefs import Difference
from stability.config.commandline import compose_config
from stability.config.schema import Config
from stability.data.records import Dataset
from stability.diagnosis.verdict import Verdict
from stability.sweeps.stacks import stack_key
from stability.trials.scheduler import train_together
from stability.trials.setup import open_data
from stability.trials.training import train_decoder

Cause = frozenset[str]

OUTPUTS = Path("outputs/benchmark-explain")
_HEALTHY = (
    *("model.layers=1", "model.units=24", "batch.size=8", "steps=60", "validate_every=60", "checkpoint_every=60"),
    *("aug=none", "optimizer=adam_default", "schedule.lr_max=0.05", "schedule.lr_min=0.02"),
    *("schedule.warmup_steps=10", "schedule.decay_steps=1000", "tracking=none", "device=cpu"),
)
_EMBEDDED = (
    *("data.synthetic.features=8", "data.synthetic.words=1", "data.synthetic.train_utterances=30"),
    *("data.synthetic.val_utterances=8", "data.synthetic.days=4", "data.synthetic.noise=0.4"),
    "data.synthetic.drift=0.1",
)
_DIGITS = ("data=t15", f"data.path={DIGITS}")
_TRUTH = range(1000, 1010)  # seeds that no method sees
_SIZE = 24  # trials in a stack

_NAMES = {
    "rate": "schedule.lr_max",
    "last rate": "schedule.lr_min",
    "warm-up": "schedule.warmup_steps",
    "length": "schedule.decay_steps",
    "epsilon": "optimizer.epsilon",
    "decay": "optimizer.weight_decay",
    "clip": "optimizer.clip_norm",
    "beta2": "optimizer.beta2",
    "loss": "loss.reduction",
    "dtype": "precision.dtype",
    "clip first": "precision.clip_before_unscale",
    "noise": "aug.white_noise_std",
    "offset": "aug.constant_offset_std",
    "cut": "aug.max_cut",
}
# Values of FAILED that should do no harm; a pair has the first ones of those that are not at issue.
_HARMLESS: dict[str, Any] = {"beta2": 0.99, "offset": 0.05, "length": 2000, "cut": 2, "decay": 0.0, "clip": 20.0}


@dataclass(frozen=True)
class Planted:
    """What is planted in a pair: bad values of the settings at issue, and how many others are harmless."""

    kind: str
    bad: dict[str, Any]
    harmless: int
    chance: str = "always"
    digits: bool = False


# Even places are the design half, odd ones the test half.
PLANTED = (
    Planted("one", {"rate": 1.0}, 5),
    Planted("one", {"epsilon": 10.0}, 5),
    Planted("two alone", {"decay": 100.0, "epsilon": 10.0}, 4),
    Planted("two alone", {"noise": 30.0, "rate": 1.0}, 4),
    Planted("two together", {"clip": 1e-4, "epsilon": 0.1}, 4),
    Planted("two together", {"loss": "per_label_mean", "epsilon": 0.1}, 3),
    Planted("three together", {"dtype": "fp16", "clip first": True, "epsilon": 0.1}, 2),
    Planted("three together", {"loss": "per_label_mean", "epsilon": 0.1, "rate": 0.03}, 2),
    Planted("one alone, two together", {"decay": 100.0, "clip": 1e-4, "epsilon": 0.1}, 3),
    Planted("one alone, two together", {"warm-up": 50_000, "clip": 1e-4, "epsilon": 0.1}, 5),
    Planted("one", {"rate": 0.25}, 4, "by rate"),
    Planted("one", {"noise": 3.5}, 4, "by rate"),
    Planted("two together", {"length": 11, "last rate": 1e-6}, 3, "by rate"),
    Planted("two together", {"rate": 0.15, "warm-up": 1}, 4, "by rate"),
    Planted("one", {"rate": 1.0}, 4, digits=True),
    Planted("two together", {"clip": 1e-4, "epsilon": 0.1}, 3, digits=True),
)


@dataclass(frozen=True)
class RealPair(Pair):
    """A pair whose mixtures are trained.

    Attributes:
        values: FAILED's values, by the settings' full names.
        known: The trials that have ended: whether each failed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    known: dict[tuple[Cause, int], bool] = field(default_factory=dict)

    def train(self, jobs: Iterable[tuple[Cause, int]]) -> None:
        """Train mixtures, in stacks, and keep how they ended."""
        missing = [job for job in dict.fromkeys(jobs) if job not in self.known]
        made = {job: self._config(*job) for job in missing}
        stacks = {job: stack_key(config) for job, config in made.items()}
        for stack in dict.fromkeys(stacks.values()):
            own = [job for job in missing if stacks[job] == stack]
            for job, failed in zip(own, _failures([made[job] for job in own]), strict=True):
                self.known[job] = failed
                with self._file.open("a") as file:
                    csv.writer(file).writerow([" ".join(sorted(job[0])), job[1], int(failed)])

    def fails(self, failed: Cause, seed: int) -> bool:
        """Return whether a mixture fails with a seed."""
        self.train([(failed, seed)])
        return self.known[failed, seed]

    def _config(self, failed: Cause, seed: int) -> Config:
        config = deepcopy(_healthy(PLANTED[self.number].digits))
        config.seed = seed
        for name in failed:
            group, last = name.split(".")
            setattr(getattr(config, group), last, self.values[name])
        config.schedule.lr_max_day, config.schedule.lr_min_day = config.schedule.lr_max, config.schedule.lr_min
        return config

    @property
    def _file(self) -> Path:
        return OUTPUTS / f"{self.number}.csv"


def real_pair(number: int) -> RealPair:
    """Return a pair whose causes are not known yet, with the trials that it has had."""
    planted = PLANTED[number]
    harmless = [(name, value) for name, value in _HARMLESS.items() if name not in planted.bad][: planted.harmless]
    values = {_NAMES[name]: value for name, value in [*planted.bad.items(), *harmless]}
    differences = tuple(Difference(name, "failed", "healthy", name.split(".")[0]) for name in values)
    pair = RealPair(number, differences, frozenset(), planted.kind, planted.chance, values)
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    if pair._file.exists():
        with pair._file.open() as file:
            for names, seed, failed in csv.reader(file):
                pair.known[frozenset(names.split()), int(seed)] = failed == "1"
    return pair


def rates(pair: RealPair) -> dict[Cause, tuple[int, int]]:
    """Measure the truth: failures of the mixtures of the settings at issue, without the others, and with them."""
    others = frozenset(pair.names[len(PLANTED[pair.number].bad) :])
    at_issue = [name for name in pair.names if name not in others]
    mixtures = [frozenset(m) for m in chain(*(combinations(at_issue, n) for n in range(len(at_issue) + 1)))]
    pair.train((mixture | more, seed) for mixture in mixtures for more in (frozenset(), others) for seed in _TRUTH)
    failures = {m: sum(pair.known[m, seed] for seed in _TRUTH) for one in mixtures for m in (one, one | others)}
    return {mixture: (failures[mixture], failures[mixture | others]) for mixture in mixtures}


def causes(found: dict[Cause, tuple[int, int]]) -> frozenset[Cause] | None:
    """Return the smallest mixtures that fail; None if the others do harm, or if the two sides are alike."""
    everything = max(found, key=len)
    middle = (found[everything][1] + found[frozenset()][0]) / 2
    if found[everything][1] - found[frozenset()][0] < len(_TRUTH) / 5:
        return None
    fails = {mixture: {count > middle for count in counts} for mixture, counts in found.items()}
    if any(len(both) > 1 for both in fails.values()):
        return None
    failing = [mixture for mixture, both in fails.items() if True in both]
    return frozenset(mixture for mixture in failing if not any(other < mixture for other in failing))


@cache
def _healthy(digits: bool) -> Config:
    return compose_config([*(_DIGITS if digits else _EMBEDDED), *_HEALTHY])


def _failures(configs: list[Config]) -> list[bool]:
    """Train trials that can share a stack. Return for each whether it failed."""
    opened: dict[int, Dataset] = {}

    def open_once(config: Config, device: torch.device) -> Dataset:
        if config.aug.max_cut not in opened:
            opened[config.aug.max_cut] = open_data(config, device)
        return opened[config.aug.max_cut]

    with TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(configs))]
        for place in places:
            place.mkdir()
        trials = [
            train_decoder(config, place, quiet=True, open_data=open_once)
            for config, place in zip(configs, places, strict=True)
        ]
        return [_failed(result) for result in train_together(trials, size=_SIZE)]


def _failed(result: Any) -> bool:
    if isinstance(result, BaseException):
        raise result
    verdict: Verdict = result[0]
    return verdict.outcome not in ("stable", "slow")
