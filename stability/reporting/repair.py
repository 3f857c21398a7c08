"""What a repair has found: on the terminal, and as one HTML page. All is made of `repair.json`."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stability.core.files import REPAIR, short_path, write_atomically
from stability.core.text import counted, load_json
from stability.diagnosis.display import shown
from stability.diagnosis.outcomes import style_of
from stability.diagnosis.verdict import Verdict
from stability.reporting.html import render
from stability.reporting.recorded import common_overrides
from stability.reporting.tried import made_with, marks_of, signs, train_command

PAGE = "repair.html"

_REPAIR = ("python", "-m", "stability.repair")

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """A repair whose answer was written.

    Attributes:
        page: The HTML page.
        answer: The answer, in a few sentences.
    """

    page: Path
    answer: str


def write_repair(study: Path) -> Written:
    """Write the page of a repair into its folder, and print the answer and what was tried.

    Args:
        study: The folder, which holds `repair.json`.
    """
    found = load_json((study / REPAIR).read_bytes())
    told = sentences(found)
    train = train_command(found["answer"]["overrides"]) if found["answer"] else ""
    healthy = [one for one in found["tried"] if one["change"] and _first(one)["failed"] is False]
    content = {
        "title": study.resolve().name,
        "subject": "what mends the training",
        "about": _cost(found),
        "sentences": [" ".join(told[:2]), *told[2:]],
        "found": found,
        "train": train,
        "verdict": Verdict(**found["verdict"]) if found["verdict"] else None,
        "compared": [_compared_row(found, one) for one in sorted(healthy, key=lambda one: _rate([_first(one)]))],
        "rows": [_tried_row(found, one) for one in found["tried"]],
        "invalid": [{"what": one["change"], "reason": one["reason"]} for one in found["invalid"]],
        "command": shlex.join([*_REPAIR, found["failed"], f"--seeds={found['seeds']}", *common_overrides(study)]),
        "marks": marks_of(trial for one in found["tried"] for trial in one["trials"]),
        **made_with(),
    }
    write_atomically(study / PAGE, render("repair.html.j2", content))
    _print(found, " ".join(told), train, study)
    return Written(study / PAGE, " ".join(told))


def _print(found: Found, answer: str, train: str, study: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print("", shown(answer), sep="\n")
    tried = Table("tried", "outcome", "cost", box=None, header_style="dim", padding=(0, 2, 0, 1))
    for one in found["tried"]:
        tried.add_row(shown(one["change"] or "FAILED"), _outcomes(one["trials"]), _steps(one["trials"]))
    console.print(tried)
    if train:
        console.print(f"[dim]{'train':<10}[/]{shown(train)}")
    console.print(f"[dim]{'page':<10}[/]{shown(short_path(study / PAGE))}")


def sentences(found: Found) -> list[str]:
    """Return the answer in sentences.

    Args:
        found: The content of `repair.json`.
    """
    cost = _cost(found)
    if found["problem"]:
        return [found["problem"], f"This took {cost}."]
    verdict = found["verdict"]
    if not verdict:
        return [f"It was stopped after {cost}, before FAILED had failed.", _GO_ON]
    wrong = f"FAILED: {', '.join(filter(None, (verdict['outcome'], verdict['cause'])))}."
    if found["answer"]:
        return [wrong, *_mended(found), f"This took {cost}{_whole(found)}."]
    if not found["finished"]:
        return [wrong, f"It was stopped after {cost}, and no change is confirmed yet.", _GO_ON]
    changes = [one for one in found["tried"] if one["change"]]
    if not changes:
        return [wrong, "No setting that it has mends this.", verdict["advice"]]
    roles = sorted({role for one in changes for role in one["roles"]})
    return [
        wrong,
        f"None of {counted(len(changes), 'change')} mends it, so none of these alone is to blame: "
        f"{', '.join(roles)}. Look at the data, the model and the program.",
        f"This took {cost}.",
    ]


_GO_ON = "The same command with a larger budget goes on from there."


def _mended(found: Found) -> list[str]:
    """The change that mends it, and what it costs."""
    answer, best = found["answer"], found["next_best"]
    count, rate = len(answer["trials"]), _rate(answer["trials"])
    error_rate = "" if math.isnan(rate) else f", with a mean error rate of {rate:.3g}"
    told = [
        f"{answer['change']} mends it: it is healthy in {count} of {count} seeds, "
        f"{count - 1} of which were not used to choose it{error_rate}. ({_capital(answer['reason'])}.)"
    ]
    ours, theirs = (_rate(one["trials"][:1]) if one else math.nan for one in (answer, best))  # on the same seed
    if not math.isnan(ours + theirs):
        told.append(
            f"The best other change that was healthy, {best['change']}, had {theirs:.3g} on seed "
            f"{found['first_seed']}, where this one had {ours:.3g}."
        )
    return told


def _cost(found: Found) -> str:
    return f"{counted(found['cost']['trials'], 'trial')} and {counted(found['cost']['steps'], 'step')}"


def _first(one: Found) -> Found:
    """The trial of a change on the seed on which all are tried first."""
    first: Found = one["trials"][0]
    return first


def _compared_row(found: Found, one: Found) -> dict[str, Any]:
    first, mean = _rate([_first(one)]), _rate(one["trials"])
    return {
        "what": one["change"],
        "is_answer": one == found["answer"],
        "first": _rate_text(first),
        "mean": _rate_text(mean),
        "healthy": _healthy(one["trials"]),
    }


def _tried_row(found: Found, one: Found) -> dict[str, Any]:
    trials, first = one["trials"], found["first_seed"]
    return {
        "what": one["change"] or "FAILED",
        "is_answer": one == found["answer"],
        "reason": _capital(one["reason"]),
        "trials": signs(trials, lambda trial: bool(one["change"]) and trial["seed"] != first),
        "healthy": _healthy(trials),
        "steps": f"{sum(trial['steps'] for trial in trials):,}",
        "command": train_command(one["overrides"], f"seed={first}", "study=again"),
    }


def _healthy(trials: Sequence[Found]) -> str:
    return f"{sum(trial['failed'] is False for trial in trials)} of {len(trials)}"


def _rate_text(rate: float) -> str:
    return "not measured" if math.isnan(rate) else f"{rate:.3g}"


def _rate(trials: Sequence[Found]) -> float:
    rates = [float(one["error_rate"]) for one in trials]
    return sum(rates) / len(rates)


def _whole(found: Found) -> str:
    """The steps in whole trainings."""
    return f", as many steps as {found['cost']['steps'] / found['cost']['whole']:.1f} whole trainings"


def _outcomes(trials: Sequence[Found]) -> str:
    return " ".join(f"[{style_of(one['outcome'])}]{one['outcome']}[/]" for one in trials)


def _steps(trials: Sequence[Found]) -> str:
    return counted(sum(one["steps"] for one in trials), "step")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
