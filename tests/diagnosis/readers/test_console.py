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
