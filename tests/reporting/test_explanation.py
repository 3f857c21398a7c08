"""The answer of an explanation in two parts, for each way in which it may end."""

from typing import Any

import pytest

from stability.reporting.explanation import answer, mixture_text

NAMES = ("optimizer.epsilon", "schedule.lr_max", "aug.white_noise_std")


def trials(failed: int, healthy: int, outcome: str = "exploded") -> list[dict[str, Any]]:
    ended = [(True, outcome)] * failed + [(False, "stable")] * healthy
    return [{"seed": s, "outcome": o, "failed": f, "steps": 10} for s, (f, o) in enumerate(ended)]


def found(*, failed: tuple[int, int] = (9, 0), healthy: tuple[int, int] = (0, 9), **changes: Any) -> dict[str, Any]:
    """What `explanation.json` says of a confirmed explanation with one cause, with some changes."""
    roles = {"optimizer.epsilon": "none", "schedule.lr_max": "alone", "aug.white_noise_std": "none"}
    return {
        "finished": True,
        "problem": "",
        "confirmed": True,
        "complete": True,
        "sufficient": [["schedule.lr_max"]],
        "cures": [["schedule.lr_max"]],
        "contradiction": [],
        "differences": [{"name": n, "failed": 2.0, "healthy": 1e-3, "role": r} for n, r in roles.items()],
        "flips": [{"name": "schedule.lr_max", "healthy": 0.1, "fails": 0.2, "holds": True}],
        "claims": [],
        "mixtures": [
            {"failed": sorted(NAMES), "between": None, "trials": trials(*failed)},
            {"failed": [], "between": None, "trials": trials(*healthy)},
        ],
        "cost": {"trials": 18, "steps": 180},
    } | changes


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        (
            {},
            "The cause is lr: HEALTHY fails with FAILED's 2 in place of 0.001, and flips between 0.1 and 0.2.",
            "FAILED is healthy with HEALTHY's lr 0.001; epsilon and noise have no part. The chance that any of "
            "this is wrong is at most 5 %; it took 18 trials and 180 steps.",
        ),
        (
            {"sufficient": [["optimizer.epsilon", "schedule.lr_max"]], "failed": (6, 3)},
            "The cause is epsilon and lr together: HEALTHY fails with FAILED's epsilon 2 and lr 2, and not with fewer "
            "of them. FAILED failed in 6 of 9 trials and HEALTHY failed in 0 of 9 trials. Here, to fail means to "
            "fail in more of the seeds than what is healthy.",
            "is wrong is at most 5 %",
        ),
        (
            {"sufficient": [["schedule.lr_max"], ["aug.white_noise_std"]]},
            "Each of 2 causes is enough: HEALTHY fails with FAILED's lr 2; or noise 2.",
            "is wrong is at most 5 %",
        ),
        (
            {"confirmed": False, "finished": False, "sufficient": []},
            "Not decided: FAILED failed in 9 of 9 trials and HEALTHY failed in 0 of 9 trials.",
            "It was stopped after 18 trials and 180 steps; the same command goes on from there",
        ),
        (
            {"confirmed": False, "finished": False},
            "Not decided: the cause may be FAILED's lr 2, which is not confirmed.",
            "goes on from there",
        ),
        (
            {"confirmed": False, "complete": False},
            "Not decided: the cause may be FAILED's lr 2",
            "because some mixtures could not be trained.",
        ),
        (
            {"confirmed": False, "contradiction": [["schedule.lr_max"], ["optimizer.epsilon"]]},
            "There is no simple cause: HEALTHY fails with FAILED's lr, but FAILED is healthy with HEALTHY's epsilon",
            "Some values of FAILED protect it",
        ),
        (
            {"problem": "HEALTHY fails too: it does.", "healthy": (9, 0)},
            "HEALTHY fails too: it does.",
            "Outcomes of FAILED: 9 exploded; of HEALTHY: 9 exploded. So nothing can be explained",
        ),
        (
            {"confirmed": False, "finished": False, "sufficient": [], "mixtures": []},
            "Not decided: no trial has ended.",
            "the same command goes on from there",
        ),
    ],
)
def test_the_answer_says_what_is_known_and_what_is_not(changes: dict[str, Any], first: str, second: str) -> None:
    sentences = answer(found(**changes))
    assert sentences[0].startswith(first)
    assert second in sentences[1]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_mixture_that_fails_by_chance_is_told_with_how_often_though_the_two_fail_always_and_never(
    confirmed: bool,
) -> None:
    mixture = {"failed": ["schedule.lr_max"], "between": None}
    content = found(confirmed=confirmed, claims=[{"mixture": mixture, "fails": True, "holds": True}])
    content["mixtures"].append(mixture | {"trials": trials(10, 9)})
    assert (
        ". FAILED failed in 9 of 9 trials, HEALTHY failed in 0 of 9 trials and HEALTHY with FAILED's lr failed in 10 "
        "of 19 trials. Here, to fail means to fail in more of the seeds than what is healthy."
    ) in answer(content)[0]
    content["mixtures"][-1]["trials"] = trials(19, 0)
    assert "Here, to fail" not in answer(content)[0]


def test_a_side_whose_trials_learned_too_late_is_told_to_make_more_steps() -> None:
    content = found(problem="HEALTHY fails too.")
    content["mixtures"][1]["trials"] = trials(4, 0, "undecided")
    assert "give more steps" in answer(content)[1]


@pytest.mark.parametrize(
    ("failed", "between", "text"),
    [
        ([], None, "HEALTHY"),
        (sorted(NAMES), None, "FAILED"),
        (["schedule.lr_max"], None, "HEALTHY with FAILED's lr"),
        (["schedule.lr_max", "optimizer.epsilon"], None, "FAILED with HEALTHY's noise"),
        ([], ["schedule.lr_max", 0.5], "HEALTHY with lr 0.5"),
        (["optimizer.epsilon"], ["schedule.lr_max", 0.5], "HEALTHY with lr 0.5 and FAILED's epsilon"),
    ],
)
def test_mixtures_are_named_by_what_they_have_of_the_other_side(
    failed: list[str], between: list[Any] | None, text: str
) -> None:
    assert mixture_text(found(), {"failed": failed, "between": between}) == text
