"""JSON documents."""

import json
from pathlib import Path
from typing import Any

import pytest

from stability.core.errors import StabilityError
from tests.support.logs import read

ROWS = [
    {"step": 0, "loss": 5, "note": "x"},
    {"step": 0, "eval_loss": 6, "eval_cer": 0.9},
    {"step": 10, "loss": 4.0},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"best_metric": None, "global_step": 10, "log_history": [*ROWS, {"step": 10, "train_loss": 4.5}]},
        {"step": [0, 10], "loss": [5.0, 4.0], "val_loss": [6.0, None], "val_cer": [0.9, None]},
        {"step": {"0": 0, "1": 10}, "loss": {"0": 5.0, "1": 4.0}, "val_loss": {"0": 6}, "val_cer": {"0": 0.9}},
    ],
)
def test_a_document_of_any_form(tmp_path: Path, document: Any, indent: int | None) -> None:
    recording = read(tmp_path, json.dumps(document, indent=indent))
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.validation["loss"].tolist() == [6]
    assert recording.metric == "CER"


def test_a_history_of_keras(tmp_path: Path) -> None:
    recording = read(tmp_path, '{"loss": [5, NaN], "val_loss": [6, 5]}')
    assert recording.signals.steps.tolist() == [0, 1]
    assert not recording.signals["loss"][1] < 5


def test_a_document_that_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="begins as a JSON document, but is none"):
        read(tmp_path, '[\n{"step": 1, "loss": 2},\n')
    with pytest.raises(StabilityError, match="row 2: column 'loss': expected a number"):
        read(tmp_path, '[{"step": 1, "loss": 2}, {"step": 2, "loss": "low"}]')
    with pytest.raises(StabilityError, match="It has these names: objective"):
        read(tmp_path, '[{"objective": 1}]')
