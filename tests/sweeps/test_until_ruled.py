"""`sweep.until=ruled` trains a grid seed by seed, and ends when its claims are ruled on."""

import json
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine
from tests.support.programs import command, runs, write_program

CLAIMS = """
- {id: high, claim: A rate of 3 explodes., source: test, where: {settings.lr: 3}, expect: {most: exploded}}
- {id: low, claim: All explode with 0.1., source: test, where: {settings.lr: 0.1}, expect: {all: exploded}}
"""
SWEEP = ("--multirun", "trainer=command", "trainer.log=log.csv", command("--lr {lr} --seed {seed} --steps 60"))
STUDY = (*SWEEP, "study=rates", "settings.lr=0.1,3", "sweep.claims=claims.yaml", "hydra/launcher=stacked")
UNTIL = (*STUDY, "sweep.until=ruled")


@pytest.fixture(autouse=True)
def _files(cli: CommandLine) -> None:
    write_program(cli.folder)
    (cli.folder / "claims.yaml").write_text(CLAIMS)


def trained(cli: CommandLine) -> list[Path]:
    return sorted(path.parent for path in cli.folder.glob("outputs/rates/*/config.yaml"))


@pytest.mark.slow
def test_a_study_ends_when_its_claims_are_ruled_on(cli: CommandLine) -> None:
    out = cli.run(*UNTIL, "seed=range(9)").out
    assert "round 1: 8 trials" in out, "6 seeds of 3, which is the least; 2 of 0.1, for a counterexample"
    assert "not needed 10" in out
    assert "of 2 claims, 1 confirmed, 1 refuted" in out
    assert len(trained(cli)) == 8
    page = (cli.folder / "outputs/rates/report.html").read_text()
    assert "10 of 18 trials were not needed." in page

    again = cli.run(*UNTIL, "seed=range(9)").out
    assert "round 1" not in again
    assert all(len(runs(folder)) == 1 for folder in trained(cli)), "none is run again"

    (cli.folder / "claims.yaml").write_text(CLAIMS.replace("most", "all"))
    assert "The claims have changed since outputs/rates began." in cli.refuse(*UNTIL, "seed=range(9)")


@pytest.mark.slow
def test_too_few_seeds_are_noted_and_what_can_be_refuted_is(cli: CommandLine) -> None:
    assert "With 3 seeds a claim is only" in cli.run(*UNTIL, "seed=0,1,2", "sweep.dry_run=true").out
    out = cli.run(*UNTIL, "seed=0,1,2").out
    assert "With 3 seeds a claim is only ruled on by a counterexample. Give at least 6" in out
    assert "round 1: 2 trials" in out
    record = json.loads((cli.folder / "outputs/rates/until_ruled.json").read_text())
    assert record["trials"] == 6
    assert len(record["spared"]) == 4
    assert record["given_up"] == ["high"]
    page = (cli.folder / "outputs/rates/report.html").read_text()
    assert "Not decided, and the seeds that were left could not have decided it even if all had agreed: high." in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("sweep.claims=null",), "sweep.until=ruled needs claims to rule on: give sweep.claims=NAME."),
        (("sweep.until=soon",), "sweep.until=soon: give ruled, or null to train all trials."),
        (("fresh=true",), "sweep.until=ruled with fresh=true: give one of them."),
        (("hydra.sweeper.max_batch_size=2",), "sweep.until=ruled makes its own batches"),
    ],
)
def test_what_does_not_fit_together_is_refused(cli: CommandLine, given: tuple[str, ...], message: str) -> None:
    assert message in cli.refuse(*UNTIL, "seed=0,1", *given)
    assert not trained(cli)


def test_a_study_with_finished_trials_is_not_given_claims(cli: CommandLine) -> None:
    cli.run(*STUDY, "settings.lr=3", "seed=0")
    assert "outputs/rates has finished trials already" in cli.refuse(*UNTIL, "seed=range(9)")
