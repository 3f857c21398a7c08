"""Evaluates a trained decoder on a split: error rates and confusions by session, and logits into a file."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stability.core.device import choose_device
from stability.core.errors import StabilityError
from stability.core.stopping import postponed
from stability.core.text import counted, listed, printable
from stability.data.logits_file import check_logits_file, write_logits
from stability.data.progress import progress
from stability.data.t15_reader import open_split, session_names
from stability.engine.confusion import CLASSES, count_confusions
from stability.engine.evaluate import decode
from stability.engine.loss import greedy_decode
from stability.engine.memory import is_out_of_memory, prepare_process
from stability.engine.optimizer import DAY_LAYER
from stability.engine.stack import new_stack
from stability.trials.setup import data_folder
from stability.trials.trained import Trained


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        trained: The decoder.
        split: "train", "val" or "test".
        data: The folder that holds the sessions.
        sessions: The sessions that have utterances, in the order of the day layers.
        utterances: Their number of utterances.
        confusions: Counts by session, spoken phoneme and heard phoneme, (sessions, 41, 41), as `count_confusions`
            returns them; None if the utterances have no labels.
        excluded: One message for each bad utterance that was left out.
        device: The device that computed it.
        precision: The precision there: fp32, bf16 or fp16.
    """

    trained: Trained
    split: str
    data: Path
    sessions: tuple[str, ...]
    utterances: tuple[int, ...]
    confusions: NDArray[np.int64] | None
    excluded: tuple[str, ...]
    device: str
    precision: str


def evaluate_trained(
    trained: Trained, split_name: str, logits_file: Path | None = None, *, overwrite: bool = False
) -> Evaluation:
    """Decode every utterance of a split once, greedily, one batch at a time.

    Args:
        trained: The decoder, whose configuration says where the data are.
        split_name: "train", "val" or "test".
        logits_file: Where to write the logits, HDF5 or NPZ; None: nowhere.
        overwrite: Whether a file there is replaced.

    Raises:
        StabilityError: The data do not fit the decoder, there is nothing to find out, or the file cannot be written.
    """
    if logits_file is not None:
        check_logits_file(logits_file, overwrite=overwrite)
    config = trained.config
    prepare_process()
    device = choose_device(config.device)
    data = data_folder(config)
    known, wanted = _choose_sessions(trained, data)
    split = open_split(
        data,
        split_name,
        sessions=wanted,
        on_bad_utterance=config.data.on_bad_utterance,
        patch_size=config.model.patch_size,
        patch_stride=config.model.patch_stride,
        index_dir=Path(config.outputs) / "index",
    )
    if split.n_features != trained.n_features:
        raise StabilityError(
            f"{trained.path} reads {counted(trained.n_features, 'feature')} in a bin, but the recordings in {data} "
            f"have {split.n_features}. Give the recordings that it was trained on, or others with the same features."
        )
    labelled = all(record.labels is not None for record in split.records)
    if not labelled and logits_file is None:
        raise StabilityError(
            f"The {split_name} utterances in {data} have no labels, so there is no error rate. Add --logits OUT.hdf5 "
            "to write their logits, or measure with --split val."
        )
    days = [known.index(name) for name in wanted]
    own = {name: p[days] if name in DAY_LAYER else p for name, p in trained.parameters.items()}
    stack = new_stack([config], [own], device)
    confusions = np.zeros((len(wanted), CLASSES, CLASSES), np.int64)
    try:
        with (
            progress("decoding", len(split.records)) as advance,
            nullcontext() if logits_file is None else write_logits(logits_file) as add,
        ):
            for i, logits in decode(stack, split):
                record = split.records[i]
                classes = torch.from_numpy(logits.argmax(-1))
                (decoded,) = greedy_decode(classes[None], torch.tensor([len(classes)]))
                if labelled:
                    confusions[record.day] += count_confusions(decoded, split.labels(i).tolist())
                if add is not None:
                    with postponed():  # an exception while HDF5 writes would end the process
                        add(wanted[record.day], record, logits, decoded)
                advance(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StabilityError(
            f"The memory of device={config.device} does not hold a batch of {config.batch.size} utterances: give a "
            "smaller batch.size."
        ) from error
    with_utterances = [*split.by_day]
    return Evaluation(
        trained=trained,
        split=split_name,
        data=data,
        sessions=tuple(wanted[day] for day in with_utterances),
        utterances=tuple(len(split.by_day[day]) for day in with_utterances),
        confusions=confusions[with_utterances] if labelled else None,
        excluded=split.excluded,
        device=str(device),
        precision=stack.precision,
    )


def _choose_sessions(trained: Trained, data: Path) -> tuple[tuple[str, ...], list[str]]:
    """The sessions of the day layers, and those to evaluate, in the same order."""
    chosen = trained.config.data.sessions
    if trained.sessions is None:
        # As the official reader: the sessions are the days, in the order in which they are named.
        known = session_names(data, chosen)
        if len(known) != trained.days:
            raise StabilityError(
                f"{trained.path} has {counted(trained.days, 'day layer')} and nothing says of which sessions, and "
                f"{f'{len(known)} are named' if chosen else f'{data} has {len(known)}'}. Put the args.yaml of its "
                "training next to it, or name all its sessions in the order of its training: 'data.sessions=[A,B,…]'"
            )
        return known, [*known]
    known, wanted = trained.sessions, session_names(data, chosen)
    if unknown := [name for name in wanted if name not in known]:
        raise StabilityError(
            f"{trained.path} has no day layer for {listed(map(printable, unknown))} in {data}. The sessions that it "
            f"knows are {listed(map(printable, known))}. Evaluate some of these: 'data.sessions=[{known[0]}]'"
        )
    return known, [name for name in known if name in wanted]
