"""The folders that Weights & Biases leaves. This one was made like those of its release 0.31."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "wandb/offline-run-20260101_120000-abcdefgh"
    for name, text in {
        "run-abcdefgh.wandb": ":W&B\xbe\xef",
        "files/output.log": "step 0 loss 5\nstep 10 loss 4\n",
        "files/wandb-summary.json": '{"_step": 10, "loss": 4}',
        "files/requirements.txt": "torch==2.7\n",
        "logs/debug-internal.log": '{"time":"2026-01-01T12:00:00","level":"INFO","msg":"loss","loss":1}\n',
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    return run


@pytest.mark.parametrize("above", [0, 1, 2])
def test_the_console_output_is_read(run: Path, above: int) -> None:
    (recording,) = read_runs([run, *run.parents][above])
    assert recording.name.endswith("files/output.log")
    assert recording.signals["loss"].tolist() == [5, 4]
    assert recording.notes == (
        "The history of this run is in W&B's own file, which is not read. The verdict uses the console output.",
    )


def test_a_history_alone_is_refused_with_the_way_to_export_it(run: Path) -> None:
    (run / "files/output.log").write_text("")
    for path in (run, run / "run-abcdefgh.wandb"):
        with pytest.raises(
            StabilityError, match=r"run-abcdefgh\.wandb is W&B's own history.*wandb sync .*scan_history"
        ):
            read_log(path)
