"""A log of any size and shape is read, or one message says why not."""

import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.history import CAPACITY
from stability.diagnosis.judge import judge
from stability.diagnosis.readers import read_log
from tests.support.logs import losses, official, read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nothing of the kind\n" * 5, "contains no training that can be read"),
        ("\x00\xff\n", "contains no training that can be read"),
        ("step,accuracy\n1,2\n", "contains no training that can be read"),
        ("step,loss\n1,2\n2,three\n3,4\n", "line 3: column 'loss': expected a number or nothing, found 'three'"),
        ("step,loss\n1,2\n2.5,3\n3,4\n", "line 3: column 'step': expected a whole number, found '2.5'"),
        ("step,loss\n1,2\ninf,3\n3,4\n", "line 3: column 'step': expected a whole number, found 'inf'"),
        ("step,loss\n1,2\n1e300,3\n3,4\n", "line 3: column 'step': expected a whole number"),
        ("step,loss\n1,2\n2,3,4\n3,4\n", "line 3: expected 2 cells, as in the header, found 3"),
        ("step,loss\n1,2\n2,'3,5'\n3,4\n", "line 3: expected 2 cells, as in the header, found 3"),
        ('{"step": "one", "loss": 2}\n', "line 1: column 'step': expected a number or nothing, found 'one'"),
        ('{"step": 1, "loss": 2}\n[1, 2]\n', "line 2: expected an object"),
        ('{"step": 1, "loss": 2}\n' + "[" * 100_000 + "\n", "line 2: expected an object"),
        ("step,loss\n,\n", "contains no training that can be read"),
        ("step,per\n1,0.5\n", "contains no training that can be read"),
        ('{"step": 1, "loss": 2}\nnot json\n{"step": 2, "loss": 2}\n', "line 2: expected an object"),
    ],
)
def test_a_log_without_a_training_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    with pytest.raises(StabilityError, match=message):
        read_log(log)


def test_binary_garbage(tmp_path: Path) -> None:
    for seed in range(20):
        garbage = np.random.default_rng(seed).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
        with pytest.raises(StabilityError, match="contains no training that can be read"):
            read(tmp_path, garbage)


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="line 2 is longer than 4,194,304 characters, too long for a log"):
        read(tmp_path, b"step,loss\n" + b"1" * 5_000_000)
    with pytest.raises(StabilityError, match="line 2: column 'loss': expected a number"):
        read(tmp_path, b'step,loss\n1,"' + b"x" * 200_000 + b'"\n2,3\n')
    with pytest.raises(StabilityError, match="contains no training"):
        read(tmp_path, b'"' + b"x" * 200_000 + b'"\n2,3\n')


@pytest.mark.parametrize(
    "text",
    [
        official(range(0, 600, 200)) + "2025-11-06 01:34:20,425: Train batch 600: lo",
        "Step,train/loss,grad_norm\n0,50,48.85\n200,50,48.85\n400,50,48.85\n600,",
        "".join(f'{{"global_step": {s}, "loss": 50, "grad_norm": 48.85}}\n' for s in (0, 200, 400)) + '{"global_st',
    ],
)
def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    signals = read_log(log).signals
    assert signals.steps.tolist() == [0, 200, 400]
    assert signals["loss"].tolist() == [50] * 3


def test_a_file_without_permission_is_refused() -> None:
    code = (
        "import os, sys; from pathlib import Path; from stability.diagnosis.readers import read_log; "
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


def test_a_long_log_is_read_in_constant_memory_and_reports_its_progress(tmp_path: Path) -> None:
    log = tmp_path / "long.csv"
    rows = 50_000
    with log.open("w") as file:
        file.write("step,loss,per\n")
        file.writelines(f"{step},{step},{'0.5' if step % 5000 == 0 else ''}\n" for step in range(rows))
    calls: list[tuple[int, int]] = []
    tracemalloc.start()
    recording = read_log(log, lambda read, size: calls.append((read, size)))
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    assert len(calls) == 5
    assert sorted(calls) == calls
    assert calls[-1][0] <= calls[-1][1] == log.stat().st_size
    assert len(recording.signals.steps) <= CAPACITY
    assert recording.signals.steps[[0, -1]].tolist() == [0, rows - 1]
    np.testing.assert_array_equal(recording.signals["loss"], recording.signals.steps)
    assert recording.validation.steps.tolist() == [*range(0, rows, 5000)]
    assert "The log is long" in recording.notes[0]


def test_nan_from_the_first_step_and_a_single_step(tmp_path: Path) -> None:
    for text, step in (("step,loss\n5,nan\n6,nan\n", 5), ("step,loss\n7,inf\n", 7)):
        recording = read(tmp_path, text)
        verdict = judge(recording.signals, recording.validation)
        assert (verdict.outcome, verdict.onset_step) == ("non_finite", step)
    single = read(tmp_path, official(range(200, 201)))
    assert judge(single.signals, single.validation).outcome == "undecided"
