"""The tables of a report: their rows, with every number written as readers see it."""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stability.analysis.compare import Difference, compare
from stability.analysis.effects import Effect, Response
from stability.analysis.levels import is_number, level_text
from stability.analysis.matching import main_factors
from stability.analysis.rulings import Ruling
from stability.analysis.settings import place_of
from stability.analysis.trial import Trial, Trials, read_record
from stability.config.names import short_name
from stability.core.errors import StabilityError
from stability.core.files import FIGURE, VERDICT
from stability.core.text import counted, csv_cell
from stability.diagnosis.outcomes import MARKS
from stability.reporting.wording import changed_text, effect_text, names_text, p_text, ratio_text, size_text
from stability.tracking.state import read_state
from stability.tracking.store import is_sqlite

_LOCAL_MLFLOW = "http://127.0.0.1:5000"
_MOST_TRIALS, _MOST_LEFT_OUT, _MOST_EFFECTS = 300, 20, 120  # rows


def effect_rows(found: Sequence[Effect], responses: Sequence[Response]) -> list[dict[str, Any]]:
    """Make a row for each change of a factor that has matched trials, with its effects on these responses."""
    changes: dict[str, dict[str, Effect]] = defaultdict(dict)
    for effect in found:
        if effect.matches:
            changes[changed_text(effect)][effect.response] = effect
    return [_effect_row(own, responses) for own in [*changes.values()][:_MOST_EFFECTS]]


def ruling_rows(rulings: Sequence[Ruling]) -> list[dict[str, Any]]:
    """Make a row for each ruling on trials that were run: the confirmed claims first, then the refuted ones."""
    order = ("confirmed", "refuted", "inconclusive")
    return [
        {
            "ruling": r,
            "size": _ruling_text(r),
            "p": p_text(r.corrected),
            "tied": names_text(r.tied),
            "matches": _matches_text(r),
        }
        for r in sorted(rulings, key=lambda r: order.index(r.ruling))
        if r.seeds
    ]


def pair_table(trials: Trials, pair: Sequence[Trial], responses: Sequence[Response]) -> dict[str, Any]:
    """Describe two trials, and the values in which they differ, with their effects on these responses."""
    return {
        "trials": [
            _trial_row(trial, {}) | {"advice": verdict.advice if (verdict := read_record(trial).verdict) else ""}
            for trial in pair
        ],
        "differences": [_difference_row(difference, responses) for difference in compare(trials, *pair)],
    }


def trial_rows(trials: Trials, page: Path) -> dict[str, Any]:
    """Make a row for each of the first 300 trials, failed ones first; and list the folders left out by their reason.

    Args:
        trials: The trials.
        page: Where the page is written, for the links to the trials' files.
    """
    factors = main_factors(trials)
    rows = sorted(trials.trials, key=lambda trial: (trial.healthy, place_of(trial).parent.name, *trial.place))
    shown = [_trial_row(trial, factors) | {"links": _links(trial, page)} for trial in rows[:_MOST_TRIALS]]
    return {
        "rows": shown,
        "local_mlflow": any(address.startswith(_LOCAL_MLFLOW) for row in shown for _, address in row["links"]),
        "columns": [short_name(name) for name in factors],
        "left_out": left_out_rows(trials)[:_MOST_LEFT_OUT],
        "left_out_total": len(trials.left_out),
    }


def left_out_rows(trials: Trials) -> list[tuple[str, int, str]]:
    """Return for each reason why runs were left out: the name of the first such run, their number, and the reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for folder, reason in trials.left_out:
        by_reason[reason].append(folder.name)
    return [(names[0], len(names), reason) for reason, names in by_reason.items()]


def trials_csv(trials: Trials) -> str:
    """Write a CSV file of all trials and their responses, for other programs. Each column has a name of its own."""
    factors = main_factors(trials)
    measured = ("outcome", "cause", "per", "steps", "censored", "norm_spike", "largest_norm", "phonemes", "loss")
    # `steps` is also a setting. A factor whose short name is one of these, such as the loss, gets its dotted name.
    others = ["seed", *("plateau_steps" if name == "steps" else name for name in measured), "name"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [name if short_name(name) in others else short_name(name) for name in factors]
    table.writerow([*(f"setting {name}" if name in others else name for name in names), *others])
    for trial in sorted(trials.trials, key=lambda trial: trial.name):
        values = (getattr(trial, name) for name in measured)
        levels = (level_text(trial.factors.get(name)) for name in factors)
        cells = [*levels, trial.seed, *(f"{v:.6g}" if isinstance(v, float) else v for v in values), trial.name]
        table.writerow(map(csv_cell, cells))
    return text.getvalue()


def _links(trial: Trial, page: Path) -> list[tuple[str, str]]:
    """Return the title and address of a trial's figure, of its verdict, and of its run in MLflow, as far as they exist.

    A store in a file has a page only while `mlflow ui` shows it, at the usual address.
    """
    if trial.page:
        return [("MLflow", trial.page)]
    if (folder := trial.folder) is None:
        return []
    files = {"figure": FIGURE, "verdict": VERDICT}
    start = Path(os.path.relpath(folder, page.parent.resolve()))
    if folder.is_file():
        return [("log", quote(str(start)))]
    found = [(title, quote(str(start / name))) for title, name in files.items() if (folder / name).is_file()]
    try:
        state = read_state(folder)
    except StabilityError:  # damaged: the trial counts all the same
        return found
    if state is None or not state.page.startswith("#/"):
        return found
    store = _LOCAL_MLFLOW if is_sqlite(state.uri) else state.uri
    return [*found, ("MLflow", f"{store}/{state.page}")] if store.startswith(("http://", "https://")) else found


def _effect_row(own: Mapping[str, Effect], responses: Sequence[Response]) -> dict[str, Any]:
    first = own["healthy"]
    return {
        "change": changed_text(first),
        "tied": names_text(first.tied),
        "seeds": first.seeds,
        "matches": first.matches,
        "values": [(effect_text(own[r]), p_text(own[r].p)) if r in own else ("", "") for r in responses],
    }


def _matches_text(ruling: Ruling) -> str:
    if not ruling.claim.cells:
        return counted(ruling.matches, "trial")
    if ruling.claim.weights:
        return counted(ruling.matches, "quadruple")
    return "1 match" if ruling.matches == 1 else f"{ruling.matches:,} matches"


def _ruling_text(ruling: Ruling) -> str:
    if ruling.claim.cells:
        ends = (ruling.low, ruling.high) if ruling.seeds > 1 else None
        return size_text(ruling.claim.response, ruling.effect, ends)
    return f"{ruling.effect:.0%} of trials; seeds [{ruling.low:.0%}, {ruling.high:.0%}]"


def _difference_row(difference: Difference, responses: Sequence[Response]) -> dict[str, Any]:
    a, b = difference.first, difference.second
    ratio = (
        f"×{ratio_text(b / a)}"
        if is_number(a) and is_number(b) and a > 0 and b > 0 and difference.name != "seed"
        else ""
    )
    return {
        "name": short_name(difference.name),
        "dotted": difference.name,
        "first": level_text(a),
        "second": level_text(b),
        "ratio": ratio,
        "note": difference.note,
        "effects": [effect_text(difference.effects[r]) for r in responses if difference.effects],
        "seeds": difference.effects["healthy"].seeds if difference.effects else 0,
    }


def _trial_row(trial: Trial, factors: Iterable[str]) -> dict[str, Any]:
    return {
        "name": trial.name,
        "levels": [level_text(trial.factors.get(name)) for name in factors],
        "seed": "" if trial.seed is None else trial.seed,
        "outcome": trial.outcome,
        "mark": MARKS[trial.outcome],
        "cause": trial.cause or "",
        "per": "" if math.isnan(trial.per) else f"{trial.per:.2f}",
        "steps": "" if trial.steps is None else f"over {trial.steps}" if trial.censored else str(trial.steps),
        "norm_spike": _spike_text(trial.norm_spike),
    }


def _spike_text(spike: float) -> str:
    if math.isnan(spike):
        return ""
    return "not finite" if math.isinf(spike) else f"×{ratio_text(math.exp(spike))}"
