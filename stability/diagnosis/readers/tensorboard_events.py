"""TensorBoard's event files, `events.out.tfevents.…`: a run per folder, as TensorBoard shows them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stability.core.extras import require
from stability.core.files import open_to_read
from stability.diagnosis.readers.names import find_name, part_in, see_names
from stability.diagnosis.readers.recording import Recording, RowCollector
from stability.diagnosis.readers.runs import is_validation

_REPORT_EVERY = 10_000  # events
_MOST_VALIDATIONS = 100_000  # whose steps are remembered
_AROUND = 16  # bytes around each record


def is_event_file(path: Path) -> bool:
    """Return whether a file has the name of an event file."""
    return ".tfevents." in path.name


def group_by_run(files: Sequence[Path]) -> dict[Path, list[Path]]:
    """Group event files by the folder of the run that wrote them.

    A run may write its validations to a folder of their own. Keras, ESPnet and fairseq have the folders `train` and
    `validation`, and `SummaryWriter.add_scalars` makes `loss_train` and `loss_val`. Such folders are one run.
    """
    parts = {file.parent: part_in(file.parent.name) for file in files}
    runs: dict[Path, list[Path]] = {}
    for file in sorted(files):
        folder = file.parent
        siblings = {part for other, part in parts.items() if other.parent == folder.parent}
        joined = parts[folder] and (folder.parent in parts or {"train", "val"} <= siblings)
        runs.setdefault(folder.parent if joined else folder, []).append(file)
    return runs


def read(run: Path, files: Sequence[Path], name: str, progress: Callable[[int, int], None]) -> list[Recording]:
    """Read the event files of one run.

    Args:
        run: The folder of the run. A tag from another folder gets the folder's name in front: `validation/loss`.
        files: Its event files.
        name: What to call the run.
        progress: Called every 10,000 events with the number of bytes read so far and the size of all files.

    Returns:
        A recording, or several if the run was started anew. There is none if the files contain no training.

    Raises:
        StabilityError: The extra `tensorboard` is not installed.
        OSError: A file cannot be read.
    """
    require("tensorboard")
    rows = _Rows()
    size = sum(file.stat().st_size for file in files)
    done = number = 0
    for file in files:
        part = "" if file.parent == run else f"{part_in(file.parent.name)}/"
        for step, scalars, length in _events(file):
            titles = {part + tag: value for tag, value in scalars.items()}
            see_names(titles)
            rows.add(step, {title: value for title, value in titles.items() if _is_signal(title)})
            number, done = number + 1, done + length
            if number % _REPORT_EVERY == 0:
                progress(done, size)
    return rows.recordings(name)


def read_hparams(files: Sequence[Path]) -> dict[str, bool | float | str]:
    """Read the settings that a run has written for TensorBoard's page of hyperparameters; empty if there are none.

    Raises:
        StabilityError: The extra `tensorboard` is not installed.
        OSError: A file cannot be read.
    """
    if not files:
        return {}
    require("tensorboard")
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found: dict[str, bool | float | str] = {}
    for record in (record for file in files for record in _records(file) if b"hparams" in record):
        with suppress(DecodeError):
            for value in Event.FromString(record).summary.value:
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for name, setting in data.session_start_info.hparams.items():
                    kind = setting.WhichOneof("kind")
                    level = getattr(setting, kind)
                    # All numbers are kept as floats, the seed too.
                    whole = kind == "number_value" and level.is_integer()
                    found |= {name: int(level) if whole else level} if kind != "null_value" else {}
    return found


class _Rows:
    """Collects rows. Validations may be numbered, while training has steps: `add_scalar("val/loss", loss, epoch)`."""

    def __init__(self) -> None:
        self._as_logged, self._in_order = RowCollector(), RowCollector()
        self._trained = self._last = 0  # the last training step, and the largest
        self._validated, self._places = set[int](), set[int]()  # the steps of validations, and where they were logged

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a row."""
        if not values:
            return
        self._as_logged.add(step, dict(values))
        if not is_validation(values):
            self._trained, self._last = step, max(self._last, step)
        elif len(self._validated) < _MOST_VALIDATIONS:
            self._validated.add(step)
            self._places.add(self._trained)
            step = self._trained
        self._in_order.add(step, values)

    def recordings(self, name: str) -> list[Recording]:
        """Return the recordings. Validations that are numbered get the training step after which they were logged."""
        count, last = len(self._validated), max(self._validated, default=0)
        numbered = last <= count and last < self._last / 3
        if count < 2 or count >= _MOST_VALIDATIONS or not numbered or len(self._places) < count - 1:
            return self._as_logged.recordings(name)
        return self._in_order.recordings(name, ["The validations are numbered: they were put where they were logged."])


def _is_signal(title: str) -> bool:
    name = find_name(title)
    return name is not None and name.signal not in ("step", "epoch")


def _events(file: Path) -> Iterator[tuple[int, dict[str, float], int]]:
    """The step, the scalars by their tags, and the size of each event. The end of a file may be incomplete."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray

    with suppress(DecodeError):  # what follows in a damaged file is noise
        for record in _records(file):
            event, scalars = Event.FromString(record), dict[str, float]()
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag] = value.simple_value
                elif value.HasField("tensor") and _is_signal(value.tag):  # as TensorFlow 2 writes them
                    with suppress(TypeError, ValueError):  # a tensor that is none
                        array = make_ndarray(value.tensor)
                        if array.size == 1 and array.dtype.kind in "fiu":
                            scalars[value.tag] = float(array.reshape(()))
            yield event.step, scalars, len(record) + _AROUND


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: a length, its checksum, the record, its checksum.

    The package's own loader computes the checksums in Python, at a megabyte per second, and files have hundreds.
    """
    left = path.stat().st_size
    with open_to_read(path) as file:
        while (left := left - _AROUND) >= 0:
            length = int.from_bytes(file.read(12)[:8], "little")
            if (left := left - length) < 0:
                return
            yield file.read(length)
            file.read(4)
