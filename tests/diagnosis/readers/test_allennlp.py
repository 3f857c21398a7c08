"""AllenNLP's folder of a training. This one was made like those of its release 2.0."""

import json
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs


def write(folder: Path, epochs: int, loss: float = 20.5) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"trainer": {"num_epochs": 24, "optimizer": {"lr": 0.0005}}}')
    for epoch in range(epochs):
        metrics = {
            "best_epoch": 0,
            "training_duration": "0:27:23.055071",
            "epoch": epoch,
            "training_cer": 0.75,
            "training_loss": loss - epoch,
            "validation_cer": 1 / (1 + epoch),
            "validation_loss": 21.5,
            "best_validation_cer": 0.125,
            "best_validation_loss": 0.125,
        }
        (folder / f"metrics_epoch_{epoch}.json").write_text(json.dumps(metrics, indent=2))


def test_the_epochs_are_one_training_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a", 12)
    write(tmp_path / "b", 3, loss=30)
    recording, other = read_runs(tmp_path)
    assert (recording.name, other.name) == ("a", "b")
    assert recording.unit == "epoch"
    assert recording.signals.steps.tolist() == [*range(12)]
    assert recording.signals["loss"].tolist() == [20.5 - epoch for epoch in range(12)]
    assert recording.validation["per"].tolist() == pytest.approx([1 / (1 + epoch) for epoch in range(12)])
    assert recording.validation["loss"].tolist() == [21.5] * 12
    assert recording.metric == "CER"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "metrics_epoch_2.json").write_text('{"epoch": 2, "training_lo')
    with pytest.raises(StabilityError, match=r"metrics_epoch_2\.json: Unterminated string"):
        read_log(tmp_path)
    (tmp_path / "metrics_epoch_2.json").write_text('{"epoch": 2, "training_loss": "low"}')
    with pytest.raises(StabilityError, match=r"metrics_epoch_2\.json: column 'training_loss': expected a number"):
        read_log(tmp_path)
    (tmp_path / "metrics_epoch_2.json").write_text("[]")
    with pytest.raises(StabilityError, match=r"metrics_epoch_2\.json: expected an object"):
        read_log(tmp_path)


def test_files_of_the_name_without_a_known_metric(tmp_path: Path) -> None:
    (tmp_path / "metrics_epoch_0.json").write_text('{"clicks": 2}')
    with pytest.raises(StabilityError, match=r"contains no training.*It has these names: epoch, clicks"):
        read_log(tmp_path)
