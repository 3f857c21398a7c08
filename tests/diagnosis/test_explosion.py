"""Explosions and what only looks like one, by made-up signals whose cause is known."""

from typing import Any

import numpy as np
import pytest

from stability.diagnosis.explosion import exploded, recovered
from stability.diagnosis.finding import Finding
from tests.support.tables import NOTHING, numbers, table

N, AT = 300, 200


def noise(scale: float, seed: int = 0) -> np.ndarray:
    return np.asarray(np.exp(scale * np.random.default_rng(seed).normal(size=N)))


def training(**changes: Any) -> dict[str, Any]:
    """The signals of a training that has learned for some time, with some of them changed."""
    calm = {
        "loss": (20 + 60 * np.exp(-np.arange(N) / 60)) * noise(0.03),
        "grad_norm": 5 * noise(0.3, 1),
        "applied_norm": np.full(N, 1.0),
        "lr": np.full(N, 2e-3),
        "update_ratio": np.full(N // 10, 0.005),
        "weight_norm": np.linspace(20, 25, N // 10),
        "effective_lr": np.full(N // 10, 0.05),
    }
    return calm | changes


def found(**changes: Any) -> Finding | None:
    return exploded(table(**training(**changes)), NOTHING)


def sure(**changes: Any) -> Finding:
    finding = found(**changes)
    assert finding is not None
    assert finding.kind == "exploded"
    assert finding.onset_step <= finding.detected_step
    return finding


def late(name: str, factor: float, first: int = AT, last: int = N) -> np.ndarray:
    """A signal of the calm training, times that factor from one step to another."""
    values = training()[name].copy()
    every = N // len(values)
    values[first // every : -(-last // every)] *= factor
    return np.asarray(values)


def test_nothing_is_found_in_a_calm_training() -> None:
    assert found() is None


def test_a_rate_that_was_raised_is_named_with_both_values() -> None:
    finding = sure(
        lr=late("lr", 50),
        update_ratio=late("update_ratio", 50),
        loss=late("loss", 4),
        grad_norm=late("grad_norm", 10),
    )
    assert finding.cause == "rate_too_high"
    assert finding.onset_step >= AT
    assert finding.detected_step <= AT + 45
    assert {0.002, 0.1} <= set(numbers(finding.advice))
    assert "clip" not in finding.advice


def test_a_raised_rate_is_blamed_before_its_updates_were_measured() -> None:
    lr, loss, norms = (late(name, factor, AT + 1) for name, factor in (("lr", 100), ("loss", 5), ("grad_norm", 20)))
    finding = sure(lr=lr, loss=loss, grad_norm=norms)
    assert (finding.cause, finding.onset_step) == ("rate_too_high", AT + 1)
    assert numbers(finding.advice) == [0.002, 0.2]


def test_the_advice_on_large_updates_proposes_a_rate() -> None:
    finding = sure(update_ratio=late("update_ratio", 16))
    assert (finding.cause, finding.signal) == ("rate_too_high", "update_ratio")
    assert finding.value == pytest.approx(0.08)
    large, rate, before, proposed, usual = numbers(finding.advice)
    assert (large, rate, before, usual) == pytest.approx((0.08, 0.002, 0.005, 0.005))
    assert proposed == pytest.approx(rate * usual / large, rel=0.3)  # rounded to one digit


def test_the_advice_says_that_gradients_are_not_clipped() -> None:
    norms = training()["grad_norm"]
    finding = sure(update_ratio=late("update_ratio", 16), loss=late("loss", 4), applied_norm=norms)
    assert "Gradients are not clipped" in finding.advice


def test_updates_many_times_the_weights_are_not_given_in_per_cent() -> None:
    finding = sure(update_ratio=late("update_ratio", 1e4), loss=late("loss", 4))
    assert "50 times the weights" in finding.advice


def test_no_rate_is_proposed_if_the_weights_did_not_move_before() -> None:
    updates = np.where(np.arange(N // 10) < AT // 10, 0.0, 0.2)
    finding = sure(update_ratio=updates, loss=late("loss", 4))
    assert finding.cause == "rate_too_high"
    assert "With an lr of" not in finding.advice


def test_large_updates_of_a_loss_that_falls_do_no_harm() -> None:
    falling = 80 * np.exp(-np.arange(N) / 60)
    assert found(loss=falling, update_ratio=late("update_ratio", 16)) is None


def test_a_loss_that_rises_with_the_length_of_the_first_utterances_is_no_explosion() -> None:
    longer = np.linspace(20, 60, 50) + noise(2)[:50]
    assert found(loss=np.concatenate([longer, np.full(N - 50, 20.0)])) is None


def test_updates_of_weights_that_began_at_0_are_no_explosion() -> None:
    sizes = np.r_[np.inf, 0.2, 0.1, 0.07, 0.05, np.full(N // 10 - 5, 0.01)]
    signals = {"loss": np.full(N, 30.0) * noise(0.03), "update_ratio": sizes}
    assert found(**signals) is not None
    assert found(**signals, weight_norm=np.minimum(np.arange(N // 10), 5.0)) is None


def test_large_updates_of_weights_that_are_taken_away_are_no_explosion() -> None:
    shrinking = 25 * 0.8 ** np.arange(N // 10)
    assert found(update_ratio=late("update_ratio", 16), weight_norm=shrinking) is None


def test_one_batch_is_named_by_its_step() -> None:
    norms = late("grad_norm", 2000, AT + 3, AT + 4)
    loss = late("loss", 4, AT + 4)
    finding = sure(grad_norm=norms, loss=loss, effective_lr=late("effective_lr", 0.05, AT + 10))
    assert finding.cause == "bad_batch"
    step, norm, times, usual, *_, limit = numbers(finding.advice)
    assert step == AT + 3
    assert norm == pytest.approx(norms[AT + 3], rel=0.01)
    assert times == pytest.approx(norm / usual, rel=0.01)
    assert limit == pytest.approx(3 * usual, rel=0.4)  # rounded to one digit


def test_a_batch_that_filled_the_second_moments_is_found_if_the_loss_does_not_improve() -> None:
    signals = {
        "grad_norm": late("grad_norm", 2000, AT + 3, AT + 4),
        "effective_lr": late("effective_lr", 0.05, AT + 10),
    }
    finding = sure(**signals, loss=np.full(N, 30.0))
    assert (finding.cause, finding.onset_step, finding.detected_step) == ("bad_batch", AT + 3, AT + 50)
    assert {0.05, 0.0025} <= set(numbers(finding.advice))
    assert found(**signals, loss=30 * np.exp(-np.arange(N) / 300)) is None


def test_a_batch_does_not_explain_weights_that_grew_more_than_adam_moves_them() -> None:
    spike = {"grad_norm": late("grad_norm", 2000, AT + 1, AT + 2), "loss": late("loss", 10)}
    assert sure(**spike).cause == "bad_batch"
    assert sure(**spike, weight_norm=late("weight_norm", 100)).cause == "drift"


def test_what_filled_the_second_moments_of_a_memorized_training_does_no_harm() -> None:
    poisoned = {"grad_norm": late("grad_norm", 50, AT, AT + 1), "effective_lr": late("effective_lr", 0.2)}
    loss = np.full(N, 20.0)
    assert found(loss=loss, **poisoned) is not None
    loss[AT // 2 :] = 1e-3
    assert found(loss=loss, **poisoned) is None


def test_a_spike_that_leaves_nothing_behind_is_no_explosion() -> None:
    assert found(grad_norm=late("grad_norm", 2000, AT, AT + 1)) is None
    assert found(grad_norm=late("grad_norm", 2000, AT, AT + 1), loss=late("loss", 30, AT, AT + 1)) is None


def test_weights_that_grow_without_updates_are_drift() -> None:
    grown = np.r_[np.full(AT // 10, 20.0), 20 * 1.4 ** np.arange(1, (N - AT) // 10 + 1)]
    finding = sure(weight_norm=grown)
    assert (finding.cause, finding.signal) == ("drift", "weight_norm")
    assert AT - 10 < finding.onset_step <= AT
    before, after, update = numbers(finding.advice)
    assert (before, update) == pytest.approx((20, 0.005))
    assert after == pytest.approx(finding.value, rel=0.01)


def test_a_gradient_with_the_wrong_sign_is_drift() -> None:
    loss = training()["loss"].copy()
    loss[AT:] += 3 * np.arange(N - AT)
    finding = sure(loss=loss)
    assert (finding.cause, finding.signal) == ("drift", "loss")
    assert AT <= finding.onset_step <= AT + 30
    assert numbers(finding.advice) == [0.005]


def test_a_loss_that_leaps_with_the_data_and_comes_down_again_is_no_explosion() -> None:
    loss = training()["loss"].copy()
    loss[AT:] += 60 * np.exp(-np.arange(N - AT) / 15)
    assert found(loss=loss) is None


def test_norms_that_are_large_but_usual_are_no_explosion() -> None:
    assert found(grad_norm=200 * noise(0.3, 1)) is None


def test_norms_that_grow_while_the_loss_falls_are_no_explosion() -> None:
    assert found(grad_norm=np.linspace(1, 50, N), loss=np.linspace(80, 10, N)) is None


def test_lasting_growth_is_found_from_the_loss_and_the_norm_alone() -> None:
    loss, norms = training()["loss"].copy(), late("grad_norm", 50, 120)
    loss[120:] += 30
    finding = exploded(table(loss=loss, grad_norm=norms), NOTHING)
    assert finding is not None
    assert finding.onset_step == 120
    assert finding.detected_step <= 165
    assert finding.cause == "unknown"
    usual, value = numbers(finding.advice)
    assert value > 1.5 * usual


def test_a_loss_that_may_be_negative_is_not_compared_by_size() -> None:
    rng = np.random.default_rng(0)
    for level in (-1000.0, -1.0, 0.0):
        assert exploded(table(loss=level + rng.normal(size=N)), NOTHING) is None
        assert exploded(table(loss=level - np.linspace(0, 100, N) + rng.normal(size=N)), NOTHING) is None


def test_the_norms_of_a_negative_loss_are_still_judged() -> None:
    rng = np.random.default_rng(0)
    finding = exploded(table(loss=-50 + rng.normal(size=N), grad_norm=late("grad_norm", 50)), NOTHING)
    assert finding is not None
    assert (finding.signal, finding.onset_step) == ("grad_norm", AT)


def test_a_gradient_that_was_zero_is_nothing_to_compare_with() -> None:
    norms = np.where(np.arange(N) < AT, 0.0, 5.0)
    signals = training(grad_norm=norms, loss=late("loss", 4), effective_lr=late("effective_lr", 0.05))
    finding = exploded(table(**signals), NOTHING)
    assert finding is None or finding.cause != "bad_batch"


def test_a_loss_that_came_back_has_recovered() -> None:
    calm, bad = training(), late("loss", 5, 150, 200)
    gone, lasting = table(**(calm | {"loss": bad})), table(**(calm | {"loss": late("loss", 5, 150)}))
    finding = sure(loss=bad, update_ratio=late("update_ratio", 16, 150, 200))
    assert recovered(gone, finding)
    assert not recovered(lasting, finding)


def test_a_rate_that_explodes_in_the_first_steps_of_a_warm_up_is_named_before_an_update_is_measured() -> None:
    """At step 0 the rate is 0 and so is the update, which is measured at each 10th step."""
    finding = exploded(
        table(
            loss=np.array([92, 92, 1500, 9.4e4, 2.5e5, 4.2e5, 9.4e5, 2.4e6, 3.1e6, 5.7e6]),
            grad_norm=np.array([26, 26, 1e6, 2e5, 2.7e4, 3.3e5, 3.8e3, 4.8e4, 6.7e3, 1.2e4]),
            lr=20 * np.arange(10.0),
            update_ratio=np.zeros(1),
        ),
        NOTHING,
    )
    assert finding is not None
    assert finding.cause == "rate_too_high"


def test_a_loss_that_leaps_in_the_second_step_began_at_the_first() -> None:
    """The median of the first losses is already that of the explosion."""
    leap = [7.9, 19, 14, 89, 116, 155, 88, 67, 65, 75, 84, 70, 89, 86, 90, 93, 82, 86, 89, 83]
    signals = table(loss=np.array([*leap, *np.linspace(80, 8, 40)]), lr=np.full(60, 0.6), update_ratio=np.full(6, 0.3))
    finding = exploded(signals, NOTHING)
    assert finding is not None
    assert finding.cause == "rate_too_high"
    assert finding.detected_step < 20


def test_a_loss_that_gets_another_part_and_comes_down_at_once_is_no_explosion() -> None:
    part = np.where(np.arange(N) >= AT, 600 * np.exp(-(np.arange(N) - AT) / 12), 0)
    assert found(loss=training()["loss"] + part) is None
    assert sure(loss=training()["loss"] + np.where(np.arange(N) >= AT, 600, 0)).onset_step == AT


def test_a_gradient_that_was_usual_before_it_died_is_no_spike() -> None:
    norms = training()["grad_norm"] * np.where((np.arange(N) > 100) & (np.arange(N) < AT), 1e-12, 1)
    finding = sure(grad_norm=norms, loss=late("loss", 8))
    assert finding.cause != "bad_batch"


def test_a_gradient_is_no_spike_if_the_loss_had_grown_for_long() -> None:
    """It rises too slowly to be seen in the last readings."""
    growth = np.exp(np.clip(np.arange(N) - 60, 0, None) / 35)
    spike = late("grad_norm", 100, 240, 241)
    finding = sure(loss=0.05 * training()["loss"] * growth, grad_norm=spike)
    assert finding.cause != "bad_batch"
