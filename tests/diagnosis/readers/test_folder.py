"""A trial's folder."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs


def test_a_folder_that_is_not_a_trials(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match="it is not a trial's folder"):
        read_log(tmp_path)


def test_a_folder_of_other_logs(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/metrics.csv").write_text("step,train_loss\n0,5\n10,4\n")
    (tmp_path / "notes.txt").write_text("nothing\n")
    for steps in (1, 2):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        rows = ", ".join(f'{{"step": {step}, "loss": 3}}' for step in range(steps))
        (tmp_path / f"checkpoint-{steps}/trainer_state.json").write_text(f'{{"log_history": [{rows}]}}')
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["checkpoint-2/trainer_state.json", "version_0/metrics.csv"]
