"""Copies of trials for TensorBoard and W&B, written by the real packages and read from their files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stability import diagnose
from stability.config.schema import Tracking
from stability.core.errors import StabilityError
from stability.diagnosis.table import read_table, truncate
from stability.tracking import api
from tests.support.commandline import CommandLine
from tests.support.mlflow_runs import NAMES, add_rows, add_validation, make_trial, write_verdict


def tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    """The (step, value) pairs of each tag of a trial, and all its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0})
    found.Reload()
    texts = [found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, " ".join(texts)


def wandb(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], str]:
    """The (step, value) pairs of each metric of the only offline run of a trial, and its configuration and summary."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    found, texts = dict[str, list[tuple[int, float]]](), ""
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        texts += f"{record.run} {record.summary}"
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            found.setdefault(name, []).append((row["step"], value))
    return found, texts


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: pieces in blocks of 32 KiB, each behind its checksum, size and kind."""
    at, record = 7, b""
    while at < len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        record += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


READERS = {"tensorboard": tensorboard, "wandb": wandb}


@pytest.fixture(params=READERS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


def test_a_trial_that_was_killed_is_copied_whole_and_once(tmp_path: Path, backend: str) -> None:
    folder = make_trial(tmp_path / "study" / "trial")
    settings: Any = Tracking(backend, None, "study", tags={"team": "speech"})  # type: ignore[arg-type]
    tracker = api.open_tracker(settings, folder, outputs=tmp_path)
    add_rows(folder, 0, 40)
    tracker.update()
    tracker.abort("KILLED")
    assert not api.is_sent(settings, folder, outputs=tmp_path)
    truncate(folder / "signals.csv", 30, NAMES)
    for _ in range(2):
        tracker = api.open_tracker(settings, folder, outputs=tmp_path)
        if not (folder / "verdict.json").exists():
            add_rows(folder, 30, 50)
            tracker.update()
            add_validation(folder, 49, 0.25)
            write_verdict(folder)
        tracker.finish()
        metrics, texts = READERS[backend](folder)
        assert [step for step, _ in metrics["loss"]] == list(range(50))
        assert metrics["loss"][3][1] == pytest.approx(75)
        assert metrics["validation/per"] == [(49, 0.25)]
        assert api.is_sent(settings, folder, outputs=tmp_path)
    assert "exploded" in texts
    assert "Lower it." in texts


@pytest.mark.slow
def test_the_command_line_copies_each_trial_of_a_study(cli: CommandLine, backend: str) -> None:
    words = ["--multirun", "study=mine", f"tracking={backend}", "tags={team: speech}", "seed=0,1"]
    cli.run(*words)
    trials = sorted(path.parent for path in cli.folder.glob("outputs/mine/*/verdict.json"))
    assert len(trials) == 2
    for trial in trials:
        metrics, _ = READERS[backend](trial)
        table = read_table(trial / "signals.csv")
        assert [step for step, _ in metrics["grad_norm/gru.0"]] == table.steps.tolist()
        assert not (trial / "tracking.json").exists()
        assert diagnose.main([str(trial)]) == 0
    assert not (cli.folder / "outputs" / "mlflow.db").exists()
    before = {path: path.stat().st_mtime_ns for trial in trials for path in (trial / backend).rglob("*")}
    cli.run(*words)
    assert before == {path: path.stat().st_mtime_ns for trial in trials for path in (trial / backend).rglob("*")}


def test_a_copy_that_cannot_be_written_does_not_stop_a_trial(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_trial(tmp_path / "study" / "trial")
    (folder / backend).write_text("a file, where the folder should be")
    tracker = api.open_tracker(Tracking(backend, None, "study"), folder, outputs=tmp_path)  # type: ignore[arg-type]
    add_rows(folder, 0, 10)
    tracker.update()
    write_verdict(folder)
    tracker.finish()
    (record,) = (record for record in caplog.records if record.levelname in ("WARNING", "ERROR"))
    assert record.getMessage().startswith("Cannot write ")
    assert record.getMessage().endswith("The training goes on without it.")


def test_a_store_is_only_for_mlflow(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"^tracking\.uri is for tracking=mlflow; tracking=tensorboard writes"):
        api.open_study(Tracking("tensorboard", "http://host", "study"), tmp_path / "study", outputs=tmp_path)
