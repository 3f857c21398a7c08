"""Hugging Face's console."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.logs import read


def test_dicts_between_other_output(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "Loading checkpoint\n  5%|5         | 5/100 [00:01<00:20]{'loss': 2.1, 'grad_norm': nan, 'epoch': 0.1}\n"
        "{'loss': '1.9', 'grad_norm': '3.5', 'learning_rate': '1e-05', 'epoch': '0.2'}\n"
        "{'eval_loss': 1.8, 'eval_wer': 0.7, 'eval_runtime': 3.0, 'epoch': 0.2}\n{'step_time': 1}\n"
        "{'train_runtime': 9.0, 'epoch': 0.2}\n",
    )
    assert recording.signals["loss"].tolist() == pytest.approx([2.1, 1.9])
    assert np.isnan(recording.signals["grad_norm"]).tolist() == [True, False]
    assert recording.validation["per"].tolist() == pytest.approx([0.7])
    assert recording.notes == ("The log has no steps: its rows are numbered 0, 1, 2, …",)


def test_a_file_of_dicts_with_steps(tmp_path: Path) -> None:
    recording = read(tmp_path, "{'loss': 2.0, 'step': 10}\n{'loss': 1.0, 'step': 20}\n")
    assert recording.signals.steps.tolist() == [10, 20]


def bar(step: int, total: int) -> str:
    return f"\r {100 * step // total}%|{step // 100 * '█'}  | {step}/{total} [00:12<01:28,  9.9it/s]"


def test_steps_of_the_progress_bar(tmp_path: Path) -> None:
    text = "Map: 100%|██| 500/500 [00:01<00:00, 500 examples/s]\n{'model': 'x', 'learning_rate': 1, 'loss': 'ctc'}\n"
    for n in (1, 2, 3):
        text += "".join(bar(step, 1000) for step in range(100 * n - 50, 100 * n + 1, 10))
        text += f"\n{{'loss': {5 - n}, 'learning_rate': 1e-05, 'epoch': {0.3 * n:g}}}\n"
        text += "".join(bar(step, 20) for step in range(1, 21))
        text += f"\n{{'eval_loss': {6 - n}, 'eval_wer': {1 - n / 10}, 'epoch': {0.3 * n:g}}}\n"
    recording = read(tmp_path, text + "{'train_runtime': 9.0, 'train_loss': 3.5, 'epoch': 1.0}\n")
    assert recording.signals.steps.tolist() == recording.validation.steps.tolist() == [100, 200, 300]
    assert recording.signals["loss"].tolist() == [4, 3, 2]
    assert recording.validation["loss"].tolist() == [5, 4, 3]
    assert recording.notes == ()


def test_bars_of_another_stream_are_not_used(tmp_path: Path) -> None:
    dicts = "".join(f"{{'loss': {9 - n}, 'epoch': {n / 10}}}\n" for n in range(8))
    recording = read(tmp_path, bar(10, 1000) + "\n" + dicts)
    assert recording.signals["loss"].tolist() == [*range(9, 1, -1)]
    assert recording.unit == "row"


def test_steps_from_the_epoch_and_the_number_of_all_steps(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "  Num Epochs = 10\n  Total optimization steps = 1,000\n{'loss': 5.0, 'epoch': 0.5}\n"
        "{'eval_loss': 6.0, 'epoch': 0.5}\n{'loss': 4.0, 'epoch': 1.0}\n",
    )
    assert recording.signals.steps.tolist() == [50, 100]
    assert recording.validation.steps.tolist() == [50]


def test_numbers_of_tensors(tmp_path: Path) -> None:
    recording = read(
        tmp_path, "{'loss': tensor(2.5, device='cuda:0'), 'step': 10}\n{'loss': np.float64(1.5), 'step': 20}\n"
    )
    assert recording.signals["loss"].tolist() == [2.5, 1.5]
