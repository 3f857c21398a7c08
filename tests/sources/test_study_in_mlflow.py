"""A study whose folders are gone is reported on from MLflow alone, as from its folders."""

import shutil
from dataclasses import replace
from typing import Any

import pytest

from stability.analysis.claims import read_claims
from stability.analysis.effects import effects
from stability.analysis.rulings import rule
from stability.analysis.trial import Trials, read_record
from stability.report import main
from stability.sources import read_sources
from tests.support.claims import write_claims
from tests.support.commandline import CommandLine
from tests.support.mlflow_runs import store_uri

CLAIMS = (
    "compare: {schedule.lr_max: [0.01, 30.0]}, response: healthy, expect: lower",
    "compare: {optimizer.epsilon: [1e-8, 0.1]}, response: norm_spike, expect: lower",
    "where: {schedule.lr_max: 0.01}, expect: {all: stable}",
)
SWEEP = ("--multirun", "study=gone", "schedule.lr_max=0.01,30.0", "optimizer.epsilon=1e-8,0.1", "seed=0,1")


def known(trials: Trials) -> dict[str, Any]:
    """What is known of each trial wherever it is: its responses, and its verdict without the evidence."""
    found = {}
    for trial in trials.trials:
        verdict = read_record(trial).verdict
        assert verdict is not None
        said = verdict.outcome, verdict.cause, verdict.onset_step, verdict.detected_step, verdict.advice
        found[trial.name] = repr(replace(trial, folder=None, page="")), said
    return found


@pytest.mark.slow
def test_a_study_is_read_back_from_mlflow_alone(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    claims = write_claims(cli.folder, *CLAIMS)
    cli.run(*SWEEP, "steps=80", "validate_every=20", "tracking=mlflow", f"sweep.claims={claims}")
    study, uri, page = cli.folder / "outputs" / "gone", store_uri(cli.folder / "outputs"), str(cli.folder / "page.html")
    folders = read_sources([study])
    known_there = known(folders)
    assert main([str(study), "--claims", str(claims), "--out", page]) == 0
    printed = capsys.readouterr().out

    shutil.rmtree(study)
    store = read_sources(["mlflow:gone"], uri=uri)

    assert len(store.trials) == 8
    assert len({trial.outcome for trial in store.trials}) > 1
    assert known(store) == known_there
    assert repr(effects(store)) == repr(effects(folders))
    rulings = rule(read_claims(claims), store)
    assert repr(rulings) == repr(rule(read_claims(claims), folders))
    assert {ruling.matches for ruling in rulings[:2]} == {4}
    assert main(["mlflow:gone", "--uri", uri, "--claims", str(claims), "--out", page]) == 0
    assert capsys.readouterr().out == printed
