"""Charts of Weights & Biases."""

from pathlib import Path

import pytest

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
