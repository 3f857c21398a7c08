"""TensorBoard's event files, written by PyTorch's writer."""

import sys
import tracemalloc
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs


def write(folder: Path, steps: range, **scalars: float) -> None:
    """Write event files of a run. `loss__train=5` becomes the tag `loss/train`, with 5, 5/2, 5/3, …"""
    with SummaryWriter(str(folder)) as writer:
        for row, step in enumerate(steps):
            for tag, value in scalars.items():
                writer.add_scalar(tag.replace("__", "/"), value / (1 + row), step)


def test_an_event_file(tmp_path: Path) -> None:
    write(tmp_path, range(0, 30, 10), Loss__train=6, grad_norm=5, Loss__val=12, eval__wer=0.9, images=1)
    (file,) = tmp_path.iterdir()
    recording = read_log(file)
    assert recording.signals.names == ("loss", "grad_norm")
    assert recording.signals.steps.tolist() == [0, 10, 20]
    assert recording.signals["loss"].tolist() == [6, 3, 2]
    assert recording.validation["loss"].tolist() == [12, 6, 4]
    assert recording.metric == "WER"
    assert recording.notes == ()


def test_a_run_per_folder(tmp_path: Path) -> None:
    write(tmp_path / "runs/a", range(3), train__loss=6)
    write(tmp_path / "runs/b", range(3), train__loss=12)
    write(tmp_path / "runs/b", range(1, 3), train__loss=8)  # a resume writes a second file
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("runs/a", "runs/b")
    assert first.signals["loss"].tolist() == [6, 3, 2]
    assert second.signals["loss"].tolist() == [12, 8, 4]
    assert "resumed from step 1" in second.notes[0]


@pytest.mark.parametrize(("train", "held_out"), [("train", "validation"), ("train_inner", "valid"), (".", "eval")])
def test_validations_in_a_folder_of_their_own(tmp_path: Path, train: str, held_out: str) -> None:
    write(tmp_path / "run" / train, range(3), epoch_loss=6)
    write(tmp_path / "run" / held_out, range(3), epoch_loss=12, wer=0.9)
    (recording,) = read_runs(tmp_path)
    assert recording.name == "run"
    assert recording.signals["loss"].tolist() == [6, 3, 2]
    assert recording.validation["loss"].tolist() == [12, 6, 4]
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.45, 0.3])


def test_several_scalars_in_one_chart(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalars("loss", {"train": 6 / (1 + step), "val": 12 / (1 + step)}, step)
    (recording,) = read_runs(tmp_path)
    assert recording.signals["loss"].tolist() == [6, 3, 2]
    assert recording.validation["loss"].tolist() == [12, 6, 4]


def test_validations_that_are_numbered_by_epoch(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(100):
            writer.add_scalar("train/loss", 9 / (1 + step), step)
            if step % 20 == 19:
                writer.add_scalar("val/loss", 5 - step // 20, step // 20)
    recording = read_log(tmp_path)
    assert recording.signals.steps.tolist() == [*range(100)]
    assert recording.validation.steps.tolist() == [19, 39, 59, 79, 99]
    assert recording.validation["loss"].tolist() == [5, 4, 3, 2, 1]
    assert recording.notes == ("The validations are numbered: they were put where they were logged.",)


def test_events_as_tensorflow_2_writes_them(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path))
    for step in range(3):
        event = Event(step=step)
        event.summary.value.add(tag="loss").tensor.CopyFrom(make_tensor_proto(6 / (1 + step)))
        event.summary.value.add(tag="wer").tensor.CopyFrom(make_tensor_proto("a text"))
        writer.add_event(event)
    writer.close()
    recording = read_log(tmp_path)
    assert recording.signals["loss"].tolist() == [6, 3, 2]
    assert not len(recording.validation.steps)


def test_a_file_that_is_cut_off_or_is_none(tmp_path: Path) -> None:
    write(tmp_path, range(50), loss=69)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert read_log(file).signals.steps.tolist() == [*range(49)]
    file.write_bytes(b"no events " * 100)
    with pytest.raises(StabilityError, match="contains no training that can be read"):
        read_log(file)
    with pytest.raises(StabilityError, match="cannot be read: No such file"):
        read_log(tmp_path / "events.out.tfevents.1")


def test_unknown_tags_are_listed_and_can_be_explained(tmp_path: Path) -> None:
    write(tmp_path, range(3), objective=6)
    (file,) = tmp_path.iterdir()
    for path in (file, tmp_path):
        with pytest.raises(StabilityError, match="It has these names: objective"):
            read_log(path)
    assert read_log(tmp_path, names={"loss": "objective"}).signals["loss"].tolist() == [6, 3, 2]


def test_events_are_read_in_constant_memory_and_report_their_progress(tmp_path: Path) -> None:
    write(tmp_path, range(15_000), loss=6)
    read_log(tmp_path)  # imports the package
    calls: list[tuple[int, int]] = []
    tracemalloc.start()
    assert read_log(tmp_path, lambda read, size: calls.append((read, size))).signals.steps[-1] == 14_999
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    ((read, size),) = calls
    assert 0 < read < size == next(tmp_path.iterdir()).stat().st_size


def test_without_the_extra_one_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(3), loss=6)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(StabilityError, match=r"Run: pip install 'training-stability\[tensorboard\]'"):
        read_log(tmp_path)
    (tmp_path / "log.csv").write_text("step,loss\n0,5\n")
    assert read_log(tmp_path).notes[-1].startswith("TensorBoard's event files were not read. Not installed: tensor")
