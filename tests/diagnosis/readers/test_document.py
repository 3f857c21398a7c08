"""JSON documents."""

import json
from pathlib import Path
from typing import Any

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_runs
from tests.support.logs import read

NAN = float("nan")
ROWS: list[dict[str, Any]] = [
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
        {
            "params": {"epochs": 1},
            "history": {"step": [0, 10], "loss": [5, 4], "val_loss": [6, None], "val_cer": [0.9, None]},
        },
        {
            "step": [0, 10],
            "loss": [5, 4],
            "val_losses": [6, None],
            "val_CERs": [0.9, None],
            "val_metrics": [{"cer": 0.9}],
        },
        {"step": [0, 10], "train": {"loss": [5, 4]}, "val": {"loss": [6, None], "cer": [0.9, None]}},
        {"args": {"lr": 1}, "results": ROWS, "best": {"step": 0, "val_cer": 0.1}},
        {"epochs": {"1": ROWS[0] | {"eval_loss": 6, "eval_cer": 0.9}, "2": ROWS[2]}},
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


def test_lists_of_other_lengths_are_spread_evenly(tmp_path: Path) -> None:
    recording = read(tmp_path, '{"train_losses": [9, 8, 7, 6, 5, 4], "val_losses": [6, 5]}')
    assert recording.signals["loss"].tolist() == [9, 8, 7, 6, 5, 4]
    assert recording.validation.steps.tolist() == [2, 5]
    assert "val_losses has 2 of 6 values: they were spread evenly." in recording.notes


def test_objects_within_a_line(tmp_path: Path) -> None:
    rows = [
        {"step": s, "train": {"loss": 5 - s, "lr": [1e-4, 1e-5]}, "val": {"loss": 6, "wer": 0.9}, "config": {"lr": 3}}
        for s in (0, 1)
    ]
    recording = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.signals["lr"].tolist() == pytest.approx([1e-4, 1e-4])
    assert recording.validation["loss"].tolist() == [6, 6]
    assert recording.metric == "WER"


@pytest.mark.parametrize(
    "text",
    [
        '{"loss": [[0, 5.0], [100, 4.0]], "val_wer": [[100, 0.9]]}',
        '{"loss": {"0": 5.0, "100": 4.0}, "val_wer": {"100": 0.9}}',
        '{\n "step": 0,\n "loss": 5.0\n}\n{\n "step": 100,\n "loss": 4.0,\n "val_wer": 0.9\n}\n',
    ],
)
def test_values_with_their_steps(tmp_path: Path, text: str) -> None:
    recording = read(tmp_path, text)
    assert recording.signals.steps.tolist() == [0, 100]
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.validation.steps.tolist() == [100]


def test_the_metrics_of_sacred(tmp_path: Path) -> None:
    times = ["2019-11-12T09:14:03"] * 3
    document = {
        "train.loss": {"steps": [0, 2, 4], "timestamps": times, "values": [5, NAN, 4.0]},
        "train.grad_norm": {"steps": [0, 2, 4], "timestamps": times, "values": [1, 2, 3]},
        "dev.loss": {"steps": [4], "timestamps": times[:1], "values": [6]},
        "dev.per": {"steps": [4], "timestamps": times[:1], "values": [0.5]},
        "clicks": {"steps": [4], "timestamps": times[:1], "values": [7]},
    }
    for indent in (None, 2):
        recording = read(tmp_path, json.dumps(document, indent=indent))
        assert recording.signals.steps.tolist() == [0, 2, 4]
        assert recording.signals["loss"].tolist() == pytest.approx([5, NAN, 4], nan_ok=True)
        assert recording.signals["grad_norm"].tolist() == [1, 2, 3]
        assert recording.validation.steps.tolist() == [4]
        assert (recording.validation["loss"].tolist(), recording.validation["per"].tolist()) == ([6], [0.5])


def test_metrics_of_sacred_that_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="row 2: column 'step': expected a number"):
        read(tmp_path, '{"loss": {"steps": [0, "later"], "timestamps": [], "values": [5, 4]}}')
    with pytest.raises(StabilityError, match="begins as a JSON document, but is none"):
        read(tmp_path, '{\n"loss": {"steps": [0, 1')


def test_the_report_of_chainer(tmp_path: Path) -> None:
    rows = [
        {"main/loss": 9 - n, "main/loss_ctc": 5, "main/cer_ctc": 0.25, "epoch": 1 + n // 2, "iteration": 100 * (n + 1)}
        for n in range(4)
    ]
    for row in (rows[1], rows[3]):
        row |= {"validation/main/loss": 9.5, "validation/main/loss_ctc": 8, "validation/main/cer_ctc": 0.5, "eps": 1e-8}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/log").write_text(json.dumps(rows, indent=4))
    for path in (tmp_path, tmp_path / "results/log"):
        (recording,) = read_runs(path)
        assert recording.signals.steps.tolist() == [100, 200, 300, 400]
        assert recording.signals["loss"].tolist() == [9, 8, 7, 6]
        assert recording.validation.steps.tolist() == [200, 400]
        assert recording.validation["loss"].tolist() == [9.5, 9.5]
        assert recording.validation["per"].tolist() == [0.5, 0.5]
        assert (recording.unit, recording.metric) == ("step", "CER")
