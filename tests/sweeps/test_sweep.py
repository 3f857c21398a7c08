"""Sweeps on the command line: `python -m stability.train --multirun`, each in a process of its own."""

import html
import json
import re
import shlex
import signal
import sqlite3
from contextlib import closing

import pytest

from stability.core.files import ERROR
from tests.support.commandline import CommandLine, ended, rows, wait_for
from tests.support.sweeps import FACTORS, LONG, trials

RESULTS = ("signals.csv", "validation.csv", "verdict.json", "config.yaml")


def results(cli: CommandLine, study: str = "single") -> dict[str, bytes]:
    """Return all results of a study's trials, without settings that change no result, such as their folder."""
    return {
        f"{name}/{file}": re.sub(rb"(study|experiment|outputs): .*", b"", (folder / file).read_bytes())
        for name, folder in trials(cli, study).items()
        for file in RESULTS
    }


@pytest.mark.slow
def test_a_sweep_that_was_killed_continues_with_the_same_results(cli: CommandLine) -> None:
    cli.run("--multirun", *FACTORS, *LONG, "study=undisturbed")
    begun = cli.folder / "outputs/single"
    for count, enough in ((1, 12), (3, 7)):  # killed in the first trial, and in the third
        process = cli.start("--multirun", *FACTORS, *LONG)

        def far(count: int = count, enough: int = enough) -> bool:
            tables = [*begun.glob("*/signals.csv")]
            return len(tables) >= count and len(rows(max(tables, key=lambda path: path.stat().st_ctime))) > enough

        wait_for(far, process)
        process.kill()
        process.communicate()
        assert len(trials(cli)) == count - 1
    finished = {folder: (folder / "verdict.json").stat().st_mtime_ns for folder in trials(cli).values()}
    assert len(finished) == 2
    out = cli.run("--multirun", *FACTORS, *LONG).out
    assert len(re.findall(r"^\[\d/4\] ", out, re.M)) == 2, "only what was not finished is trained"
    assert {folder: (folder / "verdict.json").stat().st_mtime_ns for folder in finished} == finished
    assert len(trials(cli)) == 4
    assert results(cli) == results(cli, "undisturbed")


def test_crashed_and_repeated_trials_stop_no_other_and_are_listed_at_the_end(cli: CommandLine) -> None:
    """All others are trained, and the same command then trains what is missing alone."""
    diverging = ("schedule.lr_max=0.005,5e-3,1e30", "schedule.warmup_steps=1", "optimizer.clip_norm=null")
    command = ("--multirun", "init_from=first.pt,null", *diverging)
    end = cli.run(*command, status=1)
    lines = end.out.splitlines()
    assert lines[0] == "2 configurations repeat an earlier one; each trial is trained once."
    assert lines[1] == "One seed does not show whether an effect is chance: give several, as in 'seed=range(3)'."
    assert any(re.match(r"\[\d/4\] non_finite  lr 1e30  init_from null  seed 0  PER \d", line) for line in lines)
    *grid, counts = lines[lines.index("") - 4 : lines.index("")]  # above the report
    cells = [["init_from", "lr", "0.005", "lr", "1e30"], ["first.pt", "1C", "1C"], ["null", "1U", "1N"]]
    assert [line.split() for line in grid] == cells
    assert sorted(counts.split("  ")) == ["C crashed 2", "N non_finite 1", "U undecided 1"]
    assert end.err.startswith("error: 2 trials have no verdict. Run the same command again")
    errors = sorted(cli.folder.glob(f"outputs/single/*/{ERROR}"))
    assert len(errors) == 2
    for path in errors:
        content = path.read_text()
        assert content.startswith("Traceback (most recent call last):")
        assert content.splitlines()[-1] == "There is no checkpoint at first.pt."
        assert f": There is no checkpoint at first.pt. ({path.relative_to(cli.folder)})\n" in end.err

    finished = [*trials(cli).values()]
    assert len(finished) == 2
    (cli.folder / "first.pt").write_bytes((finished[0] / "checkpoints/best.pt").read_bytes())
    assert "crashed" not in cli.run(*command).out
    assert len(trials(cli)) == 4
    assert not [*cli.folder.glob(f"outputs/single/*/{ERROR}")]


def test_the_three_tests_are_one_sweep_and_an_experiment_needs_no_multirun(cli: CommandLine) -> None:
    short = ("seed=0", "debug=fast", "steps=1", "batch_size=8")
    assert "[3/3]" in cli.run("experiment=test1,test2,test3", *short).out
    configs = [path.read_text() for path in cli.folder.glob("outputs/debug/*/config.yaml")]
    assert len(configs) == 3
    assert all("backend: none" in text and "- degraded" in text for text in configs)
    assert sum("white_noise_std: 0.25" in text for text in configs) == 1


def test_an_experiment_needs_a_known_name(cli: CommandLine) -> None:
    message = cli.refuse("--multirun", "experiment=diagnoses")
    assert "Could not find 'experiment/diagnoses'" in message
    assert message.endswith("test3\n"), "the last of those that there are"
    assert not (cli.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["hydra.sweeper.params.seed=0,1"], "Give seed=0,1, without hydra.sweeper.params."),
        (["seed=0,1", "sweep.claims=half.yaml"], "half.yaml is no list of claims"),
        (
            ["batch.size=64,2"],
            "1 of 2 configurations is invalid; no trial was started:\n"
            "  batch.size=2 is smaller than batch.days=4: each day needs at least one utterance in the batch.\n"
            "    batch.size=2\n",
        ),
        (["optimizer=offcial,oficial"], "\n  In 'config': Could not find 'optimizer/oficial'"),
        (
            ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "seed=0,1,2", "hydra.sweeper.n_trials=2"],
            "n_trials=2, but the grid has 3 combinations, and GridSampler would leave out 1: give",
        ),
        (["hydra/sweeper=optuna", "hydra.sweeper.trials=2"], "'hydra.sweeper.trials'"),
        (
            ["seed=0,x"],
            "seed=x Value 'x' of type 'str' could not be converted to Integer\n    seed=x\n",
        ),
        (["schedule.lr_max=0.1,1e39"], "schedule.lr_max=1e+39: float32 holds numbers of up to 3e+38"),
        (["seed=0,1", "hydra.sweep.subdir=one"], "Another trial has the folder outputs/single/one already"),
        (["seed=0,1", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size=0: give a whole number"),
    ],
)
def test_an_invalid_sweep_is_refused_before_anything_is_trained(
    cli: CommandLine, overrides: list[str], part: str
) -> None:
    (cli.folder / "half.yaml").write_text("a: 1")
    assert part in cli.refuse("--multirun", *overrides)
    assert not (cli.folder / "outputs").exists()


@pytest.mark.slow
def test_sweeps_that_run_at_once_do_not_disturb_each_other(cli: CommandLine) -> None:
    """Two studies in one fresh store, and one of them twice."""
    one = cli.start("--multirun", *FACTORS, *LONG, "tracking=mlflow", "study=one")
    other = cli.start("--multirun", *FACTORS, *LONG, "tracking=mlflow", "study=other")
    again = cli.start("--multirun", *FACTORS, *LONG, "tracking=mlflow", "study=other")
    ended(one, 0)
    for process in (other, again):
        out, err = process.communicate()
        assert "Traceback" not in out + err
        assert process.returncode == 0 or "another process is training it" in err
    assert len(trials(cli, "one")) == len(trials(cli, "other")) == 4
    assert results(cli, "one") == results(cli, "other")
    with closing(sqlite3.connect(cli.folder / "outputs/mlflow.db")) as store:
        runs = "SELECT experiments.name, runs.name, count(*) FROM runs JOIN experiments USING (experiment_id) "
        counted = store.execute(runs + "WHERE runs.name LIKE 'eps%' GROUP BY 1, 2").fetchall()
    assert {(study, name, 1) for study in ("one", "other") for name in trials(cli, study)} == {*counted}
    (cli.folder / "outputs/mlflow.db").rename(cli.folder / "elsewhere.db")
    cli.run("--multirun", *FACTORS, *LONG, "tracking=mlflow", "study=one")
    assert not (cli.folder / "outputs/mlflow.db").exists(), "of finished trials no store is asked"


@pytest.mark.slow
def test_a_trial_that_another_process_trains_is_listed(cli: CommandLine) -> None:
    endless = ("steps=1000000", "diagnosis=default")
    first = cli.start(*endless)
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/signals.csv")), first)
    end = cli.run("--multirun", "steps=12,1000000", status=1)
    assert "error: 1 trial has no verdict." in end.err
    assert "steps 1000000  seed 0: another process is training it" in end.err
    assert len(trials(cli)) == 1
    assert not [*cli.folder.glob(f"outputs/single/*/{ERROR}")]
    first.send_signal(signal.SIGINT)
    ended(first, 130)


def test_a_short_study_of_one_seed_rules_on_nothing_and_its_command_reproduces_it(cli: CommandLine) -> None:
    chosen = ("experiment=diagnosis", "hydra.sweeper.params.seed=0", "hydra.sweeper.params.aug=strong", "steps=3")
    out = cli.run("--multirun", *chosen).out
    assert "one of the 23 claims stated beforehand is about these trials" in out
    page = (cli.folder / "outputs/diagnosis/report.html").read_text()
    for folder in trials(cli, "diagnosis").values():
        advice = json.loads((folder / "verdict.json").read_text())["advice"]
        assert (
            advice == "The training ended within the warm-up, while the lr was still rising. Train beyond the warm-up."
        )
    assert "4 of 4 trials ended within the warm-up or after very few steps" in page
    assert "there, 1 of 1" not in page, "no cell is better than another"
    assert "refuted" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    longer, command = re.findall(r"python -m (stability\.train --multirun .*?)</pre>", page)
    program, *words = shlex.split(html.unescape(command))
    assert shlex.split(html.unescape(longer)) == [program, *(word for word in words if not word.startswith("steps="))]
    assert "4 trials: 4 done, 0 to resume, 0 new" in cli.run(*words, "sweep.dry_run=true").out
