"""All detectors on random signals of every sort: they use no later step, and nothing makes them raise or warn."""

from dataclasses import replace

import numpy as np
import pytest

from stability.diagnosis.detectors import as_judged, findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.judge import judge
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FATAL
from tests.support.tables import NOTHING, table

_EXPENSIVE = ("update_ratio", "weight_norm", "frame_information", "effective_lr", "epsilon_dominance", "applied_norm")


def _walk(rng: np.random.Generator, rows: int, level: float, size: float) -> np.ndarray:
    """A positive signal: noise about a level that drifts, and that may leap, with single spikes."""
    log = np.log(level) + size * rng.normal(size=rows) + rng.choice([0, 0.02, 0.1]) * rng.normal(size=rows).cumsum()
    if rng.random() < 0.4:
        log[rng.integers(rows) :] += rng.normal(scale=2)
    if rng.random() < 0.3:
        log[rng.integers(rows)] += rng.normal(scale=6)
    return np.asarray(np.exp(np.clip(log, -60, 60)))


def _training(seed: int, rows: int) -> tuple[Table, Table]:
    """Random signals of a training, and its validations."""
    rng = np.random.default_rng(seed)
    silent = rng.choice([0, 1], size=4).repeat(-(-rows // 4))[:rows]
    signals: dict[str, np.ndarray] = {
        "loss": _walk(rng, rows, 50, 0.05) * np.exp(-rng.choice([0, 1e-3, 1e-2]) * np.arange(rows)),
        "grad_norm": _walk(rng, rows, 5, 0.3),
        "grad_norm.head": _walk(rng, rows, 2, 0.3),
        "lr": _walk(rng, rows, 1e-3, 0) if rng.random() < 0.3 else np.full(rows, 1e-3),
        "update_ratio": _walk(rng, rows, rng.choice([1e-7, 1e-3, 0.01]), 0.3),
        "weight_norm": _walk(rng, rows, 20, 0),
        "effective_lr": _walk(rng, rows, 0.05, 0.1),
        "epsilon_dominance": rng.random(rows),
        "applied_norm": _walk(rng, rows, 1, 0.1),
        "blank_fraction": np.where(silent, 0.99, rng.random(rows)),
        "distinct_phonemes": np.where(silent, 1, rng.integers(1, 40, rows)),
        "frame_information": _walk(rng, rows, 0.1, 0.3) * np.where(silent, 0.1, 5),
        "loss_scale": 2.0 ** rng.integers(0, 3, rows) if rng.random() < 0.3 else np.ones(rows),
        "input_max": _walk(rng, rows, 4, 0.1),
        "infeasible_targets": (rng.random(rows) < 0.01).astype(float),
    }
    signals["loss_per_label"] = signals["loss"] / rng.choice([1, 20])
    if rng.random() < 0.3:
        signals["loss"] -= rng.choice([40, 60])  # as a log-likelihood
    for name in ("loss", "grad_norm", "grad_norm.head", "input_max"):
        if rng.random() < 0.15:
            signals[name][rng.random(rows) < rng.choice([0.003, 0.3])] = rng.choice([np.nan, np.inf])
    kept = [name for name in signals if rng.random() < 0.85] or ["loss"]
    values = np.array([signals[name] for name in kept], np.float32).T
    measured = np.ones(values.shape, bool)
    measured[:, [name in _EXPENSIVE for name in kept]] = (np.arange(rows) % rng.choice([1, 10]) == 0)[:, None]
    steps = np.cumsum(rng.choice([1, 1, 1, 5], size=rows)) if rng.random() < 0.3 else np.arange(rows)
    at = np.unique(rng.choice(steps, size=min(rows, 6)))
    rates = np.column_stack([np.clip(_walk(rng, len(at), 0.7, 0.5), 0, 1.5), rng.random(len(at))]).astype(np.float32)
    return Table(tuple(kept), steps, values, measured), Table(("per", "loss"), at, rates, ~np.isnan(rates))


def _first(table_: Table, last: int) -> Table:
    """Return the rows up to that step."""
    kept = table_.steps <= last
    return Table(table_.names, table_.steps[kept], table_.values[kept], table_.measured[kept])


def _comparable(found: list[Finding]) -> list[str]:
    """Return findings as text, so that NaN equals NaN, without gradients that are not finite and kinds of collapse."""
    found = [f for f in found if f.kind not in FATAL or f.signal == "loss"]
    unnamed = [replace(f, kind="mode_collapse", advice="") if f.kind == "blank_collapse" else f for f in found]
    return [repr(replace(f, advice="") if f.kind == "mode_collapse" else f) for f in unnamed]


@pytest.mark.parametrize("first_seed", range(0, 400, 50))
def test_no_detector_uses_a_later_step(first_seed: int) -> None:
    """The findings in the first rows are those in all rows that were detected by then.

    The exceptions that `detectors.py` names are left out here. All signals are measured from the first row on, and
    those of the decoder's output at every step.
    """
    for seed in range(first_seed, first_seed + 50):
        rng = np.random.default_rng([seed, 1])
        signals, validation = _training(seed, int(rng.choice([12, 60, 400])))
        whole = findings(signals, validation)
        ends = {f.detected_step for f in whole} | {f.detected_step - 1 for f in whole}
        for end in sorted(ends | set(rng.choice(signals.steps, 3).tolist())):
            if end < signals.steps[9]:
                continue
            early = findings(_first(signals, end), _first(validation, end))
            known = [f for f in whole if f.detected_step <= end]
            assert _comparable(early) == _comparable(known), (seed, end)


def test_in_a_long_run_too_the_loss_is_judged_without_later_steps() -> None:
    loss = np.r_[np.geomspace(80, 20, 2000), np.geomspace(20, 200, 500)]
    signals = table(loss=loss)
    whole = findings(signals, NOTHING)
    assert [f.signal for f in whole] == ["loss"]
    for end in (whole[0].detected_step - 1, whole[0].detected_step, 2400):
        assert findings(_first(signals, end), NOTHING) == [f for f in whole if f.detected_step <= end]


def test_a_random_training_is_judged_in_finite_words() -> None:
    for seed in range(200):
        signals, validation = _training(seed, 200)
        for advice in [*(f.advice for f in findings(signals, validation)), judge(signals, validation).advice]:
            words = set(advice.replace("(", " ").replace("%", " ").replace(",", " ").split())
            assert not {"nan", "inf", "-inf", "nan.", "inf."} & words, (seed, advice)


_ROWS = {"no rows": 0, "one row": 1, "two rows": 2, "many rows": 200}
_ALL = (
    "loss", "loss_per_label", "grad_norm", "grad_norm.head", "applied_norm", "update_ratio", "weight_norm",
    "blank_fraction", "distinct_phonemes", "frame_information", "input_max", "infeasible_targets", "lr", "effective_lr",
    "epsilon_dominance", "loss_scale",
)  # fmt: skip


def _constant(value: float, rows: int, names: tuple[str, ...] = _ALL) -> Table:
    return Table(
        names, np.arange(rows), np.full((rows, len(names)), value, np.float32), np.ones((rows, len(names)), bool)
    )


@pytest.mark.parametrize("rows", _ROWS.values(), ids=_ROWS.keys())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 1e-30, 3e38])
def test_constant_signals_are_judged(value: float, rows: int) -> None:
    signals = _constant(value, rows)
    for validation in (NOTHING, _constant(value, rows, ("per", "loss"))):
        findings(signals, validation)
        judge(signals, validation)


@pytest.mark.parametrize("value", [1e-9, -1.0, 1.0])
def test_a_constant_loss_is_no_fault(value: float) -> None:
    assert findings(_constant(value, 200, ("loss",)), _constant(0.5, 200, ("per",))) == []


@pytest.mark.parametrize("name", _ALL)
def test_a_single_signal_is_judged(name: str) -> None:
    for seed in range(5):
        whole, validation = _training(seed, 200)
        if name in whole.names:
            column = [whole.names.index(name)]
            alone = Table((name,), whole.steps, whole.values[:, column], whole.measured[:, column])
            judge(alone, validation)
            judge(alone, NOTHING)


def test_validations_alone_are_judged() -> None:
    validation = table(per=[1.0, 0.5, 0.2])
    assert findings(NOTHING, validation) == []
    assert judge(NOTHING, validation).outcome == "stable"
    assert judge(NOTHING, table(per=[1.0, 1.0, 1.0])).outcome == "undecided"


def test_repeated_steps_and_gaps_are_judged() -> None:
    for seed in range(30):
        signals, validation = _training(seed, 200)
        rng = np.random.default_rng(seed)
        for steps in (np.arange(200) // 7, np.full(200, 3), np.cumsum(rng.integers(0, 500, 200))):
            judge(replace(signals, steps=steps), validation)
        holes = replace(signals, measured=signals.measured & (rng.random(signals.measured.shape) < 0.5))
        judge(holes, validation)


def test_a_log_likelihood_that_is_learned_is_no_fault() -> None:
    rng = np.random.default_rng(0)
    loss = -100 * (1 - np.exp(-np.arange(400) / 100)) + rng.normal(size=400)
    signals = table(loss=loss, grad_norm=5 * np.exp(0.3 * rng.normal(size=400)), update_ratio=np.full(40, 0.005))
    assert findings(signals, table(steps=[100, 399], per=[0.9, 0.3])) == []


def test_a_hundred_thousand_rows_are_judged() -> None:
    signals, validation = _training(3, 100_000)
    judge(signals, validation)
    judge(_constant(0.5, 100_000), NOTHING)


def test_skipped_batches_are_not_judged() -> None:
    loss, skipped = np.full(60, 40.0), np.zeros(60)
    loss[20:22], skipped[20:22] = np.nan, 1
    signals = table(loss=loss, skipped=skipped)
    assert [*as_judged(signals, NOTHING).steps] == [*range(20), *range(22, 60)]
    assert findings(signals, NOTHING) == []
    assert [f.kind for f in findings(table(loss=loss, skipped=np.zeros(60)), NOTHING)] == ["non_finite"]


def test_skipped_batches_that_do_not_end_are_judged() -> None:
    loss, skipped = np.full(90, 40.0), np.zeros(90)
    loss[60:], skipped[60:] = np.nan, 1
    assert [(f.kind, f.onset_step) for f in findings(table(loss=loss, skipped=skipped), NOTHING)] == [
        ("non_finite", 60)
    ]


def test_a_hidden_nan_is_judged_as_a_nan() -> None:
    loss, norms = np.full(60, 40.0), np.full(60, 5.0)
    loss[30:], norms[30:] = 0, np.nan
    signals = table(loss=loss, grad_norm=norms)
    assert np.isnan(as_judged(signals, NOTHING)["loss"][30:]).all()
    assert [(f.kind, f.signal, f.onset_step) for f in findings(signals, NOTHING)] == [("non_finite", "loss", 30)]


def test_a_usual_training_is_judged_as_it_is() -> None:
    signals = table(loss=np.linspace(40, 5, 60), skipped=np.zeros(60))
    assert as_judged(signals, NOTHING) is signals
