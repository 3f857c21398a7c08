"""The benchmark against the official trainer: all of it that needs no GPU."""

import io
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import official, step_floor
from experiments.benchmarks.cuda_speed import (
    Run,
    Sample,
    Training,
    _Size,
    comparison,
    made_up,
    parse_samples,
    parts_table,
    progress,
    watch,
)
from experiments.benchmarks.step_floor import Floor, Rates
from stability.core.errors import StabilityError
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.data import synthetic
from stability.data.t15_reader import open_dataset
from stability.data.t15_writer import Utterance, write_session
from stability.engine.decoder import forward, init_parameters
from tests.support.commandline import CommandLine
from tests.support.configs import tiny
from tests.support.tables import append_rows

ARGS = """
model: {n_input_features: 512, n_units: 768}
gpu_number: '1'
output_dir: trained_models/baseline_rnn
init_from_checkpoint: false
save_best_checkpoint: true
save_all_val_steps: false
save_final_model: false
save_val_metrics: true
early_stopping: true
num_training_batches: 120000
batches_per_train_log: 200
batches_per_val_step: 2000
epsilon: 0.1
dataset:
  days_per_batch: 2
  batch_size: 64
  dataset_dir: ../data/hdf5_data_final
  sessions: [t15.2023.08.11, t15.2023.08.13]
  dataset_probability_val: [0, 1]
"""


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """A folder with files of the official trainer's names, of which one cannot be imported."""
    folder = tmp_path / "clone" / "model_training"
    folder.mkdir(parents=True)
    (folder / "train_model.py").touch()
    (folder / "rnn_trainer.py").write_text("import no_such_library\n")
    (folder / "rnn_args.yaml").write_text(ARGS)
    return folder


def write_days(data: Path, *names: str) -> None:
    """An utterance to train on for each day, and one to validate on for each day but the first."""
    utterance = Utterance(features=np.zeros((14, 3), np.float32), labels=np.array([1]))
    for name in names:
        write_session(data / name, "train", [utterance])
        if name != names[0]:
            write_session(data / name, "val", [utterance])


def rendered(table: Table) -> list[list[str]]:
    """The rows of a table, and their cells."""
    out = io.StringIO()
    Console(file=out, width=250).print(table)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.getvalue().splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_there_is_one_message() -> None:
    ended = subprocess.run([sys.executable, "-m", "experiments.benchmarks.cuda_speed"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: PyTorch {torch.__version__} sees no CUDA device")
    assert ended.stderr.count("\n") == 1
    assert not ended.stdout


def test_no_clone(tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"make benchmark-cuda OFFICIAL=FOLDER\. git clone https://"):
        official.trainer_folder(None)
    with pytest.raises(StabilityError, match=r"lacks train_model\.py, rnn_trainer\.py, rnn_args\.yaml"):
        official.trainer_folder(tmp_path)


def test_what_the_trainer_cannot_import_is_named(trainer: Path) -> None:
    assert official.trainer_folder(trainer.parent) == trainer
    with pytest.raises(StabilityError, match=r"\(ModuleNotFoundError: No module named 'no_such_library'\).*_PYTHON="):
        official.torch_version(trainer, sys.executable)
    with pytest.raises(StabilityError, match="nowhere/python does not run"):
        official.torch_version(trainer, "nowhere/python")
    assert {path.name for path in trainer.iterdir()} == {"train_model.py", "rnn_trainer.py", "rnn_args.yaml"}


def test_the_official_configuration_is_the_clones_own_on_our_sessions(trainer: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "runs" / "0"
    write_days(data, "day1", "day2", "day3")
    command = official.prepare(trainer, data, run, 30, "python3")
    assert command == ["python3", "-B", str(trainer / "train_model.py")]
    args = OmegaConf.to_container(OmegaConf.load(run / "rnn_args.yaml"))
    assert isinstance(args, dict)
    assert args.pop("dataset") == {
        "days_per_batch": 2,
        "batch_size": 64,
        "dataset_dir": str(sessions := run / "sessions"),
        "sessions": ["t15.20-day1", "t15.20-day2", "t15.20-day3"],  # it takes nothing else for sessions
        "dataset_probability_val": [0, 1, 1],  # the first day has no utterances to validate on
    }
    assert (sessions / "t15.20-day2" / "data_val.hdf5").samefile(data / "day2" / "data_val.hdf5")
    assert args.pop("output_dir") == str(run / "out")
    assert args == {
        "model": {"n_input_features": 3, "n_units": 768},
        "gpu_number": "0",
        "init_from_checkpoint": False,
        "save_best_checkpoint": False,
        "save_all_val_steps": False,
        "save_final_model": False,
        "save_val_metrics": False,
        "early_stopping": False,
        "num_training_batches": 30,
        "batches_per_train_log": 1,
        "batches_per_val_step": 30,
        "epsilon": 0.1,
    }


def test_a_configuration_of_another_version(trainer: Path, tmp_path: Path) -> None:
    write_days(tmp_path / "data", "day1", "day2")
    (trainer / "rnn_args.yaml").write_text(ARGS.replace("save_val_metrics", "save_metrics"))
    with pytest.raises(StabilityError, match=r"rnn_args\.yaml has no save_val_metrics: this benchmark does not know"):
        official.configuration(trainer, tmp_path / "data", tmp_path, 30)


def test_sessions_that_the_official_trainer_cannot_read(trainer: Path, tmp_path: Path) -> None:
    write_days(tmp_path / "few", "day1")
    with pytest.raises(StabilityError, match=r"have 1 sessions with data_train.hdf5, .* has 2 days"):
        official.prepare(trainer, tmp_path / "few", tmp_path / "0", 30, "python3")
    write_days(tmp_path / "other", "day1", "day2")
    with h5py.File(tmp_path / "other" / "day1" / "data_train.hdf5", "w"):
        pass
    with pytest.raises(StabilityError, match=r"day1/data_train\.hdf5 is not in the layout"):
        official.prepare(trainer, tmp_path / "other", tmp_path / "1", 30, "python3")


def test_both_trainers_can_read_the_made_up_sessions(trainer: Path, tmp_path: Path) -> None:
    settings = replace(made_up(_Size(1, 1, 1, days=3, train_utterances=3, val_utterances=1)), recordings=1)
    data = synthetic.make_dataset(settings, tmp_path / "work")
    dataset = open_dataset(data, patch_size=14, patch_stride=4, max_cut=2, index_dir=tmp_path / "index")
    assert dataset.n_features == 512
    assert len(dataset.train.records) == 9
    assert not dataset.excluded
    official.prepare(trainer, data, tmp_path / "run", 30, "python3")
    args = OmegaConf.load(tmp_path / "run" / "rnn_args.yaml")
    assert len(args.dataset.sessions) == 3
    assert args.dataset.dataset_probability_val == [1, 0, 1]  # the second day has utterances to train on alone


def test_progress_of_the_official_trainer(tmp_path: Path) -> None:
    log = tmp_path / official.LOG
    assert official.progress(log) == (0, 0)
    log.write_text(
        "2025-11-06 01:30:15,391: Using torch.compile\n"
        "2025-11-06 01:31:05,100: Train batch 0: loss: 754.30 grad norm: 293.83 time: 41.204\n"
        "2025-11-06 01:31:05,101: Running test after training batch: 0\n"
        "2025-11-06 01:33:05,101: Val batch 0: PER (avg): 1.2155 CTC Loss (avg): 715.2 time: 119.900\n"
        "2025-11-06 01:33:05,102: t15.2023.08.13 val PER: 1.2001\n"
        "2025-11-06 01:33:05,304: Train batch 1: loss: 752.11 grad norm: 290.10 time: 0.104\n"
    )
    assert official.progress(log) == (2, 1)


def test_progress_of_ours(tmp_path: Path) -> None:
    assert progress(tmp_path) == (0, 0)
    (tmp_path / SIGNALS_FILE).touch()
    assert progress(tmp_path) == (0, 0)
    append_rows(tmp_path / SIGNALS_FILE, ["loss"], [0, 1, 2], np.ones((3, 1), np.float32))
    append_rows(tmp_path / VALIDATION_FILE, ["per"], [0], np.ones((1, 1), np.float32))
    assert progress(tmp_path) == (3, 1)


def test_the_output_of_a_training_that_ends_early_is_in_the_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('CUDA out of memory')"]
    training = Training("official", command, tmp_path, tmp_path, partial(progress, tmp_path))
    with pytest.raises(StabilityError, match=r"(?s)official .* \(exit status 1\) after 0 of 9 .*CUDA out of memory"):
        watch(training, 9)


@pytest.mark.slow
def test_our_training_is_watched_from_its_start_to_its_last_validation(cli: CommandLine) -> None:
    folder = cli.folder / "trial"
    more = ("model.units=8", "model.layers=2", "batch.size=8", "steps=12", "tracking=none", f"hydra.run.dir={folder}")
    command = [sys.executable, "-m", "stability.train", *cli.synthetic, *more]
    run = watch(Training("ours", command, cli.folder, folder, partial(progress, folder)), 12)
    assert run.seen[-1][1] == 12
    assert 0 < run.since(1) < run.since(12) < run.validated
    assert len(run.losses) == 12
    assert np.isfinite(run.losses).all()


def test_the_output_of_the_driver_is_read() -> None:
    said = "2026/11/22 18:40:57.123, 512, 0\n2026/11/22 18:40:57.223, 2048, 97\n2026/11/22 18:40:57.323, 2050, [N/A]\n"
    samples = parse_samples(said + "2026/11/22 18:40:57.4")
    begun = datetime(2026, 11, 22, 18, 40, 57, 123_000).timestamp()
    assert [sample.when - begun for sample in samples] == pytest.approx([0, 0.1, 0.2], abs=1e-5)
    assert [sample.memory for sample in samples] == [512 * 2**20, 2048 * 2**20, 2050 * 2**20]
    assert [sample.busy for sample in samples] == pytest.approx([0, 0.97, np.nan], nan_ok=True)


def a_run(first: float, a_step: float, losses: np.ndarray, block: int = 1) -> Run:
    """Its first step takes `first`, each one after it `a_step`; a validation takes 4 steps' time."""
    counts = [1, *range(block, len(losses) + 1, block)] if block > 1 else [*range(1, len(losses) + 1)]
    seen = [(first + a_step * (count - 1), count) for count in counts]
    gpu = [Sample(99.0, 1e9, 0.1), Sample(100 + first, 5e9, 0.2), Sample(100 + seen[-1][0] - a_step, 4e9, 0.8)]
    return Run(100.0, seen, seen[-1][0] + 4 * a_step, losses.astype(np.float32), gpu)


def test_comparison_from_given_runs() -> None:
    falling = np.linspace(700, 100, 61)  # by 10 a step
    theirs = [a_run(60.0, 0.2, falling), a_run(40.0, 0.1, falling)]
    ours = [a_run(10.0, 0.05, falling - 200, block=10), a_run(8.0, 0.05, falling - 200, block=10)]
    *head, rate, until, first, again, validation, memory, busy = rendered(comparison(theirs, ours, 30))
    assert "30 steps" in head[0][0]
    name, *cells = rate
    assert name.startswith("steps a second")
    assert cells == ["7.50 (5.00 to 10.00)", "20.00 (20.00 to 20.00)", "3.00"]
    # The official run's last median is 195, of steps 41 to 60; ours has 195 after step 40, and says so at the 50th.
    assert until[0].endswith("a loss of 195.0")
    assert until[1:] == ["59.0 (46.0 to 72.0)", "11.4 (10.4 to 12.4)", "0.20"]
    assert first[1:] == ["60.0 (60.0 to 60.0)", "10.0 (10.0 to 10.0)", "0.17"]
    assert again[1:] == ["40.0 (40.0 to 40.0)", "8.0 (8.0 to 8.0)", "0.20"]
    assert validation[1:] == ["0.6 (0.4 to 0.8)", "0.2 (0.2 to 0.2)", "0.38"]
    assert memory[1:] == ["4.00 (4.00 to 4.00)", "4.00 (4.00 to 4.00)", "1.00"]
    assert busy[1:] == ["80% (80% to 80%)", "80% (80% to 80%)", "1.00"]


@pytest.mark.parametrize("units", [8, 32])  # by PyTorch's operations, and compiled
def test_operations_are_those_of_the_decoder(units: int) -> None:
    model, features, bins = tiny("model.layers=3", f"model.units={units}").model, 6, torch.tensor([37, 37, 37])
    parameters = {n: p.unsqueeze(0).requires_grad_() for n, p in init_parameters(model, features, 1, 0).items()}
    frames = torch.full((1, 3), 6)
    with step_floor.counter() as counter:
        logits = forward(parameters, torch.randn(1, 3, 37, features), frames, (3,), model)
        there = counter.get_total_flops()
        torch.autograd.grad(logits.sum(), [*parameters.values()])
    assert step_floor.operations(model, features, bins) == (there, counter.get_total_flops() - there)


def test_floors() -> None:
    model, bins, labels = tiny("model.layers=2", "model.units=8").model, torch.tensor([14, 22]), torch.tensor([1, 2])
    floors = step_floor.floors(model, 5, bins, labels, 1000, Rates(2.0, 10.0, 3.0))
    forward_operations, backward_operations = step_floor.operations(model, 5, bins)
    x, logits, kept = 36 * 5 * 4, (1 + 3) * 41 * 4, (36 * 5 + 4 * 2 * 5 * 8) * 2
    alphas = (1 * 3 + 3 * 5) * 4
    assert floors["data"] == Floor(0, x / 10, 0)
    assert floors["augmentation"] == Floor(0, 2 * x / 10, 0)
    assert floors["forward"] == Floor(forward_operations / 2, (x + 4000 + kept + logits) / 10, 3 * 2 * 3.0)
    assert floors["CTC"] == Floor(0, (logits + alphas) / 10, 0)
    assert floors["backward"] == Floor(backward_operations / 2, (logits + alphas + kept + 8000) / 10, 3 * 2 * 3.0)
    assert floors["optimiser"] == Floor(0, 8 * 4000 / 10, 0)
    assert floors["signals"] == Floor(0, (x + logits) / 10, 0)


def test_rates_can_be_measured() -> None:
    rates = step_floor.measure(torch.device("cpu"), torch.float32, rows=2, units=4, size=16, copied=1000)
    assert all(0 < rate < np.inf for rate in rates)


def test_parts_from_given_seconds() -> None:
    floors = {"forward": Floor(0.001, 0.002, 0.004), "CTC": Floor(0, 0.001, 0)}
    table = parts_table({"forward": 0.005, "CTC": 0.010}, 0.020, floors)
    *_, forward_row, ctc, rest, step = rendered(table)
    assert forward_row == ["forward", "5.00", "1.00", "2.00", "4.00", "4.00", "80%"]
    assert ctc == ["CTC", "10.00", "0.00", "1.00", "0.00", "1.00", "10%"]
    assert rest == ["rest", "5.00"]
    assert step == ["step", "20.00", "5.00", "25%"]
