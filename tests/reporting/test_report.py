"""The report of a study: what its page says, read from the HTML, and how bad input is refused."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stability.analysis.claims import read_claims
from stability.analysis.effects import effects
from stability.analysis.rulings import rule
from stability.analysis.stopping_record import StoppingRecord, write_stopping_record
from stability.analysis.trials import read_trials
from stability.core.checkout import ROOT
from stability.report import main
from stability.reporting.advice import advise
from stability.reporting.page import Report, write_report
from stability.reporting.summary import summarize_grid
from stability.tracking.state import State, write_state
from tests.support.commandline import fork_module
from tests.support.studies import EPSILON, LR, NOISE, write_study
from tests.support.trials import write_trial

SEEDS = list(range(8))
CLAIMS = """
- {id: pair, claim: Large epsilon needs noise., source: us, compare: {optimizer.epsilon: [1e-8, 0.1],
   aug.white_noise_std: [0.25, 1.0]}, response: healthy, expect: higher}
- {id: noise, claim: Noise harms., source: us, compare: {aug.white_noise_std: [0.25, 1.0]}, response: healthy,
   expect: lower}
- {id: few, claim: It explodes., source: us, where: {optimizer.epsilon: 1e-8, aug.white_noise_std: 0.25, seed: 0},
   expect: {most: exploded}}
- {id: lost, claim: Batches matter., source: us, compare: {batch.sise: [48, 64]}, response: per, expect: lower}
"""


def together(trial: Mapping[str, Any]) -> str:
    return "blank_collapse" if trial[EPSILON] == 0.1 and trial[NOISE] < 1 else "stable"


class Page(HTMLParser):
    """The tables of a page as rows of cells, by the heading above; its text; and what it loads or names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.ids, self.loads, self.links = "", list[str](), list[str](), list[str]()
        self._heading, self._open, self._skip = "", "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.ids += [known["id"] or ""] if "id" in known else []
        addresses = [known[name] or "" for name in ("src", "href") if name in known]
        if tag == "a":
            self.links += addresses
        else:
            self.loads += addresses
        if tag in ("h2", "h3", "th", "td", "style"):
            self._open = tag
        if tag in ("h2", "h3"):
            self._heading = ""
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        elif tag in ("th", "td"):
            self.tables[self._heading][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "style":
            return
        self.text += data
        if self._open in ("h2", "h3"):
            self._heading += data
        elif self._open:
            row = self.tables[self._heading][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())

    def row(self, heading: str, start: str) -> list[str]:
        (row,) = (row for row in self.tables[heading] if row[0].startswith(start))
        return row


def small(folder: Path, *, seeds: int = 1) -> Path:
    """A study of a factor with two levels, of which one explodes."""
    levels: dict[str, list[Any]] = {"seed": list(range(seeds)), LR: [0.005, 1.0]}
    return write_study(folder, levels, lambda t: "exploded" if t[LR] == 1 else "stable", steps=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Epsilon and noise crossed, which together collapse; beside it a trial in which two more things differ."""
    root = tmp_path_factory.mktemp("outputs")
    (root / "claims.yaml").write_text(CLAIMS)
    write_study(root / "other", {"seed": [0], EPSILON: [0.1], NOISE: [1.0], "batch.size": [48], LR: [1.0]},
                lambda _: "exploded", steps=30)  # fmt: skip
    return write_study(root / "pair", {"seed": SEEDS, EPSILON: [1e-8, 0.1], NOISE: [0.25, 1.0]}, together, steps=30)


@pytest.fixture(scope="module")
def report(study: Path) -> Report:
    return write_report([study], claims=study.parent / "claims.yaml")


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.page.read_text())


def test_the_summary_is_made_from_the_trials(report: Report, page: Page) -> None:
    which, how_large, how_sure = report.sentences
    assert which == (
        "8 of 32 trials are unhealthy (8 blank_collapse); the pair of epsilon and noise has the largest effect on this."
    )
    assert "from 100% to 0% at noise 0.25, and from 100% to 100% at noise 1: the difference is +100" in how_large
    low, high = map(int, re.findall(r"\[\+(\d+), \+(\d+)\]", how_large)[0])
    assert 0 < low < 100 < high
    assert "8 quadruples of trials with 8 seeds (sign-flip, exact: p = 0.0078" in how_sure  # 2 / 2^8
    claims = "of 4 claims, 1 confirmed, 1 refuted and 2 inconclusive, 2 of them because their trials were not run."
    assert how_sure.endswith(claims)
    assert all(sentence in page.text for sentence in report.sentences)


def test_the_page_loads_nothing_else(report: Report, page: Page) -> None:
    html = report.page.read_text()
    assert report.page.name == "report.html"
    assert html.count("<svg") == html.count('role="img" aria-label="') == 3
    assert "<script" not in html
    assert "@import" not in html
    assert all(target.startswith("#") for target in page.loads)
    here = report.page.parent
    assert "report/trials.csv" in page.links
    assert all((here / link).is_file() for link in page.links)
    assert sum(link.endswith("/verdict.json") for link in page.links) == 32
    assert len(page.ids) == len(set(page.ids))
    names = [f"{name}.{kind}" for name in ("phase", "curves", "effects") for kind in ("svg", "png")]
    assert [path.name for path in report.files] == [*names, "trials.csv"]
    assert all(path.parent == report.page.with_name("report") and path.stat().st_size for path in report.files)


def test_a_page_links_to_each_trial_wherever_it_is_written(tmp_path: Path) -> None:
    study = small(tmp_path / "a study")
    first, second = sorted(path.parent for path in study.glob("*/verdict.json"))
    (first / "run.png").write_bytes(b"\x89PNG")
    runs = {first: "http://host:1/#/experiments/2/runs/3?a=b&c=d", second: "javascript:alert(1)/#/experiments/2/runs/3"}
    for folder, address in runs.items():
        uri, _, page = address.partition("/#")
        state = State(uri, "study", {}, page=f"#{page}")
        write_state(folder, state)
    found = Page(write_report([study], claims=None, out=tmp_path / "page.html").page.read_text())
    (name,) = {first.parent.name}
    assert sorted(found.links) == sorted([
        "page/trials.csv",
        runs[first],
        *(f"{name}/{path}".replace(" ", "%20") for path in (
            f"{first.name}/run.png", f"{first.name}/verdict.json", f"{second.name}/verdict.json"
        )),
    ])  # fmt: skip
    write_state(second, State(f"sqlite:///{tmp_path}/mlflow.db", "study", {}, page="#/experiments/2/runs/3"))
    html = write_report([study], claims=None).page.read_text()
    assert "http://127.0.0.1:5000/#/experiments/2/runs/3" in Page(html).links
    assert "python -m mlflow ui" in html


def test_the_command_of_a_claim_runs_the_cells_that_its_text_names(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "study", {"seed": [0, 1], EPSILON: [1e-8, 0.1], NOISE: [0.25, 1.0], LR: [0.002, 0.005]},
        lambda t: "stable" if t[NOISE] == 1 else "blank_collapse", steps=20,
    )  # fmt: skip
    (tmp_path / "claims.yaml").write_text(
        """
- {id: one, claim: c, source: s, where: {optimizer.epsilon: 0.01}, expect: {most: stable}}
- {id: two, claim: c, source: s, compare: [{optimizer.epsilon: 0.01, aug.white_noise_std: 0.5},
   {optimizer.epsilon: 1e-8, aug.white_noise_std: 2.0}], response: healthy, expect: lower}
"""
    )
    claims = read_claims(tmp_path / "claims.yaml")
    trials = read_trials([study])
    base = "python -m stability.train --multirun study=study"
    for stated, text, commands in (
        (claims[:1], "To run those of one, 3 trials in 1 cell, with lr 0.002, noise 1:",
         [f"{base} aug.white_noise_std=1 schedule.lr_max=0.002 optimizer.epsilon=0.01 'seed=range(3)'"]),
        (claims[1:], "To run those of two, 6 trials in 2 cells, with lr 0.002:",
         [f"{base} schedule.lr_max=0.002 optimizer.epsilon=0.01 aug.white_noise_std=0.5 'seed=range(3)'",
          f"{base} schedule.lr_max=0.002 optimizer.epsilon=1e-8 aug.white_noise_std=2 'seed=range(3)'"]),
    ):  # fmt: skip
        (advice,) = (a for a in advise(trials, rule(stated, trials)) if "To run those" in a.text)
        assert advice.text.endswith(text)
        assert [sorted(command.split()) for command in advice.command.splitlines()] == [
            sorted(command.split()) for command in commands
        ]


def test_every_trial_is_in_the_csv_file(report: Report, study: Path) -> None:
    with (report.page.parent / "report/trials.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    trials = read_trials([study]).trials
    assert {name: row["outcome"] for name, row in rows.items()} == {t.name: t.outcome for t in trials}
    assert [float(rows[t.name]["per"]) for t in trials] == pytest.approx([t.per for t in trials], rel=1e-5)


def test_each_column_of_the_csv_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    levels: dict[str, list[Any]] = {
        "seed": [0],
        "loss.reduction": ["per_utterance_sum", "per_label_mean"],
        "steps": [20, 30],
        LR: [0.1, 0.2],
    }
    report = write_report([write_study(tmp_path / "study", levels, lambda _: "stable", steps=20)], claims=None)
    header, first, *_ = csv.reader((report.page.parent / "report/trials.csv").read_text().splitlines())
    assert len(header) == len(set(header)) == len(first)
    assert {"loss.reduction", "steps", "lr", "loss", "plateau_steps"} <= {*header}
    committed = sorted((ROOT / "experiments").glob("*.csv"))
    assert len(committed) > 8
    for path in committed:
        names = path.read_text().split("\n", 1)[0].split(",")
        assert len(names) == len(set(names)), path.name


def test_no_cell_of_the_csv_file_is_a_formula(tmp_path: Path) -> None:
    levels: dict[str, list[Any]] = {"seed": [0], "data.path": ["=1+2", "-$a$b_{$", "/data"]}
    report = write_report([write_study(tmp_path / "study", levels, lambda _: "stable")], claims=None)
    _, *rows = csv.reader((report.page.parent / "report/trials.csv").read_text().splitlines())
    assert sorted(row[0] for row in rows) == ["'-$a$b_{$", "'=1+2", "/data"]


def test_rulings_are_listed_in_a_table(page: Page) -> None:
    rows = page.tables["Claims"]
    assert rows[0] == ["claim", "ruling", "effect, 95 %", "seeds", "exact test", "why"]
    confirmed, refuted = page.row("Claims", "Large epsilon"), page.row("Claims", "Noise harms")
    assert confirmed[1] == "✔ confirmed"
    assert confirmed[3] == "8 8 quadruples"
    assert refuted[1] == "✘ refuted"
    assert refuted[2].startswith("+50 points [")
    assert "p = 0.016" in refuted[4]  # 2 / 2^8 for the smaller of two tests
    assert "nearest is batch.size" in page.row("Claims", "Batches matter")[-1]


def test_a_failed_trial_is_compared_with_the_nearest_healthy_one(page: Page) -> None:
    head, *_ = page.tables["Critical differences"]
    assert "blank_collapse" in head[1]
    assert "stable" in head[2]
    changed = {row[0].split()[0]: row for row in page.tables["Critical differences"][1:]}
    assert changed.keys() == {"epsilon", "final", "steps"}
    assert changed["epsilon"][1:3] == ["0.1", "1e-8"]
    assert changed["epsilon"][4].startswith("+50 points [")


def test_two_given_trials_are_compared_in_every_difference(study: Path, tmp_path: Path) -> None:
    report = write_report(
        [study, study.parent / "other"],
        claims=None,
        pair=("trial2-", str(study.parent / "other" / "trial0-seed0")),
        out=tmp_path / "both.html",
    )
    page = Page(report.page.read_text())
    assert report.page == tmp_path / "both.html"
    assert report.files[0] == tmp_path / "both" / "phase.svg"
    rows = {row[0].split()[0]: row for row in page.tables["Critical differences"][1:]}
    assert rows["noise"][1:4] == ["0.25", "1", "×4"]
    assert rows["noise"][4].startswith("+50 points [")
    assert rows["lr"][1:] == ["0.005", "1", "×200", "not varied alone in this study"]
    assert rows["batch"][-1] == "not varied alone in this study"
    assert "no claim was stated beforehand" in page.text


def test_advice_comes_with_its_command(page: Page) -> None:
    assert "At epsilon 0.1, noise 0.25 (8 blank_collapse), change epsilon from 0.1 to 1e-8" in page.text
    assert "python -m stability.train optimizer.epsilon=1e-8 aug.white_noise_std=0.25 seed=8" in page.text


def test_a_single_trial_of_an_experiment_is_advised(tmp_path: Path) -> None:
    study = small(tmp_path / "study")
    (study / "trial0-seed0" / ".hydra").mkdir()
    kept = "[experiment=phase, schedule.lr_max=0.005, seed=0]"
    (study / "trial0-seed0" / ".hydra" / "overrides.yaml").write_text(kept)
    page = Page(write_report([study], claims=None).page.read_text())
    assert "stability.train experiment=phase schedule.lr_max=0.005 seed=1 hydra.mode=RUN" in page.text


def test_a_running_sweep_with_crashed_trials_is_reported(tmp_path: Path) -> None:
    study = small(tmp_path / "study", seeds=2)
    (study / "trial0-seed0" / "verdict.json").unlink()
    (study / "trial1-seed0" / "verdict.json").unlink()
    (study / "trial1-seed0" / "error.txt").write_text("Traceback (most recent call last):\n  …\nMemoryError: no more\n")
    (study / "trial2-seed1" / "verdict.json").write_text('{"outcome"')
    (study / "notes").mkdir()
    (study / "multirun.yaml").write_text("hydra: {overrides: {task: [experiment=phase, 'seed=0,1']}}\n")
    report = write_report([study], claims=None)
    assert report.sentences[0] == "So far the only trial is unhealthy (1 exploded): no factor made training healthy."
    page = Page(report.page.read_text())
    reasons = {row[0]: row[1] for row in page.tables["Left out"][1:]}
    assert reasons["trial0-seed0"] == "no verdict: it crashed, was stopped or is being trained"
    assert reasons["trial1-seed0"] == "it crashed: MemoryError: no more"
    assert "half written" in reasons["trial2-seed1"]
    assert reasons["notes"] == "no trial was started in it"
    assert "2 trials in study have no verdict yet, 1 of them because of a crash" in page.text
    assert "python -m stability.train --multirun experiment=phase seed=0,1" in page.text
    again = write_report([study], claims=None)  # the report's own folder is no trial
    assert Page(again.page.read_text()).tables["Left out"] == page.tables["Left out"]


def test_a_study_without_finished_trials_is_reported(tmp_path: Path) -> None:
    study = small(tmp_path / "study")
    for verdict in study.glob("*/verdict.json"):
        verdict.unlink()
    report = write_report([study], claims=None)
    assert report.sentences[0] == "No trial is finished yet, so nothing is known."
    assert [path.name for path in report.files] == ["trials.csv"]
    assert "No trial is finished." in report.page.read_text()


def test_one_seed_and_a_part_of_a_study_are_reported(tmp_path: Path) -> None:
    report = write_report([small(tmp_path / "study")], claims=None)
    assert report.sentences[0].endswith("; lr has the largest effect on this.")
    assert report.sentences[1] == (
        "At lr 1 instead of 0.005, all else equal, 0% of the trials are healthy instead of 100%: −100 points."
    )
    assert "which cannot separate an effect from chance" in report.sentences[2]
    part = write_report([tmp_path / "study"], claims=None, where={"lr": 0.005})
    assert part.sentences[0] == "The only trial is healthy (1 stable): nothing made training unhealthy."
    assert "only lr 0.005" in part.page.read_text()
    assert part.page == tmp_path / "study" / "report-lr-0.005.html"
    assert "only lr 0.005" not in report.page.read_text(), "the whole study's page is left alone"
    assert not read_trials([tmp_path / "study"]).left_out, "no report is taken for a trial"


def test_a_figure_of_an_earlier_report_is_removed(tmp_path: Path) -> None:
    report = write_report([small(tmp_path / "study")], claims=None)
    shutil.rmtree(tmp_path / "study" / "trial1-seed0")
    again = write_report([tmp_path / "study"], claims=None)
    assert len(again.files) < len(report.files)
    assert {*again.files} == {*again.page.with_name("report").iterdir()}


def chosen_by(sweeper: str, study: Path) -> Path:
    """What Hydra keeps of a sweep whose trials were chosen as it went."""
    kept = f"hydra: {{sweeper: {{_target_: {sweeper}}}, overrides: {{task: [experiment=some]}}}}\n"
    (study / "multirun.yaml").write_text(kept)
    return study


def test_a_factor_with_too_many_levels_is_listed_as_not_compared(tmp_path: Path) -> None:
    rates = [0.001 * 2**i for i in range(13)]
    study = write_study(
        tmp_path / "wide",
        {"seed": [0, 1], LR: rates, NOISE: [0.25, 1.0]},
        lambda t: "slow" if t[NOISE] == 1 else "stable",
    )
    trials = read_trials([study])
    first, *_ = summarize_grid(trials, effects(trials), [])
    not_compared = "(not compared, because of more than 12 levels: lr)."
    assert first.endswith(f"noise has the largest effect on the length of the blank plateau {not_compared}")


@pytest.mark.slow
def test_a_study_by_bisection_is_summarized_by_its_boundaries(tmp_path: Path) -> None:
    levels: dict[str, list[Any]] = {"seed": [0, 1], EPSILON: [1e-8, 0.1], LR: [0.01, 0.1, 1.0]}
    study = write_study(
        tmp_path / "boundary",
        levels,
        lambda t: "exploded" if t[LR] > (0.1 if t[EPSILON] == 0.1 else 0.01) else "stable",
        steps=20,
    )
    found = write_report([chosen_by("stability.sweeps.bisection.BisectionSweeper", study)], claims=None)
    assert found.sentences == (
        # t(0.975; 1 degree of freedom) = 12.71 times sqrt(ln(10)² / 12 / 2), to either side
        "The largest healthy lr is 0.032 [8.1e-5, 12] at epsilon 1e-8 and 0.32 [0.00081, 120] at epsilon 0.1.",
        "At epsilon 0.1 it is 10 times as high as at epsilon 1e-8.",
        "The brackets are 95 % intervals over 2 seeds; no claim was stated beforehand.",
    )
    part = write_report([study], claims=None, where={"lr": 0.01})
    assert part.sentences[0] == "No cell was tried at two values of lr, so the largest healthy one is not known."
    part = write_report([study], claims=None, where={"epsilon": 0.1, "seed": 0})
    assert part.sentences[0] == "The largest healthy lr is 0.32 [0.1, 1]."
    assert part.sentences[2].startswith("With 1 seed, the brackets are only the nearest values that were tried")
    for verdict in study.glob("*/verdict.json"):
        verdict.write_text(verdict.read_text().replace('"stable"', '"exploded"'))
    lost = write_report([study], claims=None)
    assert lost.sentences[0] == "The largest healthy lr is below 0.01 at epsilon 1e-8 and below 0.01 at epsilon 0.1."


def test_of_many_boundaries_the_lowest_and_the_highest_are_given(tmp_path: Path) -> None:
    rates = [0.01, 0.1, 1.0]
    levels: dict[str, list[Any]] = {"seed": [0, 1], EPSILON: [1e-8, 0.1], NOISE: [0.1, 0.5, 0.7, 1.0], LR: rates}
    study = write_study(
        tmp_path / "boundary",
        levels,
        lambda t: "exploded" if t[LR] > (0.1 if (t[EPSILON], t[NOISE]) == (0.1, 0.1) else 0.01) else "stable",
        steps=20,
    )
    found = write_report([chosen_by("stability.sweeps.bisection.BisectionSweeper", study)], claims=None)
    first, second, _ = found.sentences
    lowest, highest = "0.032 [8.1e-5, 12] at epsilon 1e-8", "0.32 [0.00081, 120] at epsilon 0.1"
    assert first == f"The largest healthy lr ranges from {lowest} to {highest}."
    assert second == "At epsilon 0.1 it is 10 times as high as at epsilon 1e-8."


def test_a_search_is_summarized_by_its_best_trial(tmp_path: Path) -> None:
    study = chosen_by("stability.sweeps.search.ResumingSweeper", small(tmp_path / "search"))
    best = float((study / "trial0-seed0" / "validation.csv").read_text().splitlines()[-1].split(",")[1])
    which, how_many, how_sure = write_report([study], claims=None).sentences
    assert which == f"The best of 2 trials has PER {best:.3f}, at lr 0.005."
    assert how_many == f"1 of 2 is stable (1 stable, 1 exploded), with a median PER of {best:.3f}."
    luck = "The best of many trials is partly luck: train it with other seeds"
    assert how_sure == f"{luck}; no claim was stated beforehand."
    assert "combinations have no verdict" not in (study / "report.html").read_text()
    part = write_report([study], claims=None, where={"lr": 1.0})
    lowest = read_trials([study / "trial1-seed0"]).trials[0].per
    assert part.sentences == (
        "None of 1 trial is stable (1 exploded), so there is no best trial.",
        f"The lowest PER is {lowest:.3f}, but that trial is exploded.",
        "No claim was stated beforehand.",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no nowhere: give the folder of a study"),
        (["empty"], "There are no runs in empty: no trial, no job of a Hydra app, no log"),
        (["study", "--claims", "missing.yaml"], "There are no claims missing.yaml"),
        (["study", "--claims", "broken.yaml"], "broken.yaml, claim odd: "),
        (
            ["study", "--compare", "trial0", "trial7"],
            "There is no trial trial7: give the name of a folder in the study",
        ),
        (["study", "--compare", "trial", "trial0-"], "2 trials match trial: trial0-seed0, trial1-seed0"),
        (["study", "half", "--compare", "trial0-", "half"], "half cannot be compared: no verdict"),
        (["study", "--where", "epsilom=1"], "--where epsilom: there is no such factor; the nearest is epsilon."),
        (["study", "--where", "lr=3"], "No trial has lr=3; there are 0.005, 1."),
        (["study", "--where", "lr"], "--where lr: give FACTOR=LEVEL"),
        (["study", "--out", "page"], "--out page: the page is HTML; give a name that ends in .html."),
        (["study", "--out", "broken.yaml/x.html"], "Cannot write broken.yaml/x.html: Not a directory."),
    ],
)
def test_bad_input_gets_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    small(tmp_path / "study")
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "study" / "trial0-seed0" / "config.yaml", tmp_path / "half")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("- {id: odd, claim: x, source: y, expect: sideways}\n")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_folder_that_is_no_study_gets_no_report(tmp_path: Path) -> None:
    (tmp_path / "notes" / "a").mkdir(parents=True)
    small(tmp_path / "outputs" / "study")
    for folder, what in (("notes", "There are no runs in notes"), ("outputs", "outputs is a folder of studies")):
        done = run(folder, folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {what}")
        assert "outputs/" in done.stderr
        assert not (tmp_path / folder / "report.html").exists()
    done = run("outputs/study", "notes", folder=tmp_path)
    assert done.stderr.startswith("error: There are no runs in notes")


def test_the_report_rules_on_the_claims_that_the_study_states(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "- {id: x, claim: y, source: z, compare: {schedule.lr_max: [0.005, 1.0]}, response: healthy, expect: lower}"
    )
    for name, claims in (("a", "mine.yaml"), ("b", "original"), ("c", "null")):
        (small(tmp_path / name) / "multirun.yaml").write_text(f"sweep: {{claims: {claims}}}")
    assert "of 1 claim, 0 confirmed" in run("a", "c", folder=tmp_path).stdout
    assert "none of the 23 claims stated beforehand is about these trials" in run("b", folder=tmp_path).stdout
    assert "no claim was stated beforehand" in run("c", folder=tmp_path).stdout
    assert "of 1 claim, 0 confirmed" in run("c", "--claims", "mine.yaml", folder=tmp_path).stdout
    both = run("a", "b", folder=tmp_path)
    assert both.returncode == 1
    assert both.stderr == ("error: The studies state different claims, mine.yaml and original: choose with --claims.\n")


def run(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return fork_module("stability.report", *arguments, folder=folder)


def test_the_command_prints_the_summary_and_the_page(tmp_path: Path) -> None:
    small(tmp_path / "study")
    done = run("study", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *sentences, path = done.stdout.splitlines()
    assert len(sentences) == 3
    assert sentences[2].endswith("no claim was stated beforehand.")
    page = Page((tmp_path / path).read_text())
    assert "python -m stability.report study" in page.text
    failed = run("nowhere", folder=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: There is no nowhere")
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_ten_thousand_trials_are_reported_in_little_memory(tmp_path: Path) -> None:
    levels: dict[str, list[Any]] = {
        EPSILON: [1e-8, 1e-6, 1e-4, 1e-2, 1e-1],
        LR: [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        NOISE: [0.25, 1.0],
    }
    write_study(
        tmp_path / "study",
        levels | {"seed": list(range(200))},
        lambda t: "exploded" if t[LR] > 0.05 else "undecided" if t[LR] / t[EPSILON] < 0.02 else "stable",
        steps=500,
        columns=24,
    )
    measured = (  # in a process between, for one that is forked from a large process counts as that large
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", measured, sys.executable, "-m", "stability.report", "study"]
    out = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "of 10000 trials are unhealthy" in out
    assert int(out.split()[-1]) < 2e6  # kB
    assert (tmp_path / "study" / "report.html").stat().st_size < 2e6


def test_a_study_that_ends_when_its_claims_are_ruled_on_says_what_that_saved(tmp_path: Path) -> None:
    write_trial(tmp_path / "study/whole", "seed=0")
    ended = write_trial(tmp_path / "study/ended", "seed=1", outcome="exploded")
    verdict = json.loads((ended / "verdict.json").read_text()) | {"evidence": {"steps saved": 7}}
    (ended / "verdict.json").write_text(json.dumps(verdict))
    write_stopping_record(tmp_path / "study", StoppingRecord("hash", 5, ("a", "b", "c"), ("noise",)))
    text = Page(write_report([tmp_path / "study"], claims=None).page.read_text()).text
    assert "3 of 5 trials were not needed." in text
    assert "1 trial has ended at a fault, before the last step, which saved 7 steps." in text
    assert "could not have decided it even if all had agreed: noise." in text
