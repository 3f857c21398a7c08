"""What an explanation has found: in two parts, as a table on the terminal, and as one HTML page.

All is made of `explanation.json`, so it can be written again at any time.
"""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stability.analysis.beliefs import SEEDS_APART
from stability.analysis.explanation import ALPHA
from stability.analysis.levels import level_text
from stability.config.names import short_name
from stability.core.files import EXPLANATION, short_path, write_atomically
from stability.core.text import counted, listed, load_json
from stability.diagnosis.display import shown
from stability.reporting.html import render
from stability.reporting.recorded import typed
from stability.reporting.tried import made_with, marks_of, signs, train_command

PAGE = "explanation.html"

_ROLES = {
    "alone": "alone a cause",
    "together": "a cause only together with others",
    "none": "no part",
    "undecided": "not decided",
}
_OR = "; or "
_COLUMN, _ROW, _TOP = 34, 24, 96  # of the picture, in its own units


@dataclass(frozen=True)
class Written:
    """An explanation that was written.

    Attributes:
        page: The HTML page.
        sentences: The answer, in two parts of a few sentences each.
    """

    page: Path
    sentences: tuple[str, str]


def write_explanation(study: Path) -> Written:
    """Write the page of an explanation into its folder, and print the answer and the differences with their roles.

    Args:
        study: The folder, which holds `explanation.json`.
    """
    found = load_json((study / EXPLANATION).read_bytes())
    sentences = answer(found)
    rows = [_difference_row(found, one) for one in found["differences"]]
    content = {
        "title": study.resolve().name,
        "subject": "why training fails",
        "about": f"{_cost(found)} · {counted(len(found['differences']), 'difference')}",
        "sentences": sentences,
        "found": found,
        "alpha": f"{100 * ALPHA:g} %",
        "rows": rows,
        "claims": [_claim_row(found, claim) for claim in found["claims"]],
        "picture": _picture(found),
        "mixtures": [_tried_row(found, mixture) for mixture in found["mixtures"]],
        "invalid": [{"what": mixture_text(found, one), "reason": one["reason"]} for one in found["invalid"]],
        "command": _command(found),
        "marks": marks_of(trial for mixture in found["mixtures"] for trial in mixture["trials"]),
        **made_with(),
    }
    write_atomically(study / PAGE, render("explanation.html.j2", content))
    _print(found, sentences, rows, study)
    return Written(study / PAGE, sentences)


def answer(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return the answer in two parts: the cause, and what else is known.

    Args:
        found: The content of `explanation.json`.
    """
    if found["problem"]:
        return found["problem"], f"{_sides_outcomes(found)} So nothing can be explained; this took {_cost(found)}."
    if found["confirmed"]:
        cures = _OR.join(_values(found, names, "healthy") for names in found["cures"])
        none = [short_name(one["name"]) for one in found["differences"] if one["role"] == "none"]
        rest = f"; {listed(none)} {'has' if len(none) == 1 else 'have'} no part" if none else ""
        holds = f"The chance that any of this is wrong is at most {100 * ALPHA:g} %; it took {_cost(found)}"
        return f"{_cause(found)}{_by_chance(found)}.", f"FAILED is healthy with HEALTHY's {cures}{rest}. {holds}."
    if found["contradiction"]:
        fails, healthy = (_names(names) for names in found["contradiction"])
        return (
            f"There is no simple cause: HEALTHY fails with FAILED's {fails}, but FAILED is healthy with HEALTHY's "
            f"{healthy}, although it keeps FAILED's {fails}.",
            f"Some values of FAILED protect it from others, so no set of causes is claimed; this took {_cost(found)}.",
        )
    made = [
        _values(found, claim["mixture"]["failed"], "failed") for claim in found["claims"] if _is_cause(found, claim)
    ]
    if made:
        first = f"HEALTHY fails with FAILED's {_OR.join(made)}; whether that is all is not decided{_by_chance(found)}."
    elif found["sufficient"]:
        likely = _OR.join(_values(found, names, "failed") for names in found["sufficient"])
        first = f"Not decided: the cause may be FAILED's {likely}, which is not confirmed."
    else:
        first = f"Not decided: {_sides_text(found) if found['mixtures'] else 'no trial has ended'}."
    if not found["finished"]:
        goes_on = "the same command goes on from there, with a larger budget if that was spent"
        return first, f"It was stopped after {_cost(found)}; {goes_on}."
    left = (
        "some mixtures could not be trained"
        if not found["complete"]
        else "more seeds than are sensible would be needed"
    )
    return first, f"It ends here, after {_cost(found)}, because {left}."


def mixture_text(found: Mapping[str, Any], mixture: Mapping[str, Any]) -> str:
    """Return the name of a mixture: FAILED, HEALTHY, or one of them with some values of the other."""
    names, every = mixture["failed"], [one["name"] for one in found["differences"]]
    between = mixture["between"]
    if between:
        others = f" and FAILED's {_names(names)}" if names else ""
        return f"HEALTHY with {short_name(between[0])} {level_text(between[1])}{others}"
    if not names or len(names) == len(every):
        return "FAILED" if names else "HEALTHY"
    if 2 * len(names) <= len(every):
        return f"HEALTHY with FAILED's {_names(names)}"
    return f"FAILED with HEALTHY's {_names(name for name in every if name not in names)}"


def _cause(found: Mapping[str, Any]) -> str:
    """The sentence on the sufficient sets, without its full stop."""
    causes = [_values(found, names, "failed") for names in found["sufficient"]]
    if len(causes) > 1:
        return f"Each of {len(causes)} causes is enough: HEALTHY fails with FAILED's {_OR.join(causes)}"
    (names,) = found["sufficient"]
    if len(names) == 1:
        one = next(one for one in found["differences"] if one["name"] == names[0])
        return (
            f"The cause is {short_name(names[0])}: HEALTHY fails with FAILED's {level_text(one['failed'])} in place of "
            f"{level_text(one['healthy'])}{_flip_text(found, names[0], ', and flips ')}"
        )
    return f"The cause is {_names(names)} together: HEALTHY fails with FAILED's {causes[0]}, and not with fewer of them"


def _by_chance(found: Mapping[str, Any]) -> str:
    """Sentences on how often the two failed, and each mixture of which some seeds did; empty if all ended alike."""
    failed, healthy = ([trial["failed"] for trial in own] for own in _sides_trials(found).values())
    own = [claim["mixture"] for claim in found["claims"]]
    between = [mixture for mixture in own if 0 < len(mixture["failed"]) < len(found["differences"])]
    tried = {mixture_text(found, mixture): _trials(found, mixture) for mixture in between}
    mixed = {name: trials for name, trials in tried.items() if {True, False} <= {trial["failed"] for trial in trials}}
    if not mixed and False not in failed and True not in healthy:
        return ""
    means = "Here, to fail means to fail in more of the seeds than what is healthy"
    return f". {_failures_text(_sides_trials(found) | mixed)}. {means}"


def _is_cause(found: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    """Whether a claim is made that says that HEALTHY fails with some of FAILED's values, but not all."""
    return claim["holds"] and claim["fails"] and len(claim["mixture"]["failed"]) < len(found["differences"])


def _values(found: Mapping[str, Any], names: Sequence[str], side: str) -> str:
    """`lr 20 and epsilon 1e-8`: differences with the values of one side."""
    values = {one["name"]: level_text(one[side]) for one in found["differences"]}
    return listed(f"{short_name(name)} {values[name]}" for name in names)


def _names(names: Any) -> str:
    return listed(map(short_name, names))


def _cost(found: Mapping[str, Any]) -> str:
    return f"{counted(found['cost']['trials'], 'trial')} and {counted(found['cost']['steps'], 'step')}"


def _flip_text(found: Mapping[str, Any], name: str, before: str = "") -> str:
    """Between which values a number flips; empty if it was not looked for."""
    for flip in found["flips"]:
        if flip["name"] == name:
            low, high = sorted((flip["healthy"], flip["fails"]))
            return (
                f"{before}between {level_text(low)} and {level_text(high)}{'' if flip['holds'] else ' (not confirmed)'}"
            )
    return ""


def _difference_row(found: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    role = _ROLES[one["role"]]
    if one["together_with"]:
        role = f"a cause only together with {_OR.join(_names(names) for names in one['together_with'])}"
    return {
        "name": short_name(one["name"]),
        "dotted": one["name"],
        "failed": level_text(one["failed"]),
        "healthy": level_text(one["healthy"]),
        "kind": one["role"],
        "role": role,
        "flip": _flip_text(found, one["name"]),
    }


def _claim_row(found: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    mixture = mixture_text(found, claim["mixture"])
    fresh = [t for t in _trials(found, claim["mixture"]) if _is_fresh(t) and t["failed"] == claim["fails"]]
    return {
        "text": f"{mixture} {'fails' if claim['fails'] else 'is healthy'}",
        "holds": claim["holds"],
        "counts": f"{claim['failures']} of {claim['trials']} failed",
        "e": _e_text(float(claim["e"])),
        "command": _train_command(found, claim["mixture"], fresh[-1]["seed"]) if fresh else "",
    }


def _e_text(e: float) -> str:
    return f"{e:.2g}" if e < 100 else f"{e:,.0f}" if e < 1e6 else f"{e:.0e}".replace("e+0", "e")


def _trials(found: Mapping[str, Any], mixture: Mapping[str, Any]) -> list[dict[str, Any]]:
    for one in found["mixtures"]:
        if (one["failed"], one["between"]) == (mixture["failed"], mixture["between"]):
            trials: list[dict[str, Any]] = one["trials"]
            return trials
    return []


def _is_fresh(trial: Mapping[str, Any]) -> bool:
    """Whether a trial's seed is one that tests what was found."""
    return bool(trial["seed"] // SEEDS_APART % 2)


def _train_command(found: Mapping[str, Any], mixture: Mapping[str, Any], seed: int) -> str:
    """The command that repeats a trial, in another study."""
    for one in found["mixtures"]:
        if (one["failed"], one["between"]) == (mixture["failed"], mixture["between"]):
            return train_command(one["overrides"], f"seed={seed}", "study=again")
    return ""


def _command(found: Mapping[str, Any]) -> str:
    statement = found["statement"]
    sides = [statement[side]["given"] for side in ("failed", "healthy")]
    return shlex.join(["python", "-m", "stability.explain", *sides, *typed(found["arguments"])])


def _tried_row(found: Mapping[str, Any], mixture: Mapping[str, Any]) -> dict[str, Any]:
    trials = mixture["trials"]
    ended = [trial for trial in trials if trial["failed"] is not None]
    return {
        "what": mixture_text(found, mixture),
        "has": {name: name in mixture["failed"] for name in (one["name"] for one in found["differences"])},
        "between": mixture["between"],
        "trials": signs(trials, _is_fresh),
        "failures": sum(trial["failed"] for trial in ended),
        "ended": len(ended),
        "steps": sum(trial["steps"] for trial in trials),
        "command": _train_command(found, mixture, trials[0]["seed"]),
    }


def _sides_trials(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The trials of the two."""
    every = sorted(one["name"] for one in found["differences"])
    sides = {"FAILED": every, "HEALTHY": []}
    return {name: _trials(found, {"failed": failed, "between": None}) for name, failed in sides.items()}


def _sides_text(found: Mapping[str, Any]) -> str:
    """How often the two failed."""
    return _failures_text(_sides_trials(found))


def _failures_text(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How often some mixtures failed, each with its name."""
    texts = []
    for name, trials in tried.items():
        ended = [trial["failed"] for trial in trials if trial["failed"] is not None]
        texts.append(f"{name} failed in {sum(ended)} of {counted(len(ended), 'trial')}")
    return listed(texts)


def _sides_outcomes(found: Mapping[str, Any]) -> str:
    """How the trials of the two ended."""
    counts = {name: Counter(trial["outcome"] for trial in own) for name, own in _sides_trials(found).items()}
    texts = [
        f"of {name}: {listed(f'{count} {outcome}' for outcome, count in own.items())}"
        for name, own in counts.items()
        if own
    ]
    undecided = any("undecided" in own for own in counts.values())
    more = " A trial that is undecided had not learned when its steps ended: give more steps." if undecided else ""
    return f"Outcomes {'; '.join(texts)}.{more}"


def _picture(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was tried: a column for each mixture, with its share of failures above and FAILED's values below."""
    names = [one["name"] for one in found["differences"]]
    parts = {name for names in found["sufficient"] for name in names}
    names.sort(key=lambda name: name not in parts)
    left = 16 + 8 * max((len(short_name(name)) for name in names), default=0)
    columns = []
    whole = [one for one in found["mixtures"] if one["between"] is None]
    for place, mixture in enumerate(sorted(whole, key=lambda one: (len(one["failed"]), one["failed"]))):
        row = _tried_row(found, mixture)
        share = row["failures"] / row["ended"] if row["ended"] else math.nan
        columns.append(
            {
                "x": left + _COLUMN * place + _COLUMN / 2,
                "bar": 0 if math.isnan(share) else 60 * share,
                "text": f"{row['failures']}/{row['ended']}",
                "title": f"{row['what']}: {row['failures']} of {row['ended']} failed",
                "dots": [{"y": _TOP + _ROW * i + _ROW / 2, "has": row["has"][name]} for i, name in enumerate(names)],
            }
        )
    return {
        "columns": columns,
        "labels": [{"y": _TOP + _ROW * i + _ROW / 2, "text": short_name(name)} for i, name in enumerate(names)],
        "left": left,
        "base": _TOP - 12,
        "width": left + _COLUMN * len(columns) + 12,
        "height": _TOP + _ROW * len(names) + 4,
    }


def _print(found: Mapping[str, Any], sentences: Sequence[str], rows: Sequence[Mapping[str, Any]], study: Path) -> None:
    console = Console(highlight=False, soft_wrap=True, width=500)
    table = Table("difference", "FAILED", "HEALTHY", "part", "flips", box=None, header_style="dim")
    for row in rows:
        table.add_row(*(shown(row[name]) for name in ("name", "failed", "healthy", "role", "flip")))
    console.print("", *map(shown, sentences), sep="\n")
    console.print(table)
    for one in found["invalid"]:
        console.print(f"passed over: {shown(mixture_text(found, one))} is invalid: {shown(one['reason'])}")
    if crashed := sum(trial["failed"] is None for mixture in found["mixtures"] for trial in mixture["trials"]):
        verb = "is not counted as a failure" if crashed == 1 else "are not counted as failures"
        console.print(f"{counted(crashed, 'trial')} crashed, which {verb} of training.")
    console.print(f"[dim]{'page':<10}[/]{shown(short_path(study / PAGE))}")
