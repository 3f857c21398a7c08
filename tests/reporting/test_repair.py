"""The page of a repair, for the ways in which one may end."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stability.core.text import plain
from stability.reporting.repair import write_repair


def change(text: str, *rates: float, outcome: str = "stable") -> dict[str, Any]:
    """A change as `repair.json` has it, with a trial for each error rate; NaN for one that was not measured."""
    trials = [
        {"seed": s, "outcome": outcome, "cause": None, "failed": outcome != "stable", "error_rate": r, "steps": 10}
        | {"folder": f"{text} {s}"}
        for s, r in enumerate(rates)
    ]
    overrides = ["study=mend", "optimizer=adam_default", *([text] if text else [])]
    return {"change": text, "roles": ["learning rate"], "reason": "it is <small>", "overrides": overrides} | {
        "settings": {},
        "trials": trials,
    }


def written(folder: Path, **changes: Any) -> str:
    """The page of a repair that tried two changes which were healthy at first, with some changes."""
    tried = [change("", math.nan, outcome="exploded"), change("lr=0.1", 0.3, 0.4, 0.5), change("eps=0.1", 0.2)]
    found = {
        "failed": "lr=1",
        "overrides": [],
        "verdict": {"outcome": "exploded", "cause": "rate_too_high", "evidence": {"loss": 25.79106}, "advice": "Slow."},
        "problem": "",
        "finished": True,
        "seeds": 2,
        "first_seed": 0,
        "answer": tried[1],
        "next_best": tried[2],
        "tried": tried,
        "invalid": [{"change": "eps=-1", "reason": "it has to be 0 or more"}],
        "not_tried": ["lr=0.01"],
        "cost": {"trials": 5, "steps": 50, "whole": 10},
    } | changes
    (folder / "repair.json").write_text(json.dumps(plain(found)))
    return write_repair(folder).page.read_text()


def test_the_answer_is_compared_with_all_other_changes_that_were_healthy(tmp_path: Path) -> None:
    page = written(tmp_path)
    costs = page[page.index("<h2>What it costs</h2>") : page.index("<h2>What was tried</h2>")]
    assert costs.index('<th scope="row">eps=0.1</th>') < costs.index('<tr class="answer"><th scope="row">lr=0.1</th>')
    assert "0.4</td><td" in costs, "the mean of the answer's seeds"
    assert "3 of 3" in costs
    assert "FAILED" not in costs


def test_what_was_tried_and_what_was_not_is_told_with_commands(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert "<pre>python -m stability.train optimizer=adam_default lr=0.1</pre>" in page, "the command to train with it"
    assert "python -m stability.train optimizer=adam_default lr=0.1 seed=0 study=again" in page, "to repeat a trial"
    assert "It is &lt;small&gt;" in page
    assert "25.79\n  Slow." in page, "what is wrong with FAILED"
    assert "1 further change not tried" in page
    assert "it has to be 0 or more" in page


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"answer": None, "next_best": None}, "None of 2 changes mends it"),
        ({"answer": None, "next_best": None, "finished": False}, "It was stopped after 5 trials"),
        ({"answer": None, "next_best": None, "tried": [], "verdict": None}, "before FAILED had failed"),
        ({"answer": None, "problem": "FAILED is healthy."}, "FAILED is healthy."),
    ],
)
def test_the_page_says_so_if_nothing_was_mended(tmp_path: Path, changes: dict[str, Any], first: str) -> None:
    page = written(tmp_path, **changes)
    answer = page[page.index('<section class="answer"') : page.index("</section>")]
    assert first in answer
    assert "Train with the change" not in page
