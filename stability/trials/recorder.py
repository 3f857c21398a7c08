"""The flight recorder: keeps a trial's last states in memory. When the trial fails, it writes the one before the fault.

The recording is the folder `flight/` in the trial's folder: `state.pt` is a checkpoint of the state before the first
bad step, and `flight.json` describes what that step read. The signals of every step are in the trial's `signals.csv`,
and its configuration is in `config.yaml`.
"""

import hashlib
import json
import math
import shutil
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from stability.core.errors import StabilityError
from stability.core.files import FLIGHT, FLIGHT_RECORD, FLIGHT_STATE, MONITOR_RECORD, write_atomically
from stability.core.text import load_json, plain
from stability.data.batches import Batch, training_batch
from stability.data.records import Split, frames_needed
from stability.diagnosis.verdict import FATAL, Verdict
from stability.engine.gradients import Examination, examine
from stability.engine.memory import ignore_out_of_memory
from stability.engine.stack import Stack, copy_trial
from stability.engine.step import train_steps
from stability.trials import checkpoint
from stability.trials.requests import Slot

_Precision = Literal["fp32", "bf16", "fp16"]

# Steps from one kept state to the next. From a GPU a state is copied to the host's memory, which must cost no more than
# 1 % of these steps.
_EVERY = {"cpu": 150, "cuda": 450}
_KEPT = 2  # states; once there are two, the older one is at least that many steps old
_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Suspect:
    """An utterance of the failed step's batch, as the step read it.

    The loss is in nats, inputs are in standard deviations.
    """

    row: int
    session: str
    name: str
    block: int | None
    number: int | None
    sentence: str
    frames: int
    labels: int
    loss: float
    largest_input: float
    input_finite: bool
    can_be_aligned: bool


@dataclass(frozen=True)
class Flight:
    """The content of `flight.json`.

    Seed and step are the whole random state, since every random stream is derived from (seed, purpose, step). Noise and
    dropout are drawn on the device, and another kind of device draws other numbers.

    Attributes:
        step: The first bad step; if its state was no longer in memory, the first later one that was.
        largest_weights: The largest magnitude in each parameter.
        batch: The step's utterances, the most suspicious first.
    """

    outcome: str
    step: int
    detected_step: int
    seed: int
    precision: _Precision
    device: str
    data: str
    largest_weights: dict[str, float]
    batch_hash: str
    batch: list[Suspect]


def recorder_bytes(stack: Stack) -> int:
    """Return the bytes of the host's memory that the recorder of each trial of a stack takes."""
    return _KEPT * stack.state_bytes // len(stack.configs)


class Recorder:
    """Keeps the last two states of a trial in the host's memory: at least 150 steps apart, on a GPU 450."""

    def __init__(self, stack: Stack) -> None:
        self._every = _EVERY[stack.device.type]
        self._kept = deque([copy_trial(stack, 0, _HOST)], maxlen=_KEPT)

    def keep_state(self, slot: Slot) -> None:
        """Keep the trial's state if the last one is old enough and memory allows it. Call it after each block."""
        if slot.step >= self._kept[-1].step + self._every:
            with ignore_out_of_memory():
                self._kept.append(copy_trial(slot.stack, slot.place, _HOST))

    def write(self, folder: Path, stack: Stack, split: Split, verdict: Verdict) -> None:
        """Write the recording into the trial's folder. It replaces an earlier one.

        If the state before the onset is no longer in memory, the oldest state in memory is recorded.

        Args:
            folder: The trial's folder.
            stack: The trial now, as a stack of one.
            split: The training data.
            verdict: A verdict with an onset.

        Raises:
            OSError: The recording could not be written. The folder then has none.
        """
        shutil.rmtree(folder / FLIGHT, ignore_errors=True)
        before = self._before(verdict, stack, split)
        config = before.configs[0]
        batch = training_batch(split, config.batch.size, config.batch.days, seed=config.seed, step=before.step)
        flight = Flight(
            outcome=verdict.outcome,
            step=before.step,
            detected_step=max(before.step, verdict.detected_step or 0),
            seed=config.seed,
            precision=before.precision,
            device=before.device.type,
            data=str(split.path.resolve()),
            largest_weights={name: float(p.abs().max()) for name, p in before.parameters.items()},
            batch_hash=hash_batch(batch),
            batch=_by_suspicion(split, batch, examine(before, split)),
        )
        try:
            checkpoint.save(folder / FLIGHT_STATE, before, 0, checkpoint.Best())
            record = json.dumps(plain(asdict(flight)), indent=2, allow_nan=False)
            write_atomically(folder / FLIGHT_RECORD, record.encode())
        except OSError:
            shutil.rmtree(folder / FLIGHT, ignore_errors=True)  # the verdict needs the space
            raise

    def _before(self, verdict: Verdict, stack: Stack, split: Split) -> Stack:
        """Return the trial's state before the onset. If the failed step was not applied, the stack still has it."""
        step = verdict.onset_step
        assert step is not None
        if verdict.outcome in FATAL and stack.failed.any():
            return replace(stack, steps=[step], failed=torch.zeros_like(stack.failed))
        # The oldest if all are later: for example, a plateau can last long before it is called a collapse.
        kept = next((kept for kept in reversed(self._kept) if kept.step <= step), self._kept[0])
        before = copy_trial(kept, 0, stack.device)
        before.micro_batches = stack.micro_batches  # as many as the trial needs by now
        if before.step < step:
            train_steps(before, split, step - before.step)
        return before


def read_flight(folder: Path) -> Flight:
    """Read the recording in a trial's folder.

    Raises:
        StabilityError: There is none, or it is incomplete.
    """
    path = folder / FLIGHT_RECORD
    try:
        content = load_json(path.read_text())
        weights = {name: float(largest) for name, largest in content["largest_weights"].items()}
        batch = [
            Suspect(**u | {"row": int(u["row"]), "loss": float(u["loss"]), "largest_input": float(u["largest_input"])})
            for u in content["batch"]
        ]
        flight = Flight(**content | {"largest_weights": weights, "batch": batch})
        texts = (flight.outcome, flight.device, flight.data, flight.batch_hash)
        if not (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int) for number in (flight.step, flight.detected_step, flight.seed))
            and 0 <= flight.step <= flight.detected_step
            and flight.precision in get_args(_Precision)
        ):
            raise ValueError("a value is of another kind")
        return flight
    except FileNotFoundError:
        if (folder / MONITOR_RECORD).exists():
            raise StabilityError(
                f"{folder} has the recording of a Monitor, which does not know how to repeat a step. To see what it "
                f"has recorded: python -m stability.diagnose {folder}"
            ) from None
        raise StabilityError(
            f"There is no flight recording at {path}. Only a trial that failed leaves one: give its folder."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StabilityError(
            f"{path} cannot be read as a flight recording ({error}). Train the trial again from its start: fresh=true"
        ) from None


def hash_batch(batch: Batch) -> str:
    """Return a hash of a batch. It is the same whether the features are kept in float32 or in float16."""
    digest = hashlib.sha256()
    for tensor in (batch.features.half().cpu(), batch.bins, batch.labels, batch.label_counts, torch.tensor(batch.days)):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_suspicion(split: Split, batch: Batch, examined: Examination) -> list[Suspect]:
    """Describe the utterances of a batch. The first is the most suspicious: bad input, then bad labels, then loss."""
    suspects = []
    for row, i in enumerate(batch.utterances):
        record = split.records[i]
        labels, frames = split.labels(i).tolist(), int(examined.frames[row])
        suspects.append(
            Suspect(
                row=row,
                session=split.sessions[record.day],
                name=record.name,
                block=record.block,
                number=record.number,
                sentence=record.transcription,
                frames=frames,
                labels=len(labels),
                loss=float(examined.nll[row]),
                largest_input=float(examined.x[row].abs().max()),
                input_finite=bool(examined.x[row].isfinite().all()),
                can_be_aligned=frames_needed(labels) <= frames,
            )
        )
    loss_per_label = [u.loss / u.labels if math.isfinite(u.loss) else math.inf for u in suspects]  # by row
    return sorted(suspects, key=lambda u: (u.input_finite, u.can_be_aligned, -loss_per_label[u.row]))
