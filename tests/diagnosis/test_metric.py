"""The error rate of a log: its name, and fractions or percentages."""

import pytest

from stability.diagnosis.metric import is_in_percent, metric_name


@pytest.mark.parametrize(
    ("rates", "percent"),
    [
        ([95, 40, 5, 0.8], True),
        ([4.5, 3.2, 2.9], True),
        ([float("nan"), 100], True),
        ([1.0, 0.5, 0.1], False),
        ([1.0, 2.4, 3.1, 0.8], False),
        ([1.0, 2.4, 3.1, 3.1], False),
        ([0.0, -3.0, -40.0], False),
        ([], False),
    ],
)
def test_percent_is_judged_by_all_rates(rates: list[float], percent: bool) -> None:
    assert is_in_percent(rates) == percent


@pytest.mark.parametrize(
    ("loss", "percent"),
    [([17.6, 17.5, 17.6], False), ([17.6, 9.0, 4.0, 3.0, 3.0, 2.0], True), ([], True)],
)
def test_rates_above_1_with_a_loss_that_has_not_fallen_are_those_of_a_random_decoder(
    loss: list[float], percent: bool
) -> None:
    assert is_in_percent([1.7, 1.66], loss) == percent


@pytest.mark.parametrize(("rates", "percent"), [([17.8, 16.2, 12.7], True), ([1.9, 1.8, 1.7], False)])
def test_rates_that_are_all_far_above_1_are_percent_though_the_loss_has_fallen_only_somewhat(
    rates: list[float], percent: bool
) -> None:
    assert is_in_percent(rates, [0.55, 0.32, 0.3, 0.3]) == percent


def test_the_name_of_a_metric() -> None:
    titles = ("eval_wer", "val/CER", "WER (%)", "phone_error_rate", "error_rate", "per")
    assert [metric_name(title) for title in titles] == ["WER", "CER", "WER", "PER", "PER", "PER"]
