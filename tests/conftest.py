import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before PyTorch starts: with more threads, the workers of xdist fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test sends to the developer's own store.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)

# Before CUDA starts: what `prepare_process` sets for training.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

# Before Triton starts: without a GPU it interprets its kernels, which then run on the CPU.
os.environ["TRITON_INTERPRET"] = str(int(not torch.cuda.is_available()))

from stability.config.schema import Synthetic
from stability.data import synthetic
from stability.data.placement import place
from stability.data.records import Dataset
from stability.data.t15_reader import open_dataset
from tests.support.commandline import CommandLine


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four days of six features, with few and short utterances."""
    root: Path = tmp_path_factory.mktemp("data")
    settings = Synthetic(
        seed=0, days=4, features=6, train_utterances=6, val_utterances=5, words=1, noise=0.5, drift=0.3
    )
    folder = synthetic.make_dataset(settings, root)
    dataset = open_dataset(folder, patch_size=14, patch_stride=4, max_cut=2, index_dir=root / "index")
    return place(dataset, torch.device("cpu"), root)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Where the command line keeps its synthetic sets, written once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "sets"


@pytest.fixture
def cli(tmp_path: Path, sets: Path) -> Iterator[CommandLine]:
    cli = CommandLine(tmp_path, sets)
    yield cli
    for process in cli.started:  # of a test that failed
        process.kill()
        process.communicate()
