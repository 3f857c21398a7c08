"""MLflow's file store. This one was made like those of its release 2.0."""

from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs

ID = "5cee35d3c05d46e29b0b52dc9c28745a"
METRICS = {
    "train_loss": "1668000001 5.5 0\n1668000002 4.5 10\n1668000003 nan 20\n",
    "grad_norm": "1668000001 2.0 0\n1668000002 3.0 10\n",
    "val/loss": "1668000002 6.5 10\n",
    "val/cer": "1668000002 0.5 10\n",
    "system/cpu": "1668000002 0.5 10\n",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / f"mlruns/470850165402704540/{ID}", "bold-shrimp-114", METRICS)
    (run.parent / "meta.yaml").write_text("name: asr\n")
    return run


def make_run(run: Path, name: str, metrics: dict[str, str]) -> Path:
    files = {f"metrics/{metric}": text for metric, text in metrics.items()}
    files |= {"meta.yaml": f"run_id: {run.name}\nrun_name: {name}\nstatus: 3\n", "tags/mlflow.runName": name}
    for file, text in (files | {"params/lr": "0.1", "params/log": "0.1"}).items():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(text)
    return run


@pytest.mark.parametrize("above", range(4))
def test_a_run_is_read_from_any_folder_above_it(run: Path, above: int) -> None:
    (recording,) = read_runs([run, *run.parents][above])
    assert recording.name == "bold-shrimp-114 (5cee35d3)"
    assert recording.signals.steps.tolist() == [0, 10, 20]
    assert recording.signals["loss"].tolist() == pytest.approx([5.5, 4.5, float("nan")], nan_ok=True)
    assert recording.validation["loss"].tolist() == [6.5]
    assert recording.validation["per"].tolist() == [0.5]
    assert (recording.metric, recording.notes) == ("CER", ())


def test_each_run_is_a_training_and_has_a_name(run: Path) -> None:
    other = make_run(run.parent / "a1b2c3d4e5", "bold-shrimp-114", {"loss": "1 3.0 0\n2 2.0 5\n", "empty": ""})
    (other / "tags/mlflow.runName").unlink()
    unnamed = make_run(run.parent / "f1", "", {"loss": "1 9.0 0\n2 8.0 5\n"})
    make_run(run.parent / "f2", "of other things", {"accuracy_of_ads": "1 9.0 0\n"})
    (unnamed / "tags/mlflow.runName").unlink()
    names = [recording.name for recording in read_runs(run.parents[1])]
    assert names == ["bold-shrimp-114 (5cee35d3)", "bold-shrimp-114 (a1b2c3d4)", "470850165402704540/f1"]


def test_a_resume_is_followed_in_the_order_of_time(run: Path) -> None:
    make_run(run, "x", {"train_loss": "1 5 0\n2 4 10\n4 3 20\n5 4.5 10\n6 3.5 20\n", "grad_norm": "1 2 0\n5 3 10\n"})
    recording = read_log(run)
    assert recording.signals["loss"].tolist() == [5, 4.5, 3.5]
    assert recording.notes == ("The run resumed from step 10 after step 20: later rows replace earlier ones.",)


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "metrics/grad_norm").write_text("1668000001 2.0 0\n1668000002\n1668000003 2.0 20\n")
    with pytest.raises(StabilityError, match="metrics/grad_norm, line 2: expected a time, a value and a step"):
        read_log(run)
    make_run(run.parent / "other", "other", {"loss": "1 3.0 0\n2 2.0 5\n"})
    (recording,) = read_runs(run.parent)
    assert recording.name == "other (other)"
    assert "metrics/grad_norm, line 2" in recording.notes[0]
    (run / "metrics/grad_norm").write_text("1668000001 2.0 0\n1668000002 2")
    assert len(read_runs(run)) == 1


def test_a_run_without_a_metric_that_is_known(run: Path) -> None:
    make_run(run.parent / "f2", "ads", {"clicks": "1 9.0 0\n"})
    with pytest.raises(
        StabilityError, match="has no metric that is known as a training loss or gradient norm, but cli"
    ):
        read_log(run.parent / "f2")
