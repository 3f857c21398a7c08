"""The report of a study: one page that stands for itself, and its figures."""

import csv
import difflib
import io
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from markupsafe import Markup, escape

from stability.analysis.boundary import boundaries
from stability.analysis.claims import read_claims
from stability.analysis.compare import Difference, closest_pair, compare, find_trial
from stability.analysis.effects import RESPONSES, Effect, effects
from stability.analysis.levels import Level, is_number, level_text, ordered
from stability.analysis.matching import main_factors
from stability.analysis.rulings import Ruling, rule
from stability.analysis.trials import Trial, Trials, read_trials, read_verdict
from stability.config.names import short_name
from stability.core.checkout import git_commit
from stability.core.errors import StabilityError
from stability.core.files import REPORT, short_path, write_atomically
from stability.core.text import listed
from stability.reporting import wording as words
from stability.reporting.advice import SEARCHES, advise, sweep_command, sweeper, unfinished
from stability.reporting.figures import INK, RULE, Picture, save_figures
from stability.reporting.summary import answer, boundary_answer, search_answer

_MOST_TRIALS, _MOST_LEFT_OUT, _MOST_EFFECTS = 300, 20, 120  # rows


@dataclass(frozen=True)
class Report:
    """A written report: its page, its figures as SVG and PNG and its table, and the answer in three sentences."""

    page: Path
    files: tuple[Path, ...]
    sentences: tuple[str, ...]


def write_report(
    folders: Sequence[Path],
    *,
    claims: Path | None,
    where: Mapping[str, Level] | None = None,
    pair: tuple[str, str] | None = None,
    out: Path | None = None,
) -> Report:
    """Write what the trials in `folders` say into one HTML page, and its figures beside it.

    The page is `out`, or `report.html` in the first folder, `report-WHERE.html` of a part; the figures are in a folder
    of the same name without `.html`. `where` keeps the trials with these levels, `{dotted or short name: level}`.
    `pair` are the two trials to compare, by name, its beginning, or folder. With `claims` None, none are ruled on.
    Works while a sweep is running.
    Raises `StabilityError` for a folder, a file of claims, a factor or a trial that is not there.
    """
    if out and out.suffix != ".html":
        raise StabilityError(f"--out {out}: the page is HTML; give a name that ends in .html.")
    stated = read_claims(claims) if claims else []
    trials = _kept(read_trials(folders), where or {})
    chosen = tuple(find_trial(trials, name) for name in pair) if pair else closest_pair(trials)
    found, rulings = effects(trials), rule(stated, trials)
    begun, _ = unfinished(trials)
    edges = boundaries(trials)
    how = {sweeper(folder) for folder in folders}
    searched = bool(trials.trials) and len(how) == 1 and how <= {*SEARCHES}
    if not searched:
        sentences = answer(trials, found, rulings, unfinished=bool(begun))
    elif how == {"BisectionSweeper"}:
        sentences = boundary_answer(edges, rulings, unfinished=bool(begun))
    else:
        sentences = search_answer(trials, rulings, unfinished=bool(begun))
    page = out or folders[0] / f"{_name(where or {})}.html"
    place = page.with_suffix("")
    try:
        place.mkdir(parents=True, exist_ok=True)
        pictures = save_figures(place, trials, found, edges)
        write_atomically(place / "trials.csv", _as_csv(trials).encode())
        content = {
            **_about(folders, where or {}),
            **_summary(trials, sentences, begun),
            "figures": {picture.name: _inlined(picture, place) for picture in pictures},
            "searched": searched,
            "effects": [_effect_row(own) for own in _by_change(found)[:_MOST_EFFECTS]],
            **_ruled(rulings, claims),
            "pair": _pair(trials, *chosen) if chosen else None,
            "advice": advise(trials, rulings),
            **_listed(trials),
            "table": f"{place.name}/trials.csv",
        }
        text = Path(__file__).with_name("template.html.j2").read_text()
        template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        write_atomically(page, template.render(content).encode())
    except OSError as error:
        raise StabilityError(
            f"Cannot write {page}: {error.strerror or error}. Make room, or write it elsewhere: "
            f"{_command(folders, where or {})} --out FILE.html"
        ) from error
    figures = (place / f"{picture.name}.{kind}" for picture in pictures for kind in ("svg", "png"))
    return Report(page, (*figures, place / "trials.csv"), sentences)


def _kept(trials: Trials, where: Mapping[str, Level]) -> Trials:
    """The trials with these levels."""
    if not trials.trials:
        return trials
    names = {name for trial in trials.trials for name in trial.factors} | {"seed"}
    dotted = {short_name(name): name for name in names} | {name: name for name in names}
    kept = trials.trials
    for given, level in where.items():
        if given not in dotted:
            near = difflib.get_close_matches(given, dotted, 1, 0.0)[0]
            raise StabilityError(f"--where {given}: there is no such factor; the nearest is {near}.")
        left = tuple(t for t in kept if words.level_of(t, dotted[given]) == level)
        if not left:
            levels = ", ".join(level_text(x) for x in ordered({words.level_of(t, dotted[given]) for t in kept}))
            raise StabilityError(f"No trial has {words.override(given, level)}; there are {levels}.")
        kept = left
    return replace(trials, trials=kept)


def _about(folders: Sequence[Path], where: Mapping[str, Level]) -> dict[str, Any]:
    """What the page is of, and what made it."""
    return {
        "title": listed(dict.fromkeys(folder.resolve().name for folder in folders)),
        "where": words.cell_text(where),
        "command": _command(folders, where),
        "sweeps": [(folder.resolve().name, sweep_command(folder)) for folder in folders if sweep_command(folder)],
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("training-stability", "torch", "scipy")),
        "commit": (git_commit() or "")[:7],
    }


def _name(where: Mapping[str, Level]) -> str:
    """`report`, or of a part `report-noise-1`: it takes the place of no report on all trials."""
    return re.sub(r"[^\w.+-]+", "-", f"{REPORT} {words.cell_text(where)}".strip())


def _command(folders: Sequence[Path], where: Mapping[str, Level]) -> str:
    chosen = [word for name, level in where.items() for word in ("--where", words.override(name, level))]
    return shlex.join(["python", "-m", "stability.report", *map(short_path, folders), *chosen])


def _summary(trials: Trials, sentences: Sequence[str], begun: Sequence[Path]) -> dict[str, Any]:
    counts = Counter(trial.outcome for trial in trials.trials)
    return {
        "sentences": sentences,
        "outcomes": [(name, look, counts[name]) for name, look in words.LOOKS.items() if counts[name]],
        "total": len(trials.trials),
        "seeds": len({trial.seed for trial in trials.trials}),
        "begun": len(begun),
        "factors": {
            short_name(name): [level_text(level) for level in levels] for name, levels in main_factors(trials).items()
        },
    }


def _inlined(picture: Picture, folder: Path) -> dict[str, Any]:
    """The picture's SVG for the page, in the page's own colours and with names of its own, and its caption."""
    svg = (folder / f"{picture.name}.svg").read_text()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    start = r'<svg [^>]*?viewBox="0 0 ([0-9.]+) ([0-9.]+)"[^>]*>'
    svg = re.sub(start, r'<svg viewBox="0 0 \1 \2" style="--points: \1" role="img">', svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'((?<= id=")|(?<=href="#)|(?<=url\(#))', f"{picture.name}-", svg)
    for colour, variable in ((INK, "--ink"), (RULE, "--rule"), ("#ffffff", "--paper")):
        svg = svg.replace(colour, f"var({variable})")
    svg = svg.replace('role="img"', f'role="img" aria-label="{escape(picture.caption)}"', 1)
    return {"svg": Markup(svg), "caption": picture.caption, "png": f"{folder.name}/{picture.name}.png"}


def _by_change(found: Sequence[Effect]) -> list[dict[str, Effect]]:
    """The effects that trials tell, of each change on every response."""
    rows: dict[str, dict[str, Effect]] = defaultdict(dict)
    for effect in found:
        if effect.matches:
            rows[words.changed_text(effect)][effect.response] = effect
    return list(rows.values())


def _effect_row(own: Mapping[str, Effect]) -> dict[str, Any]:
    first = own["healthy"]
    return {
        "change": words.changed_text(first),
        "along": words.names_text(first.tied),
        "seeds": first.seeds,
        "matches": first.matches,
        "values": [(words.effect_text(own[response]), words.p_text(own[response].p)) for response in RESPONSES],
    }


def _ruled(rulings: Sequence[Ruling], claims: Path | None) -> dict[str, Any]:
    """The rulings, those that were decided first; claims about trials that there are not apart."""
    order = ("confirmed", "refuted", "inconclusive")
    rows = [
        {"ruling": r, "size": _ruling_text(r), "p": words.p_text(r.corrected), "along": words.names_text(r.tied)}
        for r in sorted(rulings, key=lambda r: order.index(r.ruling))
        if r.seeds
    ]
    return {"claims": claims.name if claims else "", "rulings": rows, "unasked": [r for r in rulings if not r.seeds]}


def _ruling_text(ruling: Ruling) -> str:
    if ruling.claim.cells:
        ends = (ruling.low, ruling.high) if ruling.seeds > 1 else None
        return words.size_text(ruling.claim.response, ruling.effect, ends)
    return f"{ruling.effect:.0%} of trials; of seeds [{ruling.low:.0%}, {ruling.high:.0%}]"


def _pair(trials: Trials, first: Trial, second: Trial) -> dict[str, Any]:
    """Two trials, and what they differ in."""
    return {
        "trials": [
            _trial_row(trial, {}) | {"advice": read_verdict(trial).get("advice", "")} for trial in (first, second)
        ],
        "differences": [_difference_row(difference) for difference in compare(trials, first, second)],
    }


def _difference_row(difference: Difference) -> dict[str, Any]:
    a, b = difference.first, difference.second
    ratio = (
        f"×{words.ratio_text(b / a)}"
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
        "effects": [
            words.effect_text(difference.effects[r]) for r in ("healthy", "steps", "per") if difference.effects
        ],
        "seeds": difference.effects["healthy"].seeds if difference.effects else 0,
    }


def _listed(trials: Trials) -> dict[str, Any]:
    """The trials, failed ones first, and the folders left out, by their reason where there are many."""
    factors = main_factors(trials)
    rows = sorted(trials.trials, key=lambda trial: (trial.healthy, trial.folder.parent.name, trial.seed))
    by_reason: dict[str, list[str]] = defaultdict(list)
    for folder, reason in trials.left_out:
        by_reason[reason].append(folder.name)
    return {
        "rows": [_trial_row(trial, factors) for trial in rows[:_MOST_TRIALS]],
        "columns": [short_name(name) for name in factors],
        "left_out": [(names[0], len(names), reason) for reason, names in [*by_reason.items()][:_MOST_LEFT_OUT]],
        "left_out_total": len(trials.left_out),
    }


def _as_csv(trials: Trials) -> str:
    """Every trial and its responses, a row each, for other programs."""
    factors = main_factors(trials)
    measured = ("outcome", "cause", "per", "steps", "censored", "norm_spike", "largest_norm", "phonemes", "loss")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*map(short_name, factors), "seed", *measured, "name"])
    for trial in sorted(trials.trials, key=lambda trial: trial.name):
        values = (getattr(trial, name) for name in measured)
        levels = (level_text(trial.factors.get(name)) for name in factors)
        table.writerow([*levels, trial.seed, *(f"{v:.6g}" if isinstance(v, float) else v for v in values), trial.name])
    return text.getvalue()


def _trial_row(trial: Trial, factors: Iterable[str]) -> dict[str, Any]:
    norm_spike = "not finite" if math.isinf(trial.norm_spike) else f"×{words.ratio_text(math.exp(trial.norm_spike))}"
    return {
        "name": trial.name,
        "levels": [level_text(trial.factors.get(name)) for name in factors],
        "seed": trial.seed,
        "outcome": trial.outcome,
        "look": words.LOOKS[trial.outcome],
        "cause": trial.cause or "",
        "per": f"{trial.per:.2f}",
        "steps": f"over {trial.steps}" if trial.censored else str(trial.steps),
        "norm_spike": norm_spike,
    }
