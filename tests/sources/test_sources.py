"""The report on runs that exist already: each kind of source, several together, and what is said of bad ones."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from stability.analysis.claims import read_claims
from stability.analysis.effects import effects
from stability.analysis.rulings import rule
from stability.core.errors import StabilityError
from stability.report import main
from stability.reporting.limits import limits
from stability.reporting.page import Report, write_report
from stability.reporting.summary import summarize_grid
from stability.sources import read_sources, task
from tests.support import runs as made
from tests.support.mlflow_runs import store_uri
from tests.support.runs import MadeRun, grid, rows, write_csv, write_jobs, write_log, write_table

_MAKERS: dict[str, Callable[[Path], Path]] = {
    "a table": lambda folder: write_table(folder, grid()),
    "Hydra's jobs": lambda folder: write_jobs(folder / "multirun", grid()),
    "charts of W&B": lambda folder: made.write_charts(folder / "wandb", grid()),
    "TensorBoard with hparams": lambda folder: made.write_events(folder / "tb", grid(), hparams=True),
    "TensorBoard by names": lambda folder: made.write_events(folder / "tb", grid(), hparams=False),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the same runs."""
    uri = store_uri(tmp_path_factory.mktemp("store"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.log_to_mlflow(uri, "speech", grid())
    return uri


def assert_names_the_pair(report: Report) -> None:
    first, second, third = report.sentences
    assert first.startswith("6 of 24 trials are unhealthy (6 exploded); the pair of ")
    assert first.endswith("lr has the largest effect on this.") or first.endswith("opt has the largest effect on this.")
    assert "from 100% to 0% at" in second
    assert "6 quadruples of trials with 6 seeds (sign-flip, exact: p = 0.031" in third
    page = report.page.read_text()
    assert all(note in page for note in report.notes)
    assert "WER" in page
    assert "PER" not in page.replace("PERmission", "")


@pytest.mark.parametrize("kind", _MAKERS)
def test_each_kind_of_source_has_the_same_trials(tmp_path: Path, kind: str) -> None:
    found = read_sources([_MAKERS[kind](tmp_path)])
    (lr, opt) = sorted(found.factors, key=lambda name: "lr" not in name)
    assert (found.factors[lr], found.factors[opt]) == ((0.1, 3.0), ("adam", "sgd"))
    assert len(found.trials) == 24
    for trial in found.trials:
        explodes = trial.factors[lr] == 3 and trial.factors[opt] == "sgd"
        assert (trial.outcome == "exploded") == explodes == (not trial.healthy)
        assert trial.per == pytest.approx(1.0 if explodes else 0.1)
        assert (trial.metric, trial.steps, trial.ours) == ("WER", None, False)
    assert {trial.seed for trial in found.trials} == {*range(6)}


def test_a_hydra_app_has_its_page(tmp_path: Path) -> None:
    assert_names_the_pair(write_report([write_jobs(tmp_path / "multirun", grid())], claims=None))


def test_an_mlflow_experiment_gives_the_same_answer(tmp_path: Path, store: str) -> None:
    report = write_report(["mlflow:speech"], claims=None, out=tmp_path / "page.html", uri=store)
    assert_names_the_pair(report)
    page = report.page.read_text()
    assert 'href="http://127.0.0.1:5000/#/experiments/1/runs/' in page
    assert f"python -m stability.report mlflow:speech --uri {store}" in page


def test_the_command_line_takes_several_sources_and_says_what_they_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, grid(seed=range(6, 10)))
    assert main(["mlflow:speech", "runs.csv", "--uri", store]) == 0
    output = capsys.readouterr().out
    assert "12 of 40 trials are unhealthy" not in output
    assert "10 of 40 trials are unhealthy (10 exploded)" in output
    assert (
        "\n- Not recorded, and so not compared: the length of the plateau, which needs the frame information.\n"
        in output
    )
    assert output.splitlines()[-1] == "report-speech.html"
    assert main(["runs.csv", "--where", "opt=sgd"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report-opt-sgd.html"


def test_claims_are_ruled_on(tmp_path: Path) -> None:
    table = write_table(tmp_path, grid())
    (tmp_path / "claims.yaml").write_text(
        "- {id: rate, claim: A large rate explodes., source: me, where: {opt: sgd}, compare: {lr: [0.1, 3.0]},\n"
        "   response: healthy, expect: lower}\n"
    )
    (ruling,) = rule(read_claims(tmp_path / "claims.yaml"), read_sources([table]))
    assert (ruling.ruling, ruling.seeds, ruling.effect) == ("confirmed", 6, -1)


def notes_of(source: Path) -> list[str]:
    found = read_sources([source])
    return limits(found, effects(found))


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    found = grid(seed=[0])
    runs = [MadeRun({**run.settings, "warmup": 10 * run.settings["lr"]}, run.rows) for run in found]
    for run in runs:
        del run.settings["seed"]
    notes = notes_of(write_table(tmp_path / "a", runs))
    assert [note.partition(",")[0] for note in notes] == [
        "No setting is known as the seed",
        "warmup always changes with lr: their effects cannot be told apart",
        "Each combination of settings has one run",
        "Not recorded",
    ]
    unbalanced = notes_of(write_table(tmp_path / "b", grid()[:20]))
    assert unbalanced[0] == (
        "The runs are unbalanced: a combination has from 2 to 6 runs. Effects compare only runs that differ in one "
        "factor."
    )
    diagonal = [run for run in grid() if (run.settings["lr"] == 0.1) == (run.settings["opt"] == "adam")]
    assert "opt always changes with lr" in notes_of(write_table(tmp_path / "c", diagonal))[0]


def test_without_error_rates_nothing_wrong_counts_as_healthy(tmp_path: Path) -> None:
    runs = [MadeRun(run.settings, [(*row[:3], None) for row in run.rows]) for run in grid()]
    found = read_sources([write_table(tmp_path, runs)])
    measured = effects(found)
    assert summarize_grid(found, measured, [])[0].startswith("6 of 24 trials are unhealthy (6 exploded)")
    assert (
        limits(found, measured)[-1] == "Without an error rate, a run counts as healthy if nothing was seen to be wrong."
    )


def test_runs_without_a_log_are_listed_with_the_reason(tmp_path: Path) -> None:
    table = write_table(tmp_path, grid())
    logs = sorted((tmp_path / "logs").iterdir())
    logs[0].unlink()
    logs[1].write_text("")
    logs[2].write_text("alpha,beta\n1,2\n")
    logs[3].write_text("step,loss\n0,1\n1,what\n")
    found = read_sources([table])
    assert len(found.trials) == 20
    assert [reason for _, reason in found.left_out] == [
        "its log does not exist",
        "its log is empty",
        "its log contains no training that can be read: no loss or gradient norm was found. It has these names: alpha, "
        "beta. Explain other names with --map, such as --map loss=train_loss_avg",
        "its log, line 3: column 'loss': expected a number or nothing, found 'what'",
    ]


def test_jobs_without_a_log_are_listed_with_one_reason(tmp_path: Path) -> None:
    folder = write_jobs(tmp_path / "multirun", grid())
    for job in (folder / "2026-11-29" / "10-11-12").glob("[01]"):
        (job / "metrics.csv").unlink()
    assert [reason for _, reason in read_sources([folder]).left_out] == ["train.log is empty"] * 2


def test_an_experiment_of_two_programs_is_reported_on_the_larger_one(tmp_path: Path, store: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.log_to_mlflow(store, "mixed", grid(seed=[0, 1]))
        made.log_to_mlflow(store, "mixed", [MadeRun({"trees": n, "depth": 3}, rows(n)) for n in range(3)])
    found = read_sources(["mlflow:mixed"], uri=store)
    assert len(found.trials) == 8
    assert {reason for _, reason in found.left_out} == {
        "of another program: it has 0 settings of the other runs, and 2 of its own"
    }
    assert len(read_sources(["mlflow:mixed"], uri=store, named=["trees"]).trials) == 3


def test_histories_of_wandb_may_be_files_of_their_own(tmp_path: Path) -> None:
    runs = grid()
    (tmp_path / "wb" / "histories").mkdir(parents=True)
    cells = ([run.name, repr({**run.settings, "_wandb": {}}), repr({"train/loss": 1.0})] for run in runs)
    table = write_csv(tmp_path / "wb" / "project.csv", ["name", "config", "summary"], cells)
    for run in runs[1:]:
        write_log(tmp_path / "wb" / "histories" / f"{run.name}.csv", run)
    found = read_sources([table])
    assert found.factors == {"lr": (0.1, 3.0), "opt": ("adam", "sgd")}
    assert len(found.trials) == 23
    assert found.left_out[0][1].startswith("no history of it was exported: put")


def test_settings_may_be_in_a_file_beside_the_log(tmp_path: Path) -> None:
    for number, run in enumerate(grid()):
        write_log(tmp_path / "logs" / f"version_{number}" / "metrics.csv", run)
        (tmp_path / "logs" / f"version_{number}" / "hparams.yaml").write_text(
            "".join(f"{name}: {level}\n" for name, level in run.settings.items())
        )
    assert read_sources([tmp_path]).factors == {"lr": (0.1, 3.0), "opt": ("adam", "sgd")}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "lr,log\n", "a.csv has no rows: give a header, and a row for each run."),
        ("a.csv", "lr,log\n1,x\n", "no row names a log that is there; log is x in the first one"),
        ("a.csv", "lr,seed\n1,2\n", "no row names a log that is there. Give each run a row"),
        ("a.csv", "lr,log\n1\n", "a.csv, line 2: expected 2 cells, as in the header, found 1."),
        ("a.csv", "lr,lr,log\n1,2,x\n", "a.csv has more than one column lr."),
        ("a.txt", "x", "a.txt is no table of runs: give the folder of a study"),
        ("sub/notes.md", "x", "There are no runs in .*: no trial, no job of a Hydra app, no log"),
    ],
)
def test_bad_sources_are_refused_in_one_message(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(StabilityError, match=message):
        read_sources([tmp_path if "/" in name else tmp_path / name])


def write_rows(folder: Path, runs: Sequence[MadeRun], settings: Callable[[int, MadeRun], Mapping[str, Any]]) -> Path:
    """Write a table with other settings than those of the runs, and the logs beside it."""
    for number, run in enumerate(runs):
        write_log(folder / "logs" / f"{number}.csv", run)
    made = [{**settings(number, run), "log": f"logs/{number}.csv"} for number, run in enumerate(runs)]
    names = [*dict.fromkeys(name for row in made for name in row)]
    return write_csv(folder / "runs.csv", names, ([row.get(name) for name in names] for row in made))


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ((1, 10**400), (1, f"1{'0' * 29}… {crc32(b'1' + b'0' * 400):08x}")),
        (("", "nan"), ("nan", None)),
        (("[1, 2, [3, null]]", "[1, 2]"), ((1, 2), (1, 2, (3, None)))),
        (("[" * 5000, "b"), (f"{'[' * 30}… {crc32(b'[' * 5000):08x}", "b")),
        ((0.1, "auto"), (0.1, "auto")),
        (("None", "True"), (None, True)),
    ],
)
def test_any_values_make_a_factor(tmp_path: Path, levels: tuple[Any, Any], found: tuple[Any, Any]) -> None:
    table = write_rows(
        tmp_path,
        grid(seed=[0, 1]),
        lambda _, run: {"opt": run.settings["opt"], "seed": run.settings["seed"], "x": levels[run.settings["lr"] > 1]},
    )
    assert read_sources([table]).factors == {"opt": ("adam", "sgd"), "x": found}


def test_odd_names_and_long_values_have_a_page(tmp_path: Path) -> None:
    name, levels = "lr $\\alpha$ <script>", ("long " * 400 + "a", "long " * 400 + "b")
    table = write_rows(
        tmp_path,
        grid(seed=[0, 1]),
        lambda _, run: {name: levels[run.settings["lr"] > 1], "opt": run.settings["opt"], "seed": run.settings["seed"]},
    )
    report = write_report([table], claims=None)
    assert [*report.factors] == [name, "opt", "seed"]
    assert len({*report.factors[name]}) == 2
    assert max(map(len, report.factors[name])) <= 40
    assert "<script>" not in report.page.read_text()


def test_some_runs_of_another_program_are_left_out_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    others = [MadeRun({"trees": n, "depth": 3}, rows(n)) for n in range(3)]
    write_rows(tmp_path, [*grid(seed=[0, 1]), *others], lambda _, run: run.settings)
    assert main(["runs.csv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 of 8 trials are unhealthy")
    assert printed[-2] == (
        "- Left out: 3 runs, such as 8.csv: of another program: it has 0 settings of the other runs, and 2 of its own."
    )


def test_rows_that_share_a_log_or_name_none_are_left_out(tmp_path: Path) -> None:
    table = write_table(tmp_path, grid(seed=[0, 1]))
    shared, copy, *rest = table.read_text().splitlines()[1:]
    others = [
        f"shared,9,adam,0,{shared.split(',')[-1]}",
        "nothing,1,adam,5,",
        f"long,1,adam,6,{'z' * 5000}",
        "nul,1,adam,7,\0",
    ]
    table.write_text("\n".join(["run,lr,opt,seed,log", shared, copy, copy, *rest, *others]))
    found = read_sources([table])
    assert len(found.trials) == 7
    assert [(path.name, reason) for path, reason in found.left_out] == [
        (f"{shared.split(',')[0]}.csv", "its log is that of other rows, too, and does not say whose it is"),
        (f"{shared.split(',')[0]}.csv", "its log is that of other rows, too, and does not say whose it is"),
        ("nothing", "its row names no log"),
        ("long", "its log does not exist"),
        ("nul", "its log does not exist"),
    ]


def test_columns_in_which_rows_are_numbered_are_no_settings(tmp_path: Path) -> None:
    table = write_rows(
        tmp_path, grid(seed=[0, 1]), lambda number, run: {"": number, **run.settings, "Unnamed: 0": number}
    )
    assert [*read_sources([table]).factors] == ["lr", "opt"]


def test_runs_of_which_none_can_be_judged_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, grid(seed=[0]))
    for log in (tmp_path / "logs").iterdir():
        log.write_text("alpha,beta\n1,2\n")
    assert main(["runs.csv"]) == 1
    assert capsys.readouterr().err == (
        "error: None of 4 runs in runs.csv can be judged. 4 of them, such as lr0.1-optadam-seed0.csv: its log contains "
        "no training that can be read: no loss or gradient norm was found. It has these names: alpha, beta. Explain "
        "other names with --map, such as --map loss=train_loss_avg.\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.log_to_mlflow(store, "alphas", [MadeRun({"lr": n}, [(n, 1, 2, 3)]) for n in range(2)], ("alpha", "b", "c"))
    assert main(["mlflow:alphas", "--uri", store]) == 1
    assert capsys.readouterr().err.endswith(
        ": it has no metric that is known as a training loss or gradient norm, but alpha, b, c. Explain them with "
        "--map, such as --map loss=alpha.\n"
    )
    assert len(read_sources(["mlflow:alphas"], uri=store, names={"loss": "alpha"}).trials) == 2
    assert main(["mlflow:speech", "--uri", "foo://bar"]) == 1
    assert capsys.readouterr().err.startswith("error: --uri=foo://bar is not a store.")


def test_a_missing_experiment_or_store_is_refused(tmp_path: Path, store: str) -> None:
    with pytest.raises(StabilityError, match=r"mlflow:speach: there is no such experiment; the nearest is speech"):
        read_sources(["mlflow:speach"], uri=store)
    with pytest.raises(StabilityError, match=r"There is no MLflow store at .*no.db. Give it with --uri."):
        read_sources(["mlflow:speech"], uri=f"sqlite:///{tmp_path / 'no.db'}")
    (tmp_path / "text.db").write_text("hello " * 100)
    with pytest.raises(StabilityError, match=r"Cannot read experiment speech from .*: file is not a database"):
        read_sources(["mlflow:speech"], uri=f"sqlite:///{tmp_path / 'text.db'}")


def test_many_runs_are_shared_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path, grid(seed=[0]))
    (tmp_path / "logs" / "lr0.1-optadam-seed0.csv").unlink()
    alone = read_sources([table])
    monkeypatch.setattr(task, "MANY", 4)
    assert repr(read_sources([table])) == repr(alone)
