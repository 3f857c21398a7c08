"""Kinds of trainings that people report, made up at random: verdicts at distances of 1 to 1,000 steps between readings.

Each kind is a function that spoils a healthy training. A log has the loss and the error rates, and at random the
gradient norm, the learning rate and the validation loss.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stability.diagnosis.judge import judge
from stability.diagnosis.table import Table
from tests.support.tables import NOTHING, table

SEEDS = 40
RIGHT = 38  # 95 % of them
Floats = NDArray[np.float64]


class Training:
    """A healthy training, drawn at random.

    Attributes:
        x: The time of each reading, from 0 to 1.
        rows: The readings at which it is validated.
        loss: The training loss, without its noise.
        norm, lr, rates, losses: Gradient norm, learning rate, error rates and validation losses.
        log: Which of them the log has.
        scale: The loss at the start.
        noise: The standard deviation of the logarithm of the losses.
        plateau, end: The losses on the blank plateau and at the end, as shares of the scale.
        leaves, pace: When the plateau ends, and how long learning takes then.
        lead: How late the error rate follows the loss.
        best: The error rate at the end.
    """

    def __init__(self, seed: list[int]) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.distance = int(rng.choice([1, 10, 50, 100, 200, 500, 1000]))
        count = int(rng.integers(*{1: (150, 800), 10: (60, 200)}.get(self.distance, (12, 80))))
        self.x = np.linspace(0, 1, count)
        self.scale = rng.choice([3, 7, 30, 90, 600])
        self.noise = rng.choice([0.005, 0.03, 0.08, 0.2])
        self.rows = np.linspace(0, count - 1, min(count, int(rng.integers(6, 30)))).astype(int)[1:]
        self.end = rng.uniform(0.02, 0.15)
        on_plateau = bool(rng.random() < 0.5)
        self.plateau = rng.uniform(0.25, 0.6) if on_plateau else 1.0
        self.leaves = rng.uniform(0.1, 0.4) if on_plateau else 0.0
        self.pace, self.lead = rng.uniform(0.08, 0.25), rng.uniform(1, 4)
        self.best = rng.uniform(0.03, 0.4)
        self.loss = self.loss_at(self.x)
        self.rates = self.rate_at(self.x[self.rows])
        self.losses = rng.uniform(1, 1.3) * self.loss[self.rows]
        self.norm = rng.uniform(0.5, 50) * np.exp(0.25 * rng.normal(size=count))
        self.lr = np.full(count, 10 ** rng.uniform(-4, -2))
        self.log = {"loss", "rates"} | {
            name for name, share in (("norm", 0.5), ("lr", 0.4), ("losses", 0.6)) if rng.random() < share
        }

    def _unlearned(self, x: Floats) -> Floats:
        """The share that is not yet learned."""
        since = np.maximum(0, np.append(x, 1) - self.leaves)
        left = np.exp(-since / self.pace)
        return np.asarray((left[:-1] - left[-1]) / (1 - left[-1]))

    def loss_at(self, x: Floats) -> Floats:
        """The loss falls to the plateau if there is one, and then to its end."""
        first = (1 - self.plateau) * np.exp(-x / 0.03)
        return np.asarray(self.scale * (self.end + first + (self.plateau - self.end) * self._unlearned(x)))

    def rate_at(self, x: Floats) -> Floats:
        """The error rate falls from 1 to its best, with some noise."""
        rates = self.best + (1 - self.best) * np.minimum(1, self.lead * self._unlearned(x))
        return np.maximum(0.001, rates + 0.005 * self.rng.normal(size=len(x)))

    def grow(self, first: int, readings: int) -> None:
        """From one reading on the loss grows, and the gradient with it, until it has become a multiple."""
        times = 10 ** self.rng.uniform(1, 3)
        factor = times ** np.clip((np.arange(len(self.x)) - first + 1) / readings, 0, 1)
        self.loss *= factor
        self.norm *= factor**1.5
        self.rates[self.rows >= first] = 1

    def lose(self, since: float, share: float, by: float = 1) -> Floats:
        """From some time on the error rate loses a share of what was learned. How far, at each reading, is returned."""
        lost = np.clip((self.x - since) / (by - since), 0, 1)
        early = np.minimum(1, self.x / since)
        self.rates = self.rate_at(early[self.rows]) + share * (1 - self.best) * lost[self.rows]
        self.loss = self.loss_at(early)
        return lost

    def cut(self, end: int) -> None:
        """The log ends before that reading."""
        validated = self.rows < end
        self.rates, self.losses, self.rows = self.rates[validated], self.losses[validated], self.rows[validated]
        self.x, self.loss, self.norm, self.lr = self.x[:end], self.loss[:end], self.norm[:end], self.lr[:end]

    def tables(self) -> tuple[Table, Table]:
        """The signals and the validations of the log."""
        steps = np.arange(len(self.x)) * self.distance
        signals = {"loss": self._noisy(self.loss), "norm": self.norm, "lr": self.lr}
        validations = {"rates": self.rates, "losses": self._noisy(self.losses)}
        return self._logged(steps, signals), self._logged(steps[self.rows], validations)

    def _logged(self, steps: NDArray[np.int64], signals: dict[str, Floats]) -> Table:
        names = {"norm": "grad_norm", "rates": "per", "losses": "loss"}
        logged: dict[str, Any] = {names.get(own, own): signals[own] for own in signals if own in self.log}
        return table(steps, **logged) if logged else NOTHING

    def _noisy(self, values: Floats) -> Floats:
        return np.asarray(values * np.exp(self.noise * self.rng.normal(size=len(values))))


def healthy(t: Training) -> None:
    """Nothing is wrong."""


def validation_loss_rises(t: Training) -> None:
    """The validation loss gets worse while the error rate gets better."""
    t.losses *= 1 + 0.8 * t.x[t.rows]


def some_gradients_not_finite(t: Training) -> None:
    bad = t.rng.choice(len(t.x) - 2, max(1, len(t.x) // 30), replace=False)
    t.norm[bad] = t.rng.choice([np.inf, np.nan])
    t.log.add("norm")


def single_spike(t: Training) -> None:
    t.loss[t.rng.integers(3, len(t.x) - 4)] *= t.rng.uniform(2, 10)


def leap_that_came_back(t: Training) -> None:
    """The loss leaps to a multiple of its start, and comes down again with the error rate."""
    after = t.x - t.rng.uniform(0.2, 0.4)
    leap = np.where(after < 0, 0, t.rng.uniform(1.5, 5) * t.scale * np.exp(-after / 0.05))
    t.loss += leap
    t.losses = t.loss[t.rows]
    t.rates = np.maximum(t.rates, np.minimum(1, leap[t.rows] / t.scale))


def leaves_the_plateau_late(t: Training) -> None:
    t.leaves, t.plateau, t.pace = t.rng.uniform(0.5, 0.7), t.rng.uniform(0.25, 0.6), 0.1
    t.loss, t.rates = t.loss_at(t.x), t.rate_at(t.x[t.rows])
    t.losses = 1.1 * t.loss[t.rows]


def other_scale(t: Training) -> None:
    """From one reading on both losses are a multiple, as with another reduction. The error rate goes on falling."""
    t.best, t.rates = 0.03, np.linspace(1, 0.03, len(t.rows))
    since = int(len(t.x) * t.rng.uniform(0.4, 0.6))
    t.loss[since:] *= t.rng.uniform(1.5, 0.25 * t.loss[0] / t.loss[since]) if t.loss[since] < 0.15 * t.loss[0] else 1
    t.losses = 1.1 * t.loss[t.rows]


def a_skipped_batch_in_each_mean(t: Training) -> None:
    """The log has means of the loss, and since some time each of them contains a batch that was NaN and skipped."""
    t.best = t.rng.uniform(0.03, 0.3)
    t.rates = t.rate_at(t.x[t.rows])
    t.loss[int(len(t.x) * t.rng.uniform(0.3, 0.6)) :] = np.nan


def no_error_rates(t: Training) -> None:
    t.log.remove("rates")


def validations_alone(t: Training) -> None:
    t.log = {"rates", "losses"}


def converged(t: Training) -> None:
    """Learned what there was to learn, at a middling error rate."""
    t.best = t.rng.uniform(0.45, 0.65)
    t.rates = t.rate_at(np.minimum(1, 1.5 * t.x[t.rows]))


def _readings_of_growth(t: Training) -> int:
    return int(t.rng.choice([1, 2, 3, 10] if t.distance > 1 else [10, 30]))


def explodes_to_nan(t: Training) -> None:
    readings = min(_readings_of_growth(t), len(t.x) // 3)
    first = int(t.rng.integers(len(t.x) // 3, len(t.x) - readings - 1))
    t.grow(first, readings)
    t.loss[first + readings :] = t.norm[first + readings :] = np.nan
    t.cut(first + readings + int(t.rng.integers(1, 5)))


def explodes_to_the_end(t: Training) -> None:
    """The log is cut off while the loss grows, before another validation."""
    readings = min(_readings_of_growth(t), len(t.x) // 3)
    first = len(t.x) - readings
    t.grow(first, readings)
    t.rates, t.losses, t.rows = (own[t.rows < first] for own in (t.rates, t.losses, t.rows))


def explodes_and_stays(t: Training) -> None:
    readings = min(_readings_of_growth(t), len(t.x) // 4)
    first = int(t.rng.integers(len(t.x) // 3, len(t.x) * 2 // 3))
    t.grow(first, readings)
    t.loss[first + readings :] = max(t.loss[first + readings - 1], 2 * t.scale)


def explodes_at_once(t: Training) -> None:
    t.loss[1:] = t.scale * t.rng.uniform(2.5, 10)
    t.norm[1:] *= t.rng.uniform(5, 30)
    t.rates[:] = 1


def degraded_by_the_rate(t: Training) -> None:
    """The lr rises, and from some time on loss and error rate with it."""
    lost = t.lose(0.4, t.rng.uniform(0.45, 0.8))
    t.loss += 0.35 * t.scale * lost
    t.lr = 1e-4 * np.exp(3.5 * t.x)
    t.log = {"loss", "rates", "lr"}


def degraded(t: Training) -> None:
    """Lost a part of what it had learned, and stays there."""
    lost = t.lose(0.4, t.rng.uniform(0.35, 0.7), by=0.7)
    t.loss += 0.15 * t.scale * lost
    t.log = {"loss", "rates"}


def other_labels_since(t: Training) -> None:
    """The training goes on with other labels: the loss leaps, and these are learned, too."""
    t.noise, t.pace, t.leaves, t.lead = min(t.noise, 0.08), 0.1, 0.0, 1
    t.loss, t.rates = t.loss_at(t.x), t.rate_at(t.x[t.rows])
    since = int(len(t.x) * t.rng.uniform(0.45, 0.55))
    learned = t.x - t.x[since]
    t.loss[since:] = t.scale * (t.end + t.rng.uniform(0.5, 1) * np.exp(-learned / 0.12))[since:]
    after = t.rows >= since
    t.rates[after] = t.rng.uniform(0.97, 1.01, int(after.sum()))
    t.losses[after] = t.scale * (1 + learned[t.rows[after]])


def other_validation_since(t: Training) -> None:
    """From some time on the validation data have other labels. The training goes on as before."""
    t.noise, t.pace, t.leaves, t.lead = min(t.noise, 0.08), 0.15, 0.0, 1
    t.loss, t.rates = t.loss_at(t.x), t.rate_at(t.x[t.rows])
    t.losses = 1.1 * t.loss[t.rows]
    after = t.rows >= len(t.x) * t.rng.uniform(0.45, 0.55)
    t.rates[after] = t.rng.uniform(0.96, 1.03, int(after.sum()))
    t.losses[after] = t.scale * t.rng.uniform(1, 2)
    t.log.add("losses")


def exploded_and_came_back_a_little(t: Training) -> None:
    """The loss leapt above its start, the log ends while it comes down, and nothing has been learned again."""
    count = len(t.x)
    first = count - max(3, count // 8)
    t.loss[first:] = t.scale * t.rng.uniform(2.5, 10) * np.geomspace(1, 0.45, count - first)
    t.rates[t.rows >= first] = t.rng.uniform(0.8, 1)
    t.losses[t.rows >= first] = 2 * t.scale


def overfitted(t: Training) -> None:
    lost = t.lose(0.3, t.rng.uniform(0.4, 0.7))
    t.losses = t.loss[t.rows] + 0.6 * t.scale * lost[t.rows]
    t.loss = t.loss * np.exp(-2 * t.x)
    t.log.add("losses")


def overfitted_without_error_rates(t: Training) -> None:
    overfitted(t)
    t.log.remove("rates")


def nan_hidden_as_0(t: Training) -> None:
    bad = int(t.rng.integers(len(t.x) // 3, len(t.x) * 3 // 4))
    t.loss[bad:], t.norm[bad:] = 0, np.nan
    t.rates[t.rows >= bad], t.losses[t.rows >= bad] = 1, np.nan


def nan_hidden_as_0_in_a_log_of_losses(t: Training) -> None:
    nan_hidden_as_0(t)
    t.log = {"loss"}


def nan_after_a_few_readings(t: Training) -> None:
    t.cut(int(t.rng.integers(2, 8)))
    t.loss[int(t.rng.integers(1, min(3, len(t.x)))) :] = np.nan
    t.log = {"loss"}


def loss_of_0(t: Training) -> None:
    t.loss[:] = t.norm[:] = 0
    t.rates[:] = t.rng.choice([1.0, 0.97])
    t.log.discard("losses")


def gradient_of_0(t: Training) -> None:
    t.loss[:], t.norm[:], t.rates[:] = t.scale, 0, 1
    t.losses[:] = t.scale
    t.log.add("norm")


def negative_loss(t: Training) -> None:
    """A CTC loss of logits that are not normalised."""
    t.loss = t.scale * (1 - np.sqrt(t.x) * t.rng.uniform(2, 10))
    t.losses = t.loss[t.rows]
    t.rates[:] = 1


def wrong_metric(t: Training) -> None:
    """The loss is learned in both splits, and the error rate is that of a wrong decoder."""
    t.end = t.rng.uniform(0.01, 0.055)
    t.loss = t.loss_at(t.x)
    t.losses = 1.1 * t.loss[t.rows]
    t.rates[:] = t.rng.choice([1.0, 0.98])
    t.log.add("losses")


def wrong_class_table(t: Training) -> None:
    """The decoder of the error rate has another class table, and the loss of utterances is still more than a nat."""
    t.scale, t.noise, t.end = 60, min(t.noise, 0.08), t.rng.uniform(0.03, 0.1)
    t.plateau, t.leaves, t.pace = 0.5, 0.0, t.rng.uniform(0.1, 0.25)
    t.loss = t.loss_at(t.x)
    t.losses = 1.1 * t.loss[t.rows]
    t.rates = t.rng.uniform(0.93, 0.99, len(t.rows))
    t.log.add("losses")


def other_labels(t: Training) -> None:
    """Training and validation have other labels."""
    wrong_metric(t)
    t.losses = t.scale * t.rng.uniform(0.5, 1) * (1 + t.rng.uniform(0, 2) * t.x[t.rows])
    t.rates = t.rng.uniform(0.93, 1.02, len(t.rows))


def other_labels_of_half_the_utterances(t: Training) -> None:
    """Half of the validation utterances have other labels: the error rate rests there, and the loss only rises."""
    t.loss = t.scale * np.exp(-t.x / 0.15)
    t.losses = t.scale * (0.2 + 0.3 * t.x[t.rows])
    t.rates = t.rng.uniform(0.5, 0.56) + 0.4 * np.exp(-t.x[t.rows] / 0.08) + 0.004 * t.rng.normal(size=len(t.rows))
    t.log.add("losses")


def stuck(t: Training) -> None:
    """Stays on the blank plateau."""
    plateau = max(t.rng.uniform(0.1, 0.6), 1.3 / t.scale)
    t.loss = t.scale * (plateau + (1 - plateau) * np.exp(-t.x / 0.02))
    t.losses, t.noise = t.loss[t.rows], min(t.noise, 0.08)
    t.rates[:] = 1


def creeps(t: Training) -> None:
    """The steps are so small that the loss comes down evenly, and not far."""
    t.noise = min(t.noise, 0.03)
    t.loss = t.scale * (1 - t.rng.uniform(0.18, 0.25) * t.x)
    t.losses = 1.02 * t.loss[t.rows]
    t.rates[:] = t.rng.choice([1.0, 1.15])
    t.log |= {"lr", "losses"}


def slow(t: Training) -> None:
    t.loss = t.scale * (0.5 + 0.5 * np.exp(-t.x / t.rng.uniform(0.1, 0.3)))
    t.losses = t.loss[t.rows]
    t.rates = np.linspace(0.97, t.rng.uniform(0.7, 0.8), len(t.rows)) + 0.004 * t.rng.normal(size=len(t.rows))


def hardly_begun(t: Training) -> None:
    t.cut(int(t.rng.integers(1, 3)))


def in_warmup(t: Training) -> None:
    t.cut(int(t.rng.integers(3, 12)))
    count = len(t.x)
    t.loss, t.lr = t.scale * np.linspace(1, 0.7, count), np.linspace(1e-5, 1e-3, count)
    t.rows, t.rates, t.losses = np.array([count - 1]), np.array([1.0]), t.loss[-1:]
    t.log.add("lr")


Kind = Callable[[Training], None]
Known = tuple[Kind, set[str], set[str | None]]  # a kind, the outcomes that are right, and the causes

_GREW: set[str | None] = {"rate_too_high", "unknown", "no_evidence"}
_HEALTHY: list[Known] = [
    (healthy, {"stable"}, {None}),
    (validation_loss_rises, {"stable"}, {None}),
    (some_gradients_not_finite, {"stable"}, {None}),
    (leaves_the_plateau_late, {"stable"}, {None}),
    (single_spike, {"stable"}, {None}),
    (leap_that_came_back, {"stable"}, {None}),
    (other_scale, {"stable"}, {None}),
    (a_skipped_batch_in_each_mean, {"stable"}, {None}),
    (no_error_rates, {"undecided"}, {"no validation"}),
    (validations_alone, {"stable"}, {None}),
    (converged, {"stable", "slow"}, {None, "no_evidence"}),
]
_FAULTY: list[Known] = [
    (explodes_to_nan, {"exploded"}, _GREW),
    (explodes_to_the_end, {"exploded"}, _GREW),
    (explodes_and_stays, {"exploded"}, _GREW),
    (explodes_at_once, {"exploded"}, _GREW),
    (degraded_by_the_rate, {"exploded", "degraded"}, {"rate_too_high"}),
    (degraded, {"exploded", "degraded"}, _GREW),
    (other_labels_since, {"exploded", "degraded"}, {"unknown"}),
    (other_validation_since, {"degraded"}, {"labels"}),
    (exploded_and_came_back_a_little, {"exploded"}, _GREW),
    (overfitted, {"degraded"}, {"overfitting"}),
    (overfitted_without_error_rates, {"degraded", "undecided"}, {"overfitting", "no validation"}),
    (nan_hidden_as_0, {"non_finite"}, {"loss", "gradient"}),
    (nan_hidden_as_0_in_a_log_of_losses, {"non_finite"}, {"loss"}),
    (nan_after_a_few_readings, {"non_finite"}, {"no_evidence", "loss"}),
    (loss_of_0, {"not_training"}, {"zero_loss", "no_gradient"}),
    (gradient_of_0, {"not_training"}, {"no_gradient"}),
    (negative_loss, {"bad_data"}, {"negative_loss"}),
    (wrong_metric, {"undecided"}, {"metric"}),
    (wrong_class_table, {"undecided"}, {"metric"}),
    (other_labels, {"undecided"}, {"labels"}),
    (other_labels_of_half_the_utterances, {"slow"}, {"labels", "overfitting"}),
    (stuck, {"blank_collapse", "undecided"}, {"no_evidence", "too_few_readings"}),
    (creeps, {"undecided", "blank_collapse"}, {"step_too_small", "too_few_readings"}),
    (slow, {"slow"}, {"no_evidence", "no_information"}),
    (hardly_begun, {"undecided"}, {"too_few_readings", "no validation"}),
    (in_warmup, {"undecided"}, {"in_warmup"}),
]


def _wrong(kind: Kind, outcomes: set[str], causes: set[str | None]) -> Counter[tuple[str, str | None]]:
    """The wrong verdicts on trainings of a kind, and how often each was given."""
    counts = Counter[tuple[str, str | None]]()
    for seed in range(SEEDS):
        training = Training([seed, *kind.__name__.encode()])
        kind(training)
        verdict = judge(*training.tables())
        if verdict.outcome not in outcomes or verdict.cause not in causes:
            counts[verdict.outcome, verdict.cause] += 1
    return counts


@pytest.mark.parametrize(
    ("kind", "outcomes", "causes"),
    _HEALTHY,
)
def test_no_healthy_training_is_condemned(kind: Kind, outcomes: set[str], causes: set[str | None]) -> None:
    assert not _wrong(kind, outcomes, causes)


@pytest.mark.parametrize(("kind", "outcomes", "causes"), _FAULTY)
def test_nearly_every_training_of_a_kind_is_understood(kind: Kind, outcomes: set[str], causes: set[str | None]) -> None:
    wrong = _wrong(kind, outcomes, causes)
    assert wrong.total() <= SEEDS - RIGHT, wrong
