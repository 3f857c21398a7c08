"""Every row of a trial reaches MLflow once, through kills and resumes, and sending takes little time."""

import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stability import send
from stability.core.errors import StabilityError
from stability.diagnosis.table import Table, append_table, truncate
from stability.tracking import store, trial_sender
from stability.tracking.api import Tracker
from stability.tracking.store import forget_failures
from tests.support.commandline import run_module
from tests.support.mlflow_runs import (
    NAMES,
    add_rows,
    be_impatient,
    make_trial,
    open_tracker,
    read_runs,
    store_uri,
    write_verdict,
)


def test_nothing_is_sent_twice(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 0, 60)
    tracker.update()
    tracker.update()
    tracker.abort("KILLED")
    assert read_runs(store_uri(outputs))[0].status == "KILLED"
    truncate(folder / "signals.csv", 30, NAMES)  # the checkpoint was older
    tracker = open_tracker(folder, outputs)
    assert read_runs(store_uri(outputs))[0].status == "RUNNING"
    add_rows(folder, 30, 45)
    tracker.update()
    add_rows(folder, 45, 100)
    write_verdict(folder)
    tracker.finish()
    for _ in range(2):
        assert send.main([str(folder)]) == 0
        (run,) = read_runs(store_uri(outputs))
        assert run.steps("loss") == list(range(100))
        assert run.status == "FINISHED"


def _die_after_sending(folder: Path, outputs: Path) -> None:
    """Train to step 60, and be killed when the last rows are in the store but not yet in tracking.json."""
    import mlflow

    be_impatient()
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 0, 40)
    tracker.update()
    add_rows(folder, 40, 60)
    log_batch = mlflow.MlflowClient.log_batch

    def log_and_die(*args: object, **kwargs: object) -> None:
        log_batch(*args, **kwargs)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    mlflow.MlflowClient.log_batch = log_and_die  # type: ignore[method-assign]
    tracker.update()


def test_a_process_killed_between_sending_and_recording_it_sends_nothing_twice(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    process = multiprocessing.get_context("spawn").Process(target=_die_after_sending, args=(folder, outputs))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((folder / "tracking.json").read_text())["marks"]["signals.csv"]["sent"] == 39
    assert read_runs(store_uri(outputs))[0].steps("loss") == list(range(60))
    truncate(folder / "signals.csv", 30, NAMES)
    tracker = open_tracker(folder, outputs)
    add_rows(folder, 30, 50)
    time.sleep(0.01)  # another modification time
    tracker.update()
    add_rows(folder, 50, 100)
    tracker.finish()
    (run,) = read_runs(store_uri(outputs))
    assert run.steps("loss") == list(range(100))


def test_values_that_are_not_finite_or_not_measured(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    values = np.ones((4, 3), np.float32)
    values[0] = [np.nan, np.inf, -np.inf]
    rows = Table(NAMES, np.arange(4), values, ~np.eye(4, 3, k=-1, dtype=bool))
    append_table(folder / "signals.csv", rows)
    tracker.finish()
    (run,) = read_runs(store_uri(outputs))
    assert math.isnan(run.metrics["loss"][0][1])
    assert run.metrics["lr"][0][1] > 1e308
    assert run.metrics["epsilon_dominance"][0][1] < -1e308
    assert [run.steps(name) for name in NAMES] == [[0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_the_points_of_a_long_trial_depend_on_its_steps_alone(outputs: Path) -> None:
    steps = 64_001  # strides of 201
    values, measured = np.arange(2 * steps, dtype=np.float32).reshape(-1, 2), np.ones((steps, 2), bool)
    measured[np.arange(steps) % 50 != 49, 1] = False  # measured every 50 steps
    for name, cuts in (
        ("at_once", [0, steps]),
        ("in_pieces", [0, 1, 200, 201, 40_000, 40_100, steps - 1, steps]),
    ):
        folder = make_trial(outputs / name, steps)
        tracker = open_tracker(folder, outputs)
        for first, stop in pairwise(cuts):
            some = slice(first, stop)
            rows = Table(("a", "b"), np.arange(steps)[some], values[some], measured[some])
            append_table(folder / "signals.csv", rows)
            tracker.update()
        tracker.finish()
    in_pieces, at_once = read_runs(store_uri(outputs))
    assert in_pieces.metrics == at_once.metrics
    assert at_once.steps("a") == [*range(0, steps, 201), steps - 1]
    assert at_once.steps("b")[:4] == [49, 249, 449, 649]
    assert len(at_once.steps("b")) == 319


@pytest.mark.parametrize(("trials", "pause"), [(1, 5.0), (8, 40.0), (64, 60.0)])
def test_the_more_trials_a_process_sends_the_longer_each_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int, pause: float
) -> None:
    now, sendings = 0.0, Counter[Tracker]()
    monkeypatch.undo()
    for module in (trial_sender, store):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, time_ns=time.time_ns))
    trackers = [open_tracker(make_trial(tmp_path / f"trial{n}"), tmp_path, "http://localhost:9") for n in range(trials)]

    def send_rows(tracker: Tracker) -> None:
        nonlocal now
        now += 0.1
        sendings[tracker] += 1

    forget_failures()
    monkeypatch.setattr(trial_sender.TrialSender, "send_rows", send_rows)
    while now < 4000:
        for tracker in trackers:
            tracker.update()
        now += 1
    assert sendings.keys() == {*trackers}
    assert all(count == pytest.approx(4000 / pause, rel=0.25) for count in sendings.values())


def test_a_run_deleted_from_the_store_is_sent_again(outputs: Path) -> None:
    from mlflow import MlflowClient

    folder = make_trial(outputs / "trial")
    add_rows(folder, 0, 30)
    open_tracker(folder, outputs).abort("FAILED")
    (old,) = read_runs(store_uri(outputs))
    assert old.status == "FAILED"
    MlflowClient(tracking_uri=store_uri(outputs)).delete_run(old.id)
    open_tracker(folder, outputs).finish()
    (new,) = read_runs(store_uri(outputs))
    assert new.id != old.id
    assert new.steps("loss") == list(range(30))


def test_one_process_at_a_time_sends_a_trial(outputs: Path) -> None:
    folder = make_trial(outputs / "trial")
    tracker = open_tracker(folder, outputs)
    with pytest.raises(StabilityError, match="Another process trains or sends"):
        open_tracker(folder, outputs)
    done = run_module("stability.send", folder)
    assert done.returncode == 1
    assert done.stderr == f"error: Another process trains or sends {folder}. Wait for its end.\n"
    tracker.finish()
