"""The files that a Monitor leaves in the folder of its trial."""

import json
from pathlib import Path

import pytest
import torch

from stability import Monitor
from stability.core.files import FIGURE, SIGNALS_FILE, VERDICT
from stability.diagnosis.readers.tables import read_tables
from stability.diagnosis.table import read_table
from stability.watch.job import begin_job, end_job
from tests.support.toy_ctc import Toy, batch, ctc


def train(monitor_options: dict[str, object], steps: int, state: dict[str, object] | None = None) -> Monitor:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer, **monitor_options)  # type: ignore[arg-type]
    if state is not None:
        monitor.load_state_dict(state)
    for step in range(steps):
        x, labels = batch(step)
        logits = model(x)
        loss = ctc(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert monitor.step(loss, logits) is None
        optimizer.step()
    return monitor


def test_a_verdict_leaves_the_files_of_a_trial(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "trial"
    monitor = train({"trial_folder": folder, "metric": "WER"}, 30)
    monitor.validated(per=0.2, loss=1.5)
    assert not (folder / VERDICT).exists()
    verdict = monitor.verdict()
    assert json.loads((folder / VERDICT).read_text())["outcome"] == verdict.outcome
    assert (folder / FIGURE).exists()
    found = read_tables(folder)
    assert found.metric == "WER"
    assert found.signals.steps.tolist() == [*range(30)]
    assert found.validation["per"].tolist() == pytest.approx([0.2])


def test_the_tables_grow_with_the_training(tmp_path: Path) -> None:
    train({"trial_folder": tmp_path}, 12)
    assert len(read_table(tmp_path / SIGNALS_FILE).steps) == 10
    assert not (tmp_path / VERDICT).exists()


def test_a_resumed_training_has_all_its_steps(tmp_path: Path) -> None:
    first = train({"trial_folder": tmp_path}, 20)
    first.verdict()
    state = first.state_dict()
    again = train({"trial_folder": tmp_path}, 5, state)
    assert not (tmp_path / VERDICT).exists()  # it was that of the first part
    again.verdict()
    assert read_table(tmp_path / SIGNALS_FILE).steps.tolist() == [*range(25)]


def test_of_several_monitors_in_a_folder_the_files_are_those_of_the_last(tmp_path: Path) -> None:
    first = train({"trial_folder": tmp_path}, 20)
    second = train({"trial_folder": tmp_path}, 7)
    second.verdict()
    first.verdict()
    assert len(read_table(tmp_path / SIGNALS_FILE).steps) == 7


def test_in_a_job_with_the_callback_the_verdict_comes_with_its_end(tmp_path: Path) -> None:
    job = begin_job(tmp_path)
    try:
        monitor = train({"trial_folder": tmp_path}, 12)
        monitor.verdict()
        assert not (tmp_path / VERDICT).exists()
        assert job.leave_results is not None
        del monitor
        job.leave_results()
        assert (tmp_path / VERDICT).exists()
    finally:
        end_job()


def test_a_folder_that_cannot_be_written_is_evidence_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monitor = train({"trial_folder": tmp_path / "file"}, 12)
    evidence = str(monitor.verdict().evidence["trial folder"])
    assert evidence.startswith(f"{tmp_path / 'file'} cannot be written (")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train({}, 12).verdict()
    assert not [*tmp_path.iterdir()]


def test_validations_at_the_same_step_are_one_row(tmp_path: Path) -> None:
    """As where a trainer evaluates at its last step, and once more at its end; or before its first step."""
    monitor = train({"trial_folder": tmp_path}, 12)
    monitor.validated(per=0.3, loss=2.0)
    monitor.validated(per=0.2)
    monitor.verdict()
    found = read_tables(tmp_path).validation
    assert found.steps.tolist() == [11]
    assert found.values.tolist() == [pytest.approx([0.2, 2.0])]


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@pytest.mark.parametrize("name", RANKS)
def test_of_processes_that_train_together_the_first_leaves_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in RANKS:  # Lightning leaves one of them
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    train({"trial_folder": tmp_path}, 3).verdict()
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv(name, "0")
    train({"trial_folder": tmp_path}, 3).verdict()
    assert (tmp_path / VERDICT).exists()
