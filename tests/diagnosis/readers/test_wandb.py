"""Charts of Weights & Biases."""

import json
import math
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_runs


def test_each_run_of_a_chart_is_read(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text(
        '"Step","a - b - train/loss","a - b - train/loss__MIN","a - b - train/loss__MAX","c - train/loss"\n'
        '"0","5","1","9","7"\n"10","4","1","9",""\n"20","","","","6"\n'
    )
    first, second = read_runs(log)
    assert (first.name, second.name) == ("chart.csv, run 1 (a - b)", "chart.csv, run 2 (c)")
    assert first.signals["loss"].tolist() == [5, 4]
    assert second.signals.steps.tolist() == [0, 20]


def test_a_held_out_loss_of_one_run(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text("Step,a - eval/loss,a - eval/wer\n0,5,0.9\n10,4,0.8\n")
    (run,) = read_runs(log)
    assert run.name == "chart.csv"
    assert run.validation["loss"].tolist() == [5, 4]
    assert run.validation["per"].tolist() == pytest.approx([0.9, 0.8])


def test_charts_of_the_same_runs_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("Step,a - val/wer,a - val/wer__MIN\n5,0.9,0\n15,0.8,0\n")
    (tmp_path / "2.csv").write_text("Step,a - loss,b - loss\n" + "".join(f"{n},{9 - n},{8 - n}\n" for n in range(7)))
    (tmp_path / "3.csv").write_text("Step,b - lr,a - lr\n0,1,2\n3,2,3\n")
    (tmp_path / "4.csv").write_text("Step,a - gpu,b - gpu\n0,1,2\n3,2,3\n")
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert ({*first.signals.names}, {*second.signals.names}) == ({"loss", "lr"}, {"loss", "lr"})
    assert first.signals.steps.tolist() == second.signals.steps.tolist() == [*range(7)]
    assert first.validation.steps.tolist() == [5, 15]
    assert second.validation.names == ()


def test_charts_are_not_put_together_over_different_axes(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("Step,a - loss\n0,5\n1,4\n")
    (tmp_path / "2.csv").write_text("trainer/global_step,a - val/wer\n50,0.9\n100,0.8\n")
    first, second = read_runs(tmp_path)
    assert (first.signals.names, first.validation.names) == (("loss",), ())
    assert (second.signals.names, second.validation.names) == ((), ("per",))


def test_other_runs_of_the_same_name_stay_runs_of_their_own(tmp_path: Path) -> None:
    for name, loss in (("1.csv", 5), ("2.csv", 7)):
        (tmp_path / name).write_text(f"Step,a - loss\n0,{loss}\n1,{loss - 1}\n")
    (tmp_path / "3.csv").write_text("Step,a - lr\n0,1\n1,2\n")
    first, second = read_runs(tmp_path)
    assert (first.signals["loss"].tolist(), second.signals["loss"].tolist()) == ([5, 4], [7, 6])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_history_of_a_run(tmp_path: Path, form: str) -> None:
    log = tmp_path / f"history.{form}"
    rows: list[dict[str, float | str | None]] = [
        {
            "_step": 0,
            "_runtime": 1.5,
            "_timestamp": 1.7e9,
            "train/loss": 5.5,
            "train/global_step": 10,
            "eval/wer": None,
        },
        {
            "_step": 1,
            "_runtime": 2.5,
            "_timestamp": 1.7e9,
            "train/loss": None,
            "train/global_step": 10,
            "eval/wer": 0.9,
        },
        {
            "_step": 2,
            "_runtime": 3.5,
            "_timestamp": 1.7e9,
            "train/loss": "NaN",
            "train/global_step": 20,
            "eval/wer": None,
        },
    ]
    lines = [",".join(["", *rows[0]])] + [
        ",".join([str(n), *("" if cell is None else str(cell) for cell in row.values())]) for n, row in enumerate(rows)
    ]
    log.write_text(json.dumps(rows) if form == "json" else "\n".join(lines))
    (run,) = read_runs(log)
    assert run.signals.steps.tolist() == [10, 20]
    assert run.signals["loss"].tolist() == pytest.approx([5.5, math.nan], nan_ok=True)
    assert run.validation.steps.tolist() == [10]
    assert run.metric == "WER"


def test_a_chart_over_epochs(tmp_path: Path) -> None:
    log = tmp_path / "chart.csv"
    log.write_text("epoch,a - eval/loss,b - eval/loss\n1,5,6\n2,4,5\n")
    first, second = read_runs(log)
    assert (first.unit, second.unit) == ("epoch", "epoch")
    assert second.validation.steps.tolist() == [1, 2]


@pytest.mark.parametrize(
    "header", ["Name,State,Notes,User,Tags,Created,Runtime,loss", "Start Time,Duration,Run ID,Name,Status,loss"]
)
def test_a_table_of_runs_is_refused(tmp_path: Path, header: str) -> None:
    log = tmp_path / "runs.csv"
    log.write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(StabilityError, match="is a table of runs, with a row per run"):
        read_runs(log)
