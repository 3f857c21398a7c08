"""Charts of TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stability.core.errors import StabilityError
from stability.diagnosis.readers import read_log, read_runs

HEADER = "Wall time,Step,Value\n"
ROWS = f"{HEADER}1700000000.5,0,6\n1700000001.5,10,5\n"


def write(file: Path, steps: Sequence[int], begin: float = 0.0, factor: float = 1.0) -> None:
    """Write a chart with a row every second, whose values are smaller the larger the step is."""
    file.parent.mkdir(exist_ok=True)
    rows = (f"{begin + second},{step},{factor / (1 + step)}\n" for second, step in enumerate(steps))
    file.write_text(HEADER + "".join(rows))


@pytest.mark.parametrize(("name", "signal"), [("run-a-tag-train_loss.csv", "loss"), ("grad_norm.csv", "grad_norm")])
def test_the_file_names_the_metric(tmp_path: Path, name: str, signal: str) -> None:
    (tmp_path / name).write_text(ROWS)
    recording = read_log(tmp_path / name)
    assert recording.signals.names == (signal,)
    assert recording.signals.steps.tolist() == [0, 10]
    assert recording.notes == ()


def test_a_metric_without_a_name_is_taken_for_the_loss(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text(ROWS)
    recording = read_log(tmp_path / "chart.csv")
    assert recording.signals["loss"].tolist() == [6, 5]
    assert "does not name its metric" in recording.notes[0]
    assert read_log(tmp_path / "chart.csv", names={"grad_norm": "Value"}).signals.names == ("grad_norm",)


def test_a_held_out_loss(tmp_path: Path) -> None:
    (tmp_path / "run-x-tag-val_loss.csv").write_text(ROWS)
    assert read_log(tmp_path / "run-x-tag-val_loss.csv").validation["loss"].tolist() == [6, 5]


@pytest.mark.parametrize("name", ["run1_val_cer.csv", "exp-3 val_per.csv", "val_wer_run1.csv", "a.cer (1).csv"])
def test_an_error_rate_is_not_taken_for_the_loss(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, range(9))
    recording = read_log(tmp_path / name)
    assert recording.name == name
    assert recording.signals.names == ()
    assert recording.validation.names == ("per",)


@pytest.mark.parametrize("name", ["run1_val_loss.csv", "run-a_validation-tag-epoch_loss.csv"])
def test_the_end_of_the_name_says_that_a_loss_is_of_held_out_data(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, range(9))
    recording = read_log(tmp_path / name)
    assert recording.signals.names == ()
    assert recording.validation.names == ("loss",)


def test_a_loss_per_epoch_is_no_error_rate(tmp_path: Path) -> None:
    write(tmp_path / "train_loss_per_epoch.csv", range(9))
    assert read_log(tmp_path / "train_loss_per_epoch.csv").signals.names == ("loss",)


def test_an_error_rate_on_training_data_is_no_training(tmp_path: Path) -> None:
    write(tmp_path / "run1_train_cer.csv", range(9))
    with pytest.raises(StabilityError, match="contains no training"):
        read_log(tmp_path / "run1_train_cer.csv")


def test_the_charts_of_a_run_are_one_training(tmp_path: Path) -> None:
    names = ("train_loss", "val_loss", "val_cer", "lr", "grad_norm", "train_cer")
    for factor, run in enumerate(("run1", "run 2"), 1):
        for begin, name in enumerate(names):
            steps = range(0, 60, 10 if name.startswith("val") else 1)
            write(tmp_path / f"{run}_{name}.csv", steps, begin / 10, factor)
    other, first = read_runs(tmp_path)
    assert (first.name, other.name) == ("run1", "run 2")
    for recording in (first, other):
        assert {*recording.signals.names} == {"loss", "lr", "grad_norm"}
        assert recording.signals.steps.tolist() == [*range(60)]
        assert {*recording.validation.names} == {"loss", "per"}
        assert recording.validation.steps.tolist() == [*range(0, 60, 10)]
        assert (recording.metric, recording.notes) == ("CER", ())


def test_the_run_and_the_tag_in_the_names_that_the_page_gives(tmp_path: Path) -> None:
    for name in ("exp_ctc-tag-loss_train", "exp_ctc-tag-eval_wer", "exp_ctc-tag-model_grad_norm", "b-tag-train_loss"):
        write(tmp_path / f"run-{name}.csv", range(9), factor=2 if name.startswith("b") else 1)
    for part in ("train", "validation"):  # of Keras
        write(tmp_path / f"run-k_{part}-tag-epoch_loss.csv", range(9), factor=3)
    for name in ("e_train-tag-Loss_train", "e_train-tag-grad_norm", "e_valid-tag-Loss_valid", "e_valid-tag-PER_valid"):
        write(tmp_path / f"run-{name}.csv", range(9), factor=4)
    runs = {run.name: ({*run.signals.names}, {*run.validation.names}) for run in read_runs(tmp_path)}
    assert runs == {
        "exp_ctc": ({"loss", "grad_norm"}, {"per"}),
        "b": ({"loss"}, set()),
        "k": ({"loss"}, {"loss"}),
        "e": ({"loss", "grad_norm"}, {"loss", "per"}),
    }


def test_charts_without_the_name_of_a_run(tmp_path: Path) -> None:
    for copy in ("", " (1)"):  # as browsers name what was saved before
        for name in ("loss", "val_wer"):
            write(tmp_path / f"a/{name}{copy}.csv", range(9), factor=2 if copy else 1)
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("a/(1)", "a/charts")
    assert (first.signals["loss"][0], second.signals["loss"][0]) == (2, 1)
    assert len(first.validation.steps) == len(second.validation.steps) == 9


def test_a_restart_is_followed_in_all_charts(tmp_path: Path) -> None:
    steps = (*range(50), *range(30, 80))
    write(tmp_path / "a_train_loss.csv", steps)
    write(tmp_path / "a_grad_norm.csv", steps, 0.1)
    (tmp_path / "a_val_per.csv").write_text(f"{HEADER}20.2,20,0.9\n45.2,45,0.8\n90.2,70,0.5\n")
    (recording,) = read_runs(tmp_path)
    assert recording.signals.steps.tolist() == [*range(80)]
    assert recording.validation.steps.tolist() == [20, 70]  # the one at step 45 was before the restart
    assert "resumed from step 30 after step 49" in recording.notes[0]


def test_a_run_without_a_loss_keeps_its_validations(tmp_path: Path) -> None:
    for name in ("a_train_loss", "a_val_per", "b_val_per"):
        write(tmp_path / f"{name}.csv", range(9))
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert second.signals.names == ()
    assert "no loss of training data" in second.notes[0]


def test_a_chart_without_a_metric_is_left_out_if_there_are_others(tmp_path: Path) -> None:
    for name in ("gpu", "b/chart"):
        write(tmp_path / f"{name}.csv", range(9))
    write(tmp_path / "a_train_loss.csv", range(9), factor=3)
    first, second = read_runs(tmp_path)
    assert first.notes == ("Charts whose names do not end in a metric that is known were left out: gpu.csv.",)
    assert (first.name, second.name) == ("a", "b/chart.csv")
    assert "does not name its metric" in second.notes[0]


def test_charts_without_a_metric_are_losses_if_there_are_no_others(tmp_path: Path) -> None:
    write(tmp_path / "first.csv", range(9))
    write(tmp_path / "second.csv", range(9), factor=2)
    write(tmp_path / "lr.csv", range(9))
    assert [run.name for run in read_runs(tmp_path)] == ["first.csv", "second.csv"]


def test_a_metric_at_the_beginning_of_the_name(tmp_path: Path) -> None:
    for name, factor in (("loss_run1", 5), ("val_wer_run1", 1), ("lr_run1", 0.1), ("loss_run2", 6)):
        write(tmp_path / f"{name}.csv", range(9), factor=factor)
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("run1", "run2")
    assert ({*first.signals.names}, first.validation.names) == ({"loss", "lr"}, ("per",))
    assert (first.signals["loss"][0], first.notes) == (5, ())
    with pytest.raises(StabilityError, match="contains no training"):
        read_log(tmp_path / "lr_run1.csv")


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a_train_loss.csv", range(9))
    (tmp_path / "a_val_per.csv").write_text(f"{HEADER}1,0,1\n2,10\n3,20,1\n")
    with pytest.raises(StabilityError, match=r"a_val_per\.csv, line 3: expected 3 cells"):
        read_runs(tmp_path)
