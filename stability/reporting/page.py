"""The report of a study: one HTML page that needs no other file, and its figures."""

import difflib
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from stability import __version__
from stability.analysis.boundary import Boundary, boundaries
from stability.analysis.claims import read_claims
from stability.analysis.compare import closest_pair, find_trial
from stability.analysis.effects import Effect, Response, effects, recorded_responses
from stability.analysis.levels import Level, level_text, ordered
from stability.analysis.matching import main_factors
from stability.analysis.rulings import Ruling, rule
from stability.analysis.settings import place_of
from stability.analysis.stopping_record import read_stopping_record
from stability.analysis.trial import Trials
from stability.analysis.trials import is_folder_of_ours
from stability.config.names import short_name
from stability.core import palette
from stability.core.checkout import git_commit
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, REPORT, VERDICT, exists, short_path, write_atomically
from stability.core.text import counted, listed
from stability.diagnosis.outcomes import MARKS
from stability.diagnosis.verdict import read_verdict
from stability.reporting.advice import advise, unfinished
from stability.reporting.figures import Picture, save_figures
from stability.reporting.html import render
from stability.reporting.limits import limits
from stability.reporting.recorded import BISECTIONS, SEARCHES, searched_setting, sweep_command, sweeper
from stability.reporting.summary import summarize_boundaries, summarize_grid, summarize_search
from stability.reporting.tables import effect_rows, left_out_rows, pair_table, ruling_rows, trial_rows, trials_csv
from stability.reporting.wording import cell_text, level_of, override
from stability.sources import read_sources
from stability.sources.mlflow_experiment import PREFIX

_MOST_REASONS = 4  # in the terminal
_COLUMNS = {"healthy": "healthy", "per": "{metric}", "steps": "steps", "norm_spike": "norm spike"}
_RECORDED = {"rates": "per", "plateau": "steps", "norms": "norm_spike"}
_COMPARED = {"healthy": "effect on healthy", "steps": "on steps on the plateau", "per": "on {metric}"}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: The HTML page.
        files: The figures, as SVG and PNG, and the table of trials.
        sentences: The summary, in three sentences.
        notes: What these trials cannot tell.
        left_out: Which runs are not in the report, and why, in sentences.
        factors: {short name: levels, as they are typed} of the factors, and of the seed if there are several.
    """

    page: Path
    files: tuple[Path, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    factors: dict[str, list[str]]


@dataclass(frozen=True)
class _Study:
    """The trials that the report is about, and everything that is computed from them."""

    sources: Sequence[str | Path]
    where: Mapping[str, Level]
    command: str  # that makes the page
    trials: Trials
    effects: Sequence[Effect]
    boundaries: Sequence[Boundary]
    rulings: Sequence[Ruling]
    sweepers: frozenset[str]
    setting: str  # whose largest healthy value a bisection has looked for
    begun: Sequence[Path]

    @property
    def searched(self) -> bool:
        """Whether one search has chosen all trials, each by the outcomes of earlier ones."""
        return bool(self.trials.trials) and len(self.sweepers) == 1 and self.sweepers <= {*SEARCHES}


def write_report(
    sources: Sequence[str | Path],
    *,
    claims: Path | None,
    where: Mapping[str, Level] | None = None,
    pair: tuple[str, str] | None = None,
    out: Path | None = None,
    uri: str | None = None,
    seed: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Report:
    """Write a report on the trials of some sources: one HTML page, and a folder with its figures next to it.

    This works also while a sweep is running. The folder of the figures has the name of the page without `.html`.

    Args:
        sources: Each the folder of a study or of one trial, or another source of runs, as in `read_sources`.
        claims: The file of claims to rule on; None for no claims.
        where: {dotted or short name: level}. Only trials with these levels are in the report.
        pair: The two trials to compare, each by its name, the beginning of its name, or its folder.
        out: The page. By default it is `report.html` in the first folder, or with `where`, `report-WHERE.html`. For a
            table it is beside the table, and for an MLflow experiment `report-EXPERIMENT.html` in the current folder.
        uri: The MLflow store, as in `read_sources`.
        seed: The setting that is the seed, if its name does not say so.
        names: What the logs call a signal, as in `stability.diagnosis.readers.read_runs`.

    Raises:
        StabilityError: A source, a file of claims, a factor or a trial does not exist, or the page cannot be written.
    """
    where = where or {}
    if out and out.suffix != ".html":
        raise StabilityError(f"--out {out}: the page is HTML; give a name that ends in .html.")
    stated = read_claims(claims) if claims else []
    read = read_sources(sources, uri=uri, seed=seed, named=[*where], names=names)
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    _check_studies([folder for folder in folders if is_folder_of_ours(folder)], read)
    trials = _trials_with(where, read)
    chosen = tuple(find_trial(trials, name) for name in pair) if pair else closest_pair(trials)
    setting = searched_setting(folders)
    study = _Study(
        sources=sources,
        where=where,
        command=_command(sources, where, {"--uri": uri, "--seed": seed}, names or {}),
        trials=trials,
        effects=effects(trials),
        boundaries=boundaries(trials, setting),
        rulings=rule(stated, trials, anytime=any(map(read_stopping_record, folders))),
        sweepers=frozenset(sweeper(folder) for folder in folders),
        setting=setting,
        begun=unfinished(trials)[0],
    )
    sentences = _sentences(study)
    responses = recorded_responses(study.effects)
    compared: list[Response] = [r for r in ("healthy", "steps", "per") if trials.has(r)] or ["healthy"]
    notes = [*limits(trials, study.effects), *_on_stopping(folders)]
    page = out or _place(sources[0], _name(where))
    place = page.with_suffix("")
    try:
        place.mkdir(parents=True, exist_ok=True)
        pictures = save_figures(place, trials, study.effects, study.boundaries)
        write_atomically(place / "trials.csv", trials_csv(trials).encode())
        content = {
            **_header(study, sentences),
            "notes": notes,
            **_provenance(study),
            "figures": {picture.name: _inlined(picture, place) for picture in pictures},
            "searched": study.searched,
            "metric": trials.metric,
            "responses": [_COLUMNS[r].format(metric=trials.metric) for r in responses],
            "effects": effect_rows(study.effects, responses),
            "claims": claims.name if claims else "",
            "tested": sum(not math.isnan(r.p) for r in study.rulings),
            "rulings": ruling_rows(study.rulings),
            "not_run": [r for r in study.rulings if not r.seeds],
            "pair": pair_table(trials, chosen, compared) if chosen else None,
            "compared": [_COMPARED[r].format(metric=trials.metric) for r in compared],
            **{name: trials.has(response) for name, response in _RECORDED.items()},
            "advice": advise(trials, study.rulings),
            **trial_rows(trials, page),
            "table": f"{place.name}/trials.csv",
        }
        write_atomically(page, render("template.html.j2", content))
    except OSError as error:
        raise StabilityError(
            f"Cannot write {page}: {error.strerror or error}. Make room, or write it elsewhere: "
            f"{study.command} --out FILE.html"
        ) from error
    figures = (place / f"{picture.name}.{kind}" for picture in pictures for kind in ("svg", "png"))
    seeds = [level_text(seed) for seed in ordered({trial.seed for trial in trials.trials} - {None})]
    varied = _factors(trials) | ({"seed": seeds} if len(seeds) > 1 else {})
    return Report(page, (*figures, place / "trials.csv"), sentences, tuple(notes), _left_out(trials), varied)


def _left_out(trials: Trials) -> tuple[str, ...]:
    """A sentence for each of the most frequent reasons why runs were left out."""
    rows = sorted(left_out_rows(trials), key=lambda row: -row[1])
    more = len(rows) - _MOST_REASONS
    return (
        *(
            f"Left out: {name if count == 1 else f'{count:,} runs, such as {name}'}: {reason}."
            for name, count, reason in rows[:_MOST_REASONS]
        ),
        *([f"Left out for {counted(more, 'other reason')}: see the page."] if more > 0 else ()),
    )


def _on_stopping(folders: Sequence[Path]) -> list[str]:
    """Sentences on studies that ended when their claims were ruled on."""
    records = [record for folder in folders if (record := read_stopping_record(folder))]
    if not records:
        return []
    spared, planned = sum(len(r.spared) for r in records), sum(r.trials for r in records)
    what = (
        "The study was to end when its claims are ruled on. The rulings allow for that. The p values of effects do not."
    )
    early = [saved for folder in folders if read_stopping_record(folder) for saved in _steps_saved(folder)]
    found = [f"{what} {spared} of {counted(planned, 'trial')} were not needed." if planned else what]
    if early:
        verb = "trial has" if len(early) == 1 else "trials have"
        found.append(
            f"{len(early)} {verb} ended at a fault, before the last step, which saved {counted(sum(early), 'step')}."
        )
    if given_up := list(dict.fromkeys(claim for record in records for claim in record.given_up)):
        found.append(
            "Not decided, and the seeds that were left could not have decided it even if all had agreed: "
            f"{listed(given_up)}."
        )
    return found


def _steps_saved(study: Path) -> list[int]:
    """The steps that each trial which ended early did not make."""
    found = []
    for path in study.glob(f"*/{VERDICT}"):
        with suppress(StabilityError, OSError):
            if isinstance(saved := read_verdict(path).evidence.get("steps saved"), int | float):
                found.append(int(saved))
    return found


def _check_studies(folders: Sequence[Path], trials: Trials) -> None:
    """Raise StabilityError if no trial was ever started in one of the folders."""
    begun = {path for path, _ in trials.left_out if exists(path / CONFIG) or exists(path / VERDICT)}
    begun |= {place_of(trial) for trial in trials.trials}
    homes = begun | {path.parent for path in begun}
    for folder in folders:
        if folder.resolve() in homes:
            continue
        inside = sorted(path.parent.parent for path in folder.glob(f"*/*/{CONFIG}"))
        instead = f", such as {short_path(inside[0])}" if inside else ", outputs/STUDY"
        raise StabilityError(f"{folder} is no study: no trial was started in it. Give the folder of a study{instead}.")


def _trials_with(where: Mapping[str, Level], trials: Trials) -> Trials:
    """Select the trials with these levels."""
    if not trials.trials:
        return trials
    names = {name for trial in trials.trials for name in trial.factors} | {"seed"}
    dotted = {short_name(name): name for name in names} | {name: name for name in names}
    kept = trials.trials
    for given, level in where.items():
        if given not in dotted:
            near = difflib.get_close_matches(given, dotted, 1, 0.0)[0]
            raise StabilityError(f"--where {given}: there is no such factor; the nearest is {near}.")
        left = tuple(t for t in kept if level_of(t, dotted[given]) == level)
        if not left:
            levels = ", ".join(level_text(x) for x in ordered({level_of(t, dotted[given]) for t in kept}))
            raise StabilityError(f"No trial has {override(given, level)}; there are {levels}.")
        kept = left
    return replace(trials, trials=kept)


def _sentences(study: _Study) -> tuple[str, str, str]:
    """The summary for this kind of study."""
    begun = bool(study.begun)
    if not study.searched:
        return summarize_grid(study.trials, study.effects, study.rulings, unfinished=begun)
    if study.sweepers and study.sweepers <= {*BISECTIONS}:
        return summarize_boundaries(study.boundaries, study.rulings, setting=study.setting, unfinished=begun)
    return summarize_search(study.trials, study.rulings, unfinished=begun)


def _header(study: _Study, sentences: Sequence[str]) -> dict[str, Any]:
    """The page's title and summary."""
    trials = study.trials
    counts = Counter(trial.outcome for trial in trials.trials)
    return {
        "title": listed(dict.fromkeys(map(_title, study.sources))),
        "where": cell_text(study.where),
        "sentences": sentences,
        "outcomes": [(name, mark, counts[name]) for name, mark in MARKS.items() if counts[name]],
        "total": len(trials.trials),
        "seeds": len({trial.seed for trial in trials.trials} - {None}),
        "begun": len(study.begun),
        "factors": _factors(trials),
    }


def _factors(trials: Trials) -> dict[str, list[str]]:
    """{short name: levels, as they are typed}."""
    return {short_name(name): [level_text(level) for level in levels] for name, levels in main_factors(trials).items()}


def _provenance(study: _Study) -> dict[str, Any]:
    """The commands, versions and time that made the page."""
    return {
        "command": study.command,
        "sweeps": [(_title(path), command) for path in study.sources if (command := sweep_command(Path(path)))],
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": f"stability {__version__}, torch {version('torch')}, scipy {version('scipy')}",
        "commit": (git_commit() or "")[:7],
    }


def _name(where: Mapping[str, Level]) -> str:
    """Return `report`, or for a part of the trials `report-noise-1`, so that the report on all trials stays."""
    return re.sub(r"[^\w.+-]+", "-", f"{REPORT} {cell_text(where)}".strip())


def _title(source: str | Path) -> str:
    """The name of a source: that of the folder or the file, or the experiment's."""
    return str(source).removeprefix(PREFIX) if _is_experiment(source) else Path(source).resolve().name


def _is_experiment(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(PREFIX)


def _place(source: str | Path, name: str) -> Path:
    """Where the page of a source is written if no other place is given."""
    if _is_experiment(source):
        return Path(re.sub(r"[^\w.+-]+", "-", f"{name}-{_title(source)}") + ".html")
    return (Path(source) if Path(source).is_dir() else Path(source).parent) / f"{name}.html"


def _command(
    sources: Sequence[str | Path], where: Mapping[str, Level], given: Mapping[str, str | None], names: Mapping[str, str]
) -> str:
    shown = [str(source) if _is_experiment(source) else short_path(Path(source)) for source in sources]
    chosen = [word for name, level in where.items() for word in ("--where", override(name, level))]
    chosen += [word for option, value in given.items() if value for word in (option, value)]
    chosen += [word for signal, name in names.items() for word in ("--map", f"{signal}={name}")]
    return shlex.join(["python", "-m", "stability.report", *shown, *chosen])


def _inlined(picture: Picture, folder: Path) -> dict[str, Any]:
    """Return the picture's SVG for the page, with the page's colours and with ids that are unique on the page."""
    svg = (folder / f"{picture.name}.svg").read_text()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    start = r'<svg [^>]*?viewBox="0 0 ([0-9.]+) ([0-9.]+)"[^>]*>'
    svg = re.sub(start, r'<svg viewBox="0 0 \1 \2" style="--points: \1" role="img">', svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'((?<= id=")|(?<=href="#)|(?<=url\(#))', f"{picture.name}-", svg)
    for name in ("ink", "rule", "paper"):
        svg = svg.replace(palette.LIGHT[name].lower(), f"var(--{name})")  # matplotlib writes colours in lower case
    svg = svg.replace('role="img"', f'role="img" aria-label="{escape(picture.caption)}"', 1)
    return {"svg": Markup(svg), "caption": picture.caption, "png": f"{folder.name}/{picture.name}.png"}
