"""Sweeps, `python -m stability.train --multirun`, in processes of their own."""

import fcntl
import os
import pty
import re
import signal
import sqlite3
import struct
import sys
import termios
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from stability.core.files import ERROR
from stability.sweeps.sweep_trial import run_in_sweep
from tests.analysis.test_trials import write
from tests.support.commandline import CommandLine, ended, rows, wait_for
from tests.support.configs import composed
from tests.support.sweeps import FACTORS, LONG, trials

RESULTS = ("signals.csv", "validation.csv", "verdict.json", "config.yaml")


def results(cli: CommandLine, study: str = "single") -> dict[str, bytes]:
    """All that a study's trials gave; what is not a result, as where it is kept, is left out."""
    return {
        f"{name}/{file}": re.sub(rb"(study|experiment|outputs): .*", b"", (folder / file).read_bytes())
        for name, folder in trials(cli, study).items()
        for file in RESULTS
    }


@pytest.mark.slow
def test_a_killed_sweep_goes_on_as_if_nothing_had_been(cli: CommandLine) -> None:
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


def test_a_sweep_with_trials_that_crash_diverge_or_are_the_same(cli: CommandLine) -> None:
    """All are done; what is missing is told of at the end; and the same command goes on with that alone."""
    diverging = ("schedule.lr_max=0.005,5e-3,1e30", "schedule.warmup_steps=1", "optimizer.clip_norm=null")
    command = ("--multirun", "init_from=first.pt,null", *diverging)
    end = cli.run(*command, status=1)
    lines = end.out.splitlines()
    assert lines[0] == "2 configurations repeat an earlier one; each trial is trained once."
    assert lines[1] == "With only one seed no claim can be confirmed or refuted: give several, as in 'seed=range(3)'."
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


@pytest.mark.slow
def test_a_dry_run_tells_what_would_be_and_does_nothing(cli: CommandLine) -> None:
    command = ("--multirun", *FACTORS, "aug=strong,weak", "steps=100", "checkpoint_every=5")
    cli.run("--multirun", "optimizer=official", "aug=weak", "steps=100", "checkpoint_every=5")
    process = cli.start("--multirun", "optimizer=official", "aug=weak", "seed=1", "steps=100", "checkpoint_every=5")
    wait_for(lambda: len([*cli.folder.glob("outputs/single/*/checkpoints/last.pt")]) == 2, process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)
    before = sorted(cli.folder.rglob("outputs/single/*"))
    out = cli.run(*command, "sweep.dry_run=true").out
    assert sorted(cli.folder.rglob("outputs/single/*")) == before
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "epsilon noise seeds"
    assert re.fullmatch(r"0.1 0.25 seed 0: done, seed 1: resumes at step \d+", lines[2])
    assert [lines[1], *lines[3:5]] == [f"{cell} seed 0: new, seed 1: new" for cell in ("0.1 1", "1e-8 1", "1e-8 0.25")]
    assert lines[5] == "8 trials: 1 done, 1 to resume, 6 new"
    assert re.fullmatch(
        r"about \d+ (s|min|h) on this machine, one trial after another \(.* measured just now\)", lines[6]
    )
    assert len(lines) == 7
    out = cli.run(*command, "sweep.dry_run=true", "hydra/launcher=stacked").out
    expected = (
        r"about \d+ (s|min|h) on this machine, in stacks of up to 7 \(.* ms a step and trial, measured just now\)"
    )
    assert re.fullmatch(expected, out.splitlines()[-1])


def test_a_dry_run_of_one_trial_is_refused(cli: CommandLine) -> None:
    assert "sweep.dry_run=true needs --multirun" in cli.refuse("sweep.dry_run=true")
    assert not (cli.folder / "outputs").exists()


def test_an_experiment_is_a_sweep_and_has_its_name(cli: CommandLine) -> None:
    assert "An experiment is a sweep: give --multirun with it." in cli.refuse("experiment=diagnosis")
    message = cli.refuse("--multirun", "experiment=diagnoses")
    assert "Could not find 'experiment/diagnoses'" in message
    assert message.endswith("test3\n"), "the last of those that there are"
    assert not (cli.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
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
    cli: CommandLine, overrides: list[str], told: str
) -> None:
    (cli.folder / "half.yaml").write_text("a: 1")
    assert told in cli.refuse("--multirun", *overrides)
    assert not (cli.folder / "outputs").exists()


@pytest.mark.slow
def test_two_sweeps_at_once_do_not_disturb_each_other(cli: CommandLine) -> None:
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
def test_a_trial_that_another_process_trains_is_told_of(cli: CommandLine) -> None:
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


SEARCH = ("--multirun", "experiment=search", "steps=30", "checkpoint_every=5", "batch.size=8")


def search_states(cli: CommandLine) -> list[tuple[str, dict[str, float], float | None]]:
    storage = f"sqlite:///{cli.folder}/outputs/search/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return [(trial.state.name, trial.params, trial.value) for trial in study.trials]


def test_a_search_makes_the_per_of_stable_trials_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stability.trials.scheduler", None)  # PyTorch, which finished trials do not need
    cfg = OmegaConf.structured(composed("tracking=none"))
    for outcome, objective in {"stable": 0.25, "slow": 1.0, "exploded": 1.0}.items():
        folder = write(tmp_path / outcome, outcome=outcome, per=[0.9, 0.25])
        (folder / "run.png").touch()
        assert run_in_sweep(cfg, folder) == objective


@pytest.mark.slow
def test_a_killed_search_goes_on_to_its_total_and_no_further(cli: CommandLine) -> None:
    """The three are chosen at once, and trained one after another when it is killed in the second."""
    process = cli.start(*SEARCH, "hydra.sweeper.n_trials=3", "hydra.launcher.size=1")
    wait_for(lambda: len([*cli.folder.glob("outputs/search/*/checkpoints/last.pt")]) == 2, process)
    process.kill()
    process.communicate()
    cli.run(*SEARCH, "hydra.sweeper.n_trials=3")
    states = search_states(cli)
    assert [state for state, _, _ in states].count("COMPLETE") == 3
    assert [state for state, _, _ in states if state != "COMPLETE"] in ([], 3 * ["FAIL"])
    for state, params, _ in states:
        assert state == "COMPLETE" or params in [p for s, p, _ in states if s == "COMPLETE"], "what was half done is"
    assert len(trials(cli, "search")) == 3
    assert all(value == 1.0 for _, _, value in states if value is not None), "none of them is stable"
    out = cli.run(*SEARCH, "hydra.sweeper.n_trials=3").out
    assert "The search already has 3 trials" in out
    assert len(search_states(cli)) == len(states)
    out = cli.run(*SEARCH, "hydra.sweeper.n_trials=5", "sweep.dry_run=true").out
    assert "The sweeper chooses 5 trials while it runs: 3 done, 2 to do" in out
    assert len(search_states(cli)) == len(states)


@pytest.mark.slow
def test_a_search_counts_what_crashed_as_not_done(cli: CommandLine) -> None:
    end = cli.run(*SEARCH, "hydra.sweeper.n_trials=2", "init_from=nowhere.pt", status=1)
    assert end.err.count("There is no checkpoint at nowhere.pt.") == 2
    assert [state for state, _, _ in search_states(cli)] == ["FAIL", "FAIL"]


@pytest.mark.slow
def test_a_terminal_shows_the_verdicts_so_far(cli: CommandLine) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    many = ("steps=100", "schedule.lr_max=0.005,0.002")
    process = cli.start("--multirun", *FACTORS, *many, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while some := os.read(ours, 1 << 16):
            seen += some
    except OSError:
        pass  # how Linux says that the other side was closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    assert any(re.fullmatch(r"about \d+ (s|min) left [━╸╺]+ +\d/8", line) for line in lines)
    assert any(re.fullmatch(r"epsilon [\de.-]+ +lr [\d.]+ +seed \d [━╸╺]+ +\d+/100", line) for line in lines)
    assert any(re.search(r"^0\.005 .*\d·", line) for line in lines), "a cell with trials to do"
    assert any(re.fullmatch(r"\[8/8\] \w+  epsilon .* PER .* s", line) for line in lines)
    (counts,) = [line for line in lines[-6:] if re.fullmatch(r"(\w \w+ \d+ *)+", line)]  # above the report
    assert sum(map(int, re.findall(r"\d+", counts))) == 8, counts
