"""Several runs, resumes and repeated steps in one log."""

import json
from pathlib import Path

import numpy as np
import pytest

from stability.diagnosis.history import CAPACITY
from stability.diagnosis.readers import read_log, read_runs
from tests.support.logs import losses, official, read


def test_the_last_of_several_runs_is_read(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text("Using device: cuda:0\n" + official(range(0, 1000, 200)) + official(range(0, 600, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [0, 200, 400]
    assert set(recording.signals["loss"]) == {7}
    assert recording.notes == ("The log holds 2 runs. The verdict is on the last one.",)


def test_a_resumed_training_replaces_what_it_repeats(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text(official(range(0, 1000, 200)) + official(range(600, 1400, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [*range(0, 1400, 200)]
    assert recording.signals["loss"].tolist() == [50, 50, 50, 7, 7, 7, 7]
    assert "The run resumed from step 600 after step 800" in recording.notes[0]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("order", ["descending", "shuffled"])
@pytest.mark.parametrize("rows", [12, 20_000])
def test_steps_in_no_order_are_sorted(tmp_path: Path, form: str, order: str, rows: int) -> None:
    steps = 10 * np.arange(rows)[::-1]
    if order == "shuffled":
        steps = np.random.default_rng(3).permutation(steps)
    recording = read(tmp_path, losses(steps.tolist(), form))
    kept = recording.signals.steps
    assert (np.diff(kept) > 0).all()
    places = np.argsort(steps)[kept // 10]
    np.testing.assert_array_equal(recording.signals["loss"], 10_000 + places)
    assert recording.notes[0] == "The steps are in no order: the rows were sorted by step."
    if rows < CAPACITY // 2:
        assert len(kept) == rows
        assert len(recording.notes) == 1
    else:
        assert len(kept) > CAPACITY // 2
        assert "The log is long" in recording.notes[1]


def test_many_resumes_are_one_note(tmp_path: Path) -> None:
    steps = [*range(0, 100, 10), *range(50, 150, 10), *range(120, 200, 10)]
    recording = read(tmp_path, losses(steps))
    assert recording.signals.steps.tolist() == [*range(0, 200, 10)]
    assert recording.notes == (
        "The run resumed 2 times, the last time from step 120 after step 140: later rows replace earlier ones.",
    )


def test_a_resume_in_a_long_log_replaces_what_it_repeats(tmp_path: Path) -> None:
    recording = read(tmp_path, losses([*range(20_000), *range(10_000, 15_000)]))
    signals = recording.signals
    assert signals.steps[-1] == 14_999
    assert (np.diff(signals.steps) > 0).all()
    np.testing.assert_array_equal(signals["loss"] >= 30_000, signals.steps >= 10_000)
    assert "The run resumed from step 10000 after step 19999" in recording.notes[0]


def test_the_later_of_two_rows_for_one_step_counts(tmp_path: Path) -> None:
    recording = read(tmp_path, losses([0, 1, 1, 1, 2]))
    assert recording.signals["loss"].tolist() == [10_000, 10_003, 10_004]
    assert recording.notes == ("Left out 2 values: the log has later ones for the same steps.",)


def test_the_metrics_of_a_step_may_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    rows = "".join(f'{{"step": {s}, "loss": {s}}}\n{{"step": {s}, "grad_norm": 1}}\n' for s in (0, 5, 10, 5, 10))
    recording = read(tmp_path, rows)
    assert recording.signals.steps.tolist() == [0, 5, 10]
    assert recording.signals.measured.all()
    assert len(recording.notes) == 1


def test_one_metric_after_the_other_is_no_restart(tmp_path: Path) -> None:
    rows = "".join(f'{{"step": {s}, "{name}": {s}}}\n' for name in ("loss", "grad_norm") for s in range(20))
    recording = read(tmp_path, rows)
    assert recording.signals.measured.all()
    assert recording.notes == ()


def test_every_run_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text(official(range(0, 1000, 200)) + official(range(0, 600, 200), loss=7))
    first, second = read_runs(log)
    assert (first.name, second.name) == ("training_log, run 1", "training_log, run 2")
    assert first.signals.steps.tolist() == [*range(0, 1000, 200)]
    assert second.signals["loss"].tolist() == [7, 7, 7]
    assert first.notes == ()


def test_epochs_that_begin_again_are_another_run(tmp_path: Path) -> None:
    log = tmp_path / "epochs.csv"
    for header in ("", "epoch,loss,val_loss\n"):
        log.write_text("epoch,loss,val_loss\n0,5,6\n1,4,5\n2,3,4\n" + header + "0,9,9\n1,8,8\n")
        first, second = read_runs(log)
        assert first.signals["loss"].tolist() == [5, 4, 3]
        assert second.signals["loss"].tolist() == [9, 8]
        assert second.signals.steps.tolist() == [0, 1]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_column_names_the_run(tmp_path: Path, form: str, mixed: bool) -> None:
    rows = [(run, step, loss - step) for run, loss in (("a", 9), ("b", 8)) for step in range(4)]
    if mixed:
        rows.sort(key=lambda row: row[1])
    log = tmp_path / "log"
    log.write_text(
        "run,step,loss\n" + "".join(f"{run},{step},{loss}\n" for run, step, loss in rows)
        if form == "csv"
        else "".join(json.dumps({"step": step, "loss": loss, "run": run}) + "\n" for run, step, loss in rows)
    )
    first, second = read_runs(log)
    assert (first.name, second.name) == ("log, run 1 (a)", "log, run 2 (b)")
    assert first.signals["loss"].tolist() == [9, 8, 7, 6]
    assert second.signals["loss"].tolist() == [8, 7, 6, 5]


def test_a_number_of_each_row_is_no_run(tmp_path: Path) -> None:
    recording = read(tmp_path, "trial,step,loss\n0,0,5\n1,10,4\n2,20,3\n")
    assert recording.signals["loss"].tolist() == [5, 4, 3]
