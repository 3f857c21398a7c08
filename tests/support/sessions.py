"""Small sessions in the T15 layout, and ways to spoil and open them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stability.core.errors import StabilityError
from stability.data.records import Dataset, Split
from stability.data.t15_reader import open_dataset, open_split
from stability.data.t15_writer import Utterance, write_session


def utterances(count: int, bins: int = 60, features: int = 4, seed: int = 0) -> Iterator[Utterance]:
    """Utterances of random features, each with five different labels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        labels = rng.permutation(np.arange(1, 41))[:5]
        yield Utterance(
            features=rng.normal(size=(bins, features)),
            labels=labels,
            transcription=f"sentence {number}",
            block=3,
            number=number + 10,
        )


def opened(root: Path, **changes: Any) -> Dataset:
    """The data set in `root`, with the index next to it."""
    settings: dict[str, Any] = {"patch_size": 14, "patch_stride": 4, "max_cut": 2}
    settings["index_dir"] = root.parent / "index"
    return open_dataset(root, **(settings | changes))


def opened_split(root: Path, split: str, **changes: Any) -> Split:
    """One split in `root`, with the index next to it."""
    settings: dict[str, Any] = {"patch_size": 14, "patch_stride": 4, "index_dir": root.parent / "index"}
    return open_split(root, split, **(settings | changes))


def failure(root: Path, **changes: Any) -> str:
    """The message of the error when the data set in `root` is opened."""
    with pytest.raises(StabilityError) as caught:
        opened(root, **changes)
    return str(caught.value)


def replace_dataset(group: Any, name: str, values: Any) -> None:
    """Replace a dataset of an open HDF5 group."""
    del group[name]
    group[name] = values


def put(group: Any, name: str, index: Any, value: Any) -> None:
    """Overwrite some values of a dataset."""
    group[name][index] = value


def set_attribute(group: Any, name: str, value: Any) -> None:
    """Set an attribute of a group."""
    group.attrs[name] = value


def remove_labels(group: Any) -> None:
    """Remove the labels of an utterance."""
    del group["seq_class_ids"]
    del group.attrs["seq_len"]


def shorten(group: Any) -> None:
    """Make an utterance 15 bins long."""
    replace_dataset(group, "input_features", np.zeros((15, 4), np.float32))
    set_attribute(group, "n_time_steps", 15)


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> list[tuple[Any, ...]]:
    """A list that gets the arguments of each call of a function of a module."""
    calls: list[tuple[Any, ...]] = []
    original: Callable[..., Any] = getattr(module, function)

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, function, counting)
    return calls


def write_ragged_days(root: Path) -> Path:
    """Write four days, each with three utterances of different lengths to train on and two to validate on."""
    for day in range(4):
        write_ragged_day(root, day)
    return root


def write_ragged_day(root: Path, day: int, scale: float = 1.0) -> None:
    """Write, or write again, one such day."""
    rng = np.random.default_rng(day)
    for split, lengths in (("train", [50, 60, 70]), ("val", [45, 45])):
        write_session(
            root / f"day.{day}",
            split,
            [
                Utterance(features=scale * rng.normal(size=(length, 4)), labels=rng.permutation(np.arange(1, 41))[:5])
                for length in lengths
            ],
        )


def all_features(split: Split) -> list[bytes]:
    """The bytes of each utterance's features."""
    return [split.read(i).tobytes() for i in range(len(split.records))]
