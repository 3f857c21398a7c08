"""The official trainer in the user's own clone: checks that it can run, and prepares some steps on given sessions.

The clone is not changed. Its program `train_model.py` reads `rnn_args.yaml` from the folder in which it is started.
"""

import subprocess
from pathlib import Path
from typing import Any

import h5py
from omegaconf import DictConfig, OmegaConf

from stability.core.errors import StabilityError

LOG = "training_log"  # in its output folder

_ARGS = "rnn_args.yaml"
_FILES = ("train_model.py", "rnn_trainer.py", _ARGS)
_CLONE_WITH = "git clone https://github.com/Neuroprosthetics-Lab/nejm-brain-to-text"
_PREFIX = "t15.20-"  # it recognises the folder of a session by a name that starts with "t15.20" or "t12.20"
_CHECK = "import rnn_trainer, torch; print(torch.__version__, torch.cuda.is_available())"


def trainer_folder(clone: Path | None) -> Path:
    """The folder of the trainer in a clone. Raises StabilityError if it is no clone of the official trainer."""
    if clone is None:
        raise StabilityError(
            f"Give a clone of the official trainer: make benchmark-cuda OFFICIAL=FOLDER. {_CLONE_WITH}"
        )
    folder = clone.resolve() / "model_training"
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise StabilityError(
            f"{clone} is not a clone of the official trainer: {folder} lacks {', '.join(missing)}. {_CLONE_WITH}"
        )
    return folder


def torch_version(folder: Path, python: str) -> str:
    """The version of PyTorch that the trainer runs on. Raises StabilityError if `python` cannot run it on CUDA."""
    remedy = "or name the Python of an environment in which it runs: make benchmark-cuda OFFICIAL_PYTHON=PYTHON"
    try:
        looked = subprocess.run([python, "-B", "-c", _CHECK], cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise StabilityError(f"{python} does not run ({error.strerror}): name another with OFFICIAL_PYTHON.") from None
    if looked.returncode:
        *_, reason = looked.stderr.strip().splitlines() or [f"exit status {looked.returncode}"]
        raise StabilityError(
            f"{python} cannot import the official trainer ({reason}). Install what is missing, {remedy}"
        )
    version, cuda = looked.stdout.split()[-2:]
    if cuda != "True":
        raise StabilityError(
            f"The official trainer would run on the CPU: PyTorch {version} of {python} sees no CUDA device. "
            f"Install one built with CUDA, {remedy}"
        )
    return version


def configuration(folder: Path, sessions: Path, output: Path, steps: int) -> DictConfig:
    """The clone's own configuration, with other sessions and fewer steps. It logs each step and writes only its log.

    It validates after the first and after the last step.

    Raises:
        StabilityError: there are fewer sessions than days in a batch, or the clone has another version.
    """
    args = OmegaConf.load(folder / _ARGS)
    names = sorted(path.name for path in sessions.iterdir())
    days = OmegaConf.select(args, "dataset.days_per_batch", default=1)
    if len(names) < days:
        raise StabilityError(
            f"The data have {len(names)} sessions with data_train.hdf5, but a batch of the official trainer has "
            f"{days} days. Give a folder of session folders in the layout of the T15 recordings."
        )
    features = _features(sessions / names[0] / "data_train.hdf5")
    ours: dict[str, Any] = {
        "gpu_number": "0",
        "output_dir": str(output),
        "init_from_checkpoint": False,
        "save_best_checkpoint": False,
        "save_all_val_steps": False,
        "save_final_model": False,
        "save_val_metrics": False,
        "early_stopping": False,
        "num_training_batches": steps,
        "batches_per_train_log": 1,
        "batches_per_val_step": steps,
        "model.n_input_features": features,
        "dataset.dataset_dir": str(sessions),
        "dataset.sessions": names,
        "dataset.dataset_probability_val": [int((sessions / name / "data_val.hdf5").exists()) for name in names],
    }
    absent = object()
    if unknown := [key for key in ours if OmegaConf.select(args, key, default=absent) is absent]:
        raise StabilityError(
            f"{folder / _ARGS} has no {', '.join(unknown)}: this benchmark does not know this version "
            "of the official trainer. Check out an earlier commit of it."
        )
    for key, value in ours.items():
        OmegaConf.update(args, key, value)
    assert isinstance(args, DictConfig)
    return args


def _features(path: Path) -> int:
    try:
        with h5py.File(path, "r", locking=False) as file:
            _, features = file["trial_0000"]["input_features"].shape
    except (OSError, KeyError) as error:
        raise StabilityError(f"{path} is not in the layout of the T15 recordings: {error}.") from None
    return int(features)


def prepare(folder: Path, data: Path, run: Path, steps: int, python: str) -> list[str]:
    """Write the configuration of a run into the folder `run`, and return the command to start there.

    Its log will be `run / "out" / LOG`. It reads the data set through links, whose names it recognises as sessions.
    """
    sessions = run / "sessions"
    sessions.mkdir(parents=True)
    for file in data.glob("*/data_train.hdf5"):
        (sessions / f"{_PREFIX}{file.parent.name}").symlink_to(file.parent.resolve())
    OmegaConf.save(configuration(folder, sessions, run / "out", steps), run / _ARGS)
    return [python, "-B", str(folder / "train_model.py")]


def progress(log: Path) -> tuple[int, int]:
    """The numbers of training steps and validations in the trainer's log so far."""
    text = log.read_bytes() if log.exists() else b""
    return text.count(b": Train batch "), text.count(b": Val batch ")
