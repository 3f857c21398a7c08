"""Logs of other projects: whatever their size and shape, they are read, or one message says why not."""

import csv
import json
import math
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.history import CAPACITY
from stability.diagnosis.readers.logs import Recording, from_metrics, read_log
from stability.diagnosis.verdict import judge


def read(folder: Path, text: str | bytes) -> Recording:
    log = folder / "log"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(log)


def losses(steps: Sequence[int], form: str = "csv") -> str:
    """A log whose loss is 10,000 plus its row's number."""
    rows = [(step, 10_000 + row) for row, step in enumerate(steps)]
    if form == "csv":
        return "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in rows)
    return "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nothing of the kind\n" * 5, "holds no training that could be read"),
        ("\x00\xff\n", "holds no training that could be read"),
        ("step,accuracy\n1,2\n", "holds no training that could be read"),
        ("step,loss\n1,2\n2,three\n3,4\n", "line 3: column 'loss': expected a number or nothing, found 'three'"),
        ("step,loss\n1,2\n2.5,3\n3,4\n", "line 3: column 'step': expected a whole number, found '2.5'"),
        ("step,loss\n1,2\ninf,3\n3,4\n", "line 3: column 'step': expected a whole number, found 'inf'"),
        ("step,loss\n1,2\n1e300,3\n3,4\n", "line 3: column 'step': expected a whole number"),
        ("step,loss\n1,2\n2,3,4\n3,4\n", "line 3: expected 2 cells, as in the header, found 3"),
        ("step;loss\n1;2\n2;3,5\n3;4\n", "line 3: column 'loss': expected a number or nothing, found '3,5'"),
        ('{"step": "one", "loss": 2}\n', "line 1: column 'step': expected a number or nothing, found 'one'"),
        ('{"step": 1, "loss": 2}\n[1, 2]\n', "line 2: expected an object"),
        ('{"step": 1, "loss": 2}\n' + "[" * 100_000 + "\n", "line 2: expected an object"),
        ("step,loss\n,\n", "holds no training that could be read"),
        ("step,per\n1,0.5\n", "holds no training that could be read"),
        ('{"step": 1, "loss": 2}\nnot json\n{"step": 2, "loss": 2}\n', "line 2: expected an object"),
    ],
)
def test_a_log_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    with pytest.raises(StabilityError, match=message):
        read_log(log)


def official(steps: range, loss: float = 50.0) -> str:
    return "".join(
        f"2025-11-06 01:34:20,425: Train batch {step}: loss: {loss:.2f} grad norm: 48.85 time: 0.555\n"
        for step in steps
    )


def test_the_last_of_several_starts_is_read(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text("Using device: cuda:0\n" + official(range(0, 1000, 200)) + official(range(0, 600, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [0, 200, 400]
    assert set(recording.signals["loss"]) == {7}
    assert recording.notes == ("The log holds 2 starts; the last is judged.",)


def test_a_resumed_training_replaces_what_it_repeats(tmp_path: Path) -> None:
    log = tmp_path / "training_log"
    log.write_text(official(range(0, 1000, 200)) + official(range(600, 1400, 200), loss=7))
    recording = read_log(log)
    assert recording.signals.steps.tolist() == [*range(0, 1400, 200)]
    assert recording.signals["loss"].tolist() == [50, 50, 50, 7, 7, 7, 7]
    assert "Resumed from step 600 after step 800" in recording.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        official(range(0, 600, 200)) + "2025-11-06 01:34:20,425: Train batch 600: lo",
        "Step,train/loss,grad_norm\n0,50,48.85\n200,50,48.85\n400,50,48.85\n600,",
        "".join(f'{{"global_step": {s}, "loss": 50, "grad_norm": 48.85}}\n' for s in (0, 200, 400)) + '{"global_st',
    ],
)
def test_a_line_cut_off_is_left_out(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    signals = read_log(log).signals
    assert signals.steps.tolist() == [0, 200, 400]
    assert signals["loss"].tolist() == [50] * 3


def test_gaps_and_names_of_other_projects(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    rows: list[dict[str, object]] = [
        {"step": 0, "train/loss": 9.5, "lr": 0.1, "message": "hello"},
        {"step": 10, "eval/loss": 8.0, "val_per": 0.7},
        {"step": 20, "train/loss": 7.5},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recording = read_log(log)
    assert recording.signals.names == ("loss", "lr")
    assert recording.signals.measured.tolist() == [[True, True], [True, False]]
    assert recording.validation["loss"].tolist() == [8]
    assert recording.validation["per"].tolist() == pytest.approx([0.7])


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
    assert recording.notes[0] == "The steps are in no order: the rows were sorted."
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
    assert recording.notes == ("Resumed 2 times, at last from step 120 after step 140: what came later is judged.",)


def test_a_resume_in_a_long_log_replaces_what_it_repeats(tmp_path: Path) -> None:
    recording = read(tmp_path, losses([*range(20_000), *range(10_000, 15_000)]))
    signals = recording.signals
    assert signals.steps[-1] == 14_999
    assert (np.diff(signals.steps) > 0).all()
    np.testing.assert_array_equal(signals["loss"] >= 30_000, signals.steps >= 10_000)
    assert "Resumed from step 10000 after step 19999" in recording.notes[0]


def test_of_a_repeated_step_the_later_row_counts(tmp_path: Path) -> None:
    recording = read(tmp_path, losses([0, 1, 1, 1, 2]))
    assert recording.signals["loss"].tolist() == [10_000, 10_003, 10_004]
    assert recording.notes == ("2 values logged again for the same step: later ones count.",)


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


def test_rows_without_steps_are_numbered(tmp_path: Path) -> None:
    for text in ("loss\n5\n4\n3\n", "epoch,loss\n0,5\n0,4\n1,3\n", '{"loss": 5}\n{"loss": 4}\n{"loss": 3}\n'):
        recording = read(tmp_path, text)
        assert recording.signals.steps.tolist() == [0, 1, 2]
        assert recording.signals["loss"].tolist() == [5, 4, 3]
        assert recording.notes == ("There are no steps: the rows are taken as steps 0, 1, 2, …",)


def test_steps_that_are_floats_negative_or_missing(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss\n-1,9\n0.0,5\n,7\n100.0,4\nnan,7\n2e2,3\n")
    assert recording.signals.steps.tolist() == [0, 100, 200]
    assert recording.signals["loss"].tolist() == [5, 4, 3]
    assert recording.notes == ("2 rows without a step left out.", "1 row with a negative step left out.")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffstep,loss,grad_norm\n0,5,1\n10,4,2\n".encode(),
        b"step,loss,grad_norm\r\n0,5,1\r\n10,4,2\r\n",
        b"step;loss;grad_norm\n0;5;1\n10;4;2\n",
        b"step\tloss\tgrad_norm\n0\t5\t1\n10\t4\t2\n",
        b'"step","loss","grad_norm","a ""note"", quoted"\n"0","5","1","x, y"\n10,4,2,\n',
        b'"a, b";"step";"loss";"grad_norm"\nx;0;5;1\ny;10;4;2\n',
        b"\n\n Step , Train/Loss , grad_norm \n\n 0 , 5 , 1 \n\n 10 , 4 , 2 \n\n",
        "step,loss,grad_norm\n0,5,1\n10,4,2".encode("utf-16"),
        b"batch,global_step,loss,grad_norm,train/per\n0,0,5,1,1\n0,10,4,2,1\n",
    ],
)
def test_csv_in_other_spellings(tmp_path: Path, text: bytes) -> None:
    recording = read(tmp_path, text)
    assert recording.signals.names == ("loss", "grad_norm")
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.signals.values.tolist() == [[5, 1], [4, 2]]
    assert not len(recording.validation.steps)
    assert recording.notes == ()


def test_thousands_of_columns(tmp_path: Path) -> None:
    log = tmp_path / "wide.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"layer.{i}" for i in range(5000)), "step", "loss"])
        writer.writerows([*([0.5] * 5000), step, 5 - step] for step in range(5))
    assert read_log(log).signals["loss"].tolist() == [5, 4, 3, 2, 1]
    rows = [{**{f"layer.{i}": 0.5 for i in range(5000)}, "step": step, "loss": 5 - step} for step in range(5)]
    assert read(tmp_path, "\n".join(map(json.dumps, rows))).signals["loss"].tolist() == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("spelling", ["inf", "Infinity", "NaN", "nan(ind)", "-nan(ind)", "-inf", "+INF", "-Infinity"])
@pytest.mark.parametrize(
    "form", ["step,loss,lr\n0,5,1\n1,{},1\n", '{{"step": 0, "loss": 5}}\n{{"step": 1, "loss": {}}}\n']
)
def test_what_is_not_finite_in_any_spelling(tmp_path: Path, spelling: str, form: str) -> None:
    value = float(read(tmp_path, form.format(spelling)).signals["loss"][1])
    assert math.isnan(value) if "nan" in spelling.lower() else value == float(spelling)


def test_what_is_finite_stays_finite(tmp_path: Path) -> None:
    loss = read(tmp_path, "step,loss\n0,1e300\n1,-1e300\n2,1e400\n").signals["loss"]
    assert np.isfinite(loss).tolist() == [True, True, False]
    assert not np.isfinite(read(tmp_path, f'{{"step": 0, "loss": 1{"0" * 400}}}\n').signals["loss"][0])


def test_nan_from_the_first_step_and_a_single_step(tmp_path: Path) -> None:
    for text, step in (("step,loss\n5,nan\n6,nan\n", 5), ("step,loss\n7,inf\n", 7)):
        recording = read(tmp_path, text)
        verdict = judge(recording.signals, recording.validation)
        assert (verdict.outcome, verdict.onset_step) == ("non_finite", step)
    single = read(tmp_path, official(range(200, 201)))
    assert judge(single.signals, single.validation).outcome == "undecided"


def test_gaps_are_not_filled(tmp_path: Path) -> None:
    recording = read(tmp_path, "step,loss,per\n0,5,\n10,,0.9\n5000,3,null\n5001,,\n")
    assert recording.signals.steps.tolist() == [0, 5000]
    assert recording.validation.steps.tolist() == [10]


def test_lines_that_a_progress_bar_writes_over(tmp_path: Path) -> None:
    bar = "\r".join(f"{i}%" for i in range(100))
    assert read(tmp_path, bar + "\r" + official(range(0, 400, 200))).signals.steps.tolist() == [0, 200]


def test_a_number_that_is_cut_off_is_no_number(tmp_path: Path) -> None:
    text = official(range(0, 400, 200)) + "Train batch 400: loss: 94.31 grad norm: 4"
    assert read(tmp_path, text).signals.steps.tolist() == [0, 200]


def test_an_absurdly_long_line(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="line 2 is longer than 4,194,304 characters"):
        read(tmp_path, b"step,loss\n" + b"1" * 5_000_000)
    with pytest.raises(StabilityError, match="line 2: column 'loss': expected a number"):
        read(tmp_path, b'step,loss\n1,"' + b"x" * 200_000 + b'"\n2,3\n')


def test_binary_garbage(tmp_path: Path) -> None:
    for seed in range(20):
        garbage = np.random.default_rng(seed).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
        with pytest.raises(StabilityError, match="holds no training that could be read"):
            read(tmp_path, garbage)


def test_a_folder_that_is_no_trials(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="it is no trial's folder"):
        read_log(tmp_path)


def test_a_file_that_may_not_be_read() -> None:
    code = (
        "import os, sys; from pathlib import Path; from stability.diagnosis.readers.logs import read_log; "
        "from stability.core.errors import StabilityError\n"
        "if os.geteuid() == 0: os.setuid(65534)  # who may read everything cannot test this\n"
        "for name in sys.argv[1:]:\n"
        "    try: read_log(Path(name))\n"
        "    except StabilityError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        log, hidden = Path(folder, "log"), Path(folder, "hidden")
        log.write_text(losses([0, 1]))
        log.chmod(0)
        hidden.mkdir(mode=0)
        command = [sys.executable, "-c", code, str(log), str(hidden / "log"), str(log / "x")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        hidden.chmod(0o700)
    places = (log, hidden / "log")
    assert done.stdout.splitlines()[:2] == [f"{place} cannot be read: Permission denied." for place in places]
    assert done.stdout.splitlines()[2].startswith(f"{log / 'x'} cannot be read: ")


def test_a_long_log_takes_flat_memory_and_tells_how_far_it_is(tmp_path: Path) -> None:
    log = tmp_path / "long.csv"
    rows = 50_000
    with log.open("w") as file:
        file.write("step,loss,per\n")
        file.writelines(f"{step},{step},{'0.5' if step % 5000 == 0 else ''}\n" for step in range(rows))
    told: list[tuple[int, int]] = []
    tracemalloc.start()
    recording = read_log(log, lambda read, size: told.append((read, size)))
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    assert len(told) == 5
    assert sorted(told) == told
    assert told[-1][0] <= told[-1][1] == log.stat().st_size
    assert len(recording.signals.steps) <= CAPACITY
    assert recording.signals.steps[[0, -1]].tolist() == [0, rows - 1]
    np.testing.assert_array_equal(recording.signals["loss"], recording.signals.steps)
    assert recording.validation.steps.tolist() == [*range(0, rows, 5000)]
    assert "The log is long" in recording.notes[0]


def test_metrics_in_time_order_know_starts_and_resumes() -> None:
    history = [
        (name, step, float(step)) for step in (0, 10, 20, 10, 20, 30) for name in ("train/loss", "grad_norm", "x")
    ]
    recording = from_metrics("run", history)
    assert recording.signals.steps.tolist() == [0, 10, 20, 30]
    assert recording.signals.measured.all()
    assert recording.notes == ("Resumed from step 10 after step 20: what came later is judged.",)
    with pytest.raises(StabilityError, match="run has no metric that is known"):
        from_metrics("run", [("x", 0, 1.0)])
