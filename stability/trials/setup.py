"""Prepares a trial: opens its data, and makes its stack from scratch or from its last checkpoint."""

import logging
import shutil
from pathlib import Path

import torch

from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.files import (
    CHECKPOINTS,
    DATA,
    EXCLUDED,
    FIGURE,
    FLIGHT,
    LAST,
    OUTPUT,
    PREVIOUS,
    RECORDING,
    RUNS,
    SIGNALS_FILE,
    TRACKING,
    VALIDATION_FILE,
    VERDICT,
    WORK,
)
from stability.data import synthetic
from stability.data.placement import place
from stability.data.records import Dataset
from stability.data.t15_reader import open_dataset
from stability.diagnosis.signals import signal_names
from stability.diagnosis.table import count_rows, truncate
from stability.engine.decoder import init_parameters
from stability.engine.stack import Stack, new_stack
from stability.trials import checkpoint
from stability.trials.readings import VALIDATED

log = logging.getLogger(__name__)


def open_stack(config: Config, folder: Path, dataset: Dataset, device: torch.device) -> tuple[Stack, checkpoint.Best]:
    """Make a trial's stack of one: new, or as its last checkpoint left it.

    The rows of later steps are dropped from the tables in the folder, because these steps are trained again.

    Args:
        config: The trial's configuration.
        folder: The trial's folder.
        dataset: The trial's data.
        device: The device to train on.

    Returns:
        The stack, and the best validation so far.

    Raises:
        StabilityError: A checkpoint or a table in the folder cannot be used.
    """
    parameters = init_parameters(config.model, dataset.n_features, len(dataset.sessions), config.seed)
    if config.init_from is not None:
        parameters = checkpoint.load_weights(Path(config.init_from), parameters)
    stack = new_stack([config], [parameters], device)
    problems = []
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            best = checkpoint.restore(folder / name, stack, 0)
            _cut_tables(folder, stack, best)
        except StabilityError as error:
            problems.append(str(error))
            continue
        if problems:
            (folder / PREVIOUS).replace(folder / LAST)
            log.warning(
                "The trial goes on from the checkpoint before the last, at step %d: %s", stack.step, problems[0]
            )
        return stack, best
    if problems:
        raise StabilityError(problems[0])
    best = checkpoint.Best()
    _cut_tables(folder, stack, best)
    return stack, best


def _cut_tables(folder: Path, stack: Stack, best: checkpoint.Best) -> None:
    """Drop the rows of steps that are trained again. Check that all earlier ones are there."""
    columns = {SIGNALS_FILE: signal_names(stack.configs[0].model.layers), VALIDATION_FILE: VALIDATED}
    signals, validations = (count_rows(folder / name, stack.step, names) for name, names in columns.items())
    if best.validations is None:
        best.validations = validations
    for name, rows, wanted in (
        (SIGNALS_FILE, signals, stack.step),
        (VALIDATION_FILE, validations, best.validations),
    ):
        if rows != wanted:
            raise StabilityError(
                f"{folder / name} has {rows} rows from before step {stack.step}, and the checkpoint of that step was "
                f"written with {wanted}. Bring the file back, or train the trial from its start: fresh=true"
            )
    for name, names in columns.items():
        truncate(folder / name, stack.step, names)


def open_data(config: Config, device: torch.device) -> Dataset:
    """Open the utterances that a configuration names, check them, and place them for training on a device.

    A synthetic set is written when it is first needed.

    Args:
        config: The trial's configuration.
        device: The device to train on.

    Raises:
        StabilityError: There are no data, they are bad, or they do not fit the configuration.
    """
    outputs, data, path = Path(config.outputs), config.data, data_folder(config)
    dataset = open_dataset(
        path,
        sessions=data.sessions,
        on_bad_utterance=data.on_bad_utterance,
        patch_size=config.model.patch_size,
        patch_stride=config.model.patch_stride,
        max_cut=config.aug.max_cut,
        index_dir=outputs / "index",
    )
    days = len(dataset.train.by_day)
    if config.batch.days > days:
        raise StabilityError(
            f"batch.days={config.batch.days}, but only {days} days of {path} have utterances to train on: "
            f"give batch.days={days} or less."
        )
    return place(dataset, device, outputs)


def data_folder(config: Config) -> Path:
    """Return the folder that holds the sessions. A synthetic set is written when it is first needed.

    Raises:
        StabilityError: The configuration names none, or a set cannot be written.
    """
    data = config.data
    if data.synthetic is not None:
        return synthetic.make_dataset(data.synthetic, Path(data.path) if data.path else Path(config.outputs) / "data")
    if data.path is None:
        raise StabilityError("data.path is null: give the folder that holds the session folders.")
    return Path(data.path)


def clear(folder: Path) -> None:
    """Delete the results of the trial in a folder. Other files, such as its configuration, stay."""
    for inner in (CHECKPOINTS, FLIGHT, WORK):
        shutil.rmtree(folder / inner, ignore_errors=True)
    of_decoder, of_command = (EXCLUDED, DATA), (OUTPUT, RUNS, RECORDING)
    for name in (SIGNALS_FILE, VALIDATION_FILE, VERDICT, FIGURE, TRACKING, *of_decoder, *of_command):
        (folder / name).unlink(missing_ok=True)
