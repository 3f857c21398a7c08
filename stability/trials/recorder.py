"""The flight recorder: keeps a trial's last states in memory, and when the trial fails writes the one before the fault.

The recording is `flight/` in the trial's folder. `state.pt` is a checkpoint of the state before the first bad step, and
`flight.json` says what that step read. There is no copy of the signals: those of every step are in `signals.csv`,
beside it, as the configuration is in `config.yaml`.
"""

import copy
import hashlib
import json
import math
import shutil
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from stability.core.errors import StabilityError
from stability.core.files import FLIGHT, FLIGHT_RECORD, FLIGHT_STATE, write_atomically
from stability.data.batches import Batch, training_batch
from stability.data.records import Split, frames_needed
from stability.diagnosis.verdict import FATAL, Verdict
from stability.engine.gradients import Examination, examine
from stability.engine.memory import ignore_out_of_memory
from stability.engine.stack import Stack
from stability.engine.step import train_steps
from stability.trials import checkpoint
from stability.trials.scheduler import Seat

_EVERY = 150  # steps from one kept state to the next
_KEPT = 2  # states: however late they are looked for, one of them is 150 steps old or more


@dataclass(frozen=True)
class Utterance:
    """One utterance of the batch, as the step read it. Losses are nats, inputs in standard deviations."""

    row: int
    session: str
    trial: str
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

    Every random stream is derived from (seed, purpose, step), so these two are the whole random state; but noise and
    dropout are drawn on the device, and another kind of device draws others. The batch is the most suspicious first.
    """

    outcome: str
    step: int  # the first bad one, or the first after it that was still in memory
    detected_step: int
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    device: str
    data: str
    largest_weights: dict[str, float]  # magnitudes, by parameter
    batch_hash: str
    batch: list[Utterance]


class Recorder:
    """Knows where a trial has been, the last 150 steps at the least."""

    def __init__(self, stack: Stack) -> None:
        self._kept = deque([copy.deepcopy(stack)], maxlen=_KEPT)

    def passed(self, seat: Seat) -> None:
        """Take note of where the trial is now, if memory allows; cheap, for every block of steps."""
        if seat.step >= self._kept[-1].step + _EVERY:
            with ignore_out_of_memory():
                self._kept.append(seat.alone())

    def write(self, folder: Path, stack: Stack, split: Split, verdict: Verdict) -> None:
        """Write the recording of a trial that has this verdict, with an onset, into the trial's folder.

        Takes the place of an earlier one. Where the state before the onset is gone, the oldest in memory is recorded.
        Raises OSError; then there is no recording.
        """
        shutil.rmtree(folder / FLIGHT, ignore_errors=True)
        before = self._before(verdict, stack, split)
        config = before.configs[0]
        batch = training_batch(split, config.batch.size, config.batch.days, seed=config.seed, step=before.step)
        flight = Flight(
            verdict.outcome,
            before.step,
            before.step if verdict.detected_step is None else verdict.detected_step,
            config.seed,
            before.precision,
            before.device.type,
            str(split.path.resolve()),
            {name: float(p.abs().max()) for name, p in before.parameters.items()},
            hash_of(batch),
            _by_suspicion(split, batch, examine(before, split)),
        )
        try:
            checkpoint.save(folder / FLIGHT_STATE, before, 0, checkpoint.Best())
            write_atomically(folder / FLIGHT_RECORD, json.dumps(asdict(flight), indent=2).encode())
        except OSError:
            shutil.rmtree(folder / FLIGHT, ignore_errors=True)  # the room is needed for the verdict
            raise

    def _before(self, verdict: Verdict, stack: Stack, split: Split) -> Stack:
        """The trial's state before the onset. A step that was not applied left it in the stack itself."""
        step = verdict.onset_step
        assert step is not None
        for kept in self._kept:
            kept.micro_batches = stack.micro_batches  # as few as the memory asks for by now
        if verdict.outcome in FATAL and stack.failed.any():
            return replace(stack, steps=[step], failed=torch.zeros_like(stack.failed))
        before = [kept for kept in self._kept if kept.step <= step]
        if not before:  # of a plateau that was long before it was called a collapse
            return self._kept[0]
        if before[-1].step < step:
            train_steps(before[-1], split, step - before[-1].step)
        return before[-1]


def read_flight(folder: Path) -> Flight:
    """The recording in a trial's folder. Raises StabilityError if there is none, or not a whole one."""
    path = folder / FLIGHT_RECORD
    try:
        content = json.loads(path.read_text())
        return Flight(**content | {"batch": [Utterance(**utterance) for utterance in content["batch"]]})
    except FileNotFoundError:
        raise StabilityError(
            f"There is no flight recording at {path}. Give the folder of a trial that failed; only those leave one."
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StabilityError(
            f"{path} cannot be read as a flight recording ({error}). Train the trial anew: fresh=true"
        ) from None


def hash_of(batch: Batch) -> str:
    """What the batch holds, in short: the same wherever its features are kept, in float32 or in float16."""
    digest = hashlib.sha256()
    for tensor in (batch.features.half().cpu(), batch.bins, batch.labels, batch.label_counts, torch.tensor(batch.days)):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_suspicion(split: Split, batch: Batch, seen: Examination) -> list[Utterance]:
    found = []
    for row, i in enumerate(batch.utterances):
        record = split.records[i]
        labels, frames = split.labels(i).tolist(), int(seen.frames[row])
        found.append(
            Utterance(
                row,
                split.sessions[record.day],
                record.name,
                record.block,
                record.number,
                record.transcription,
                frames,
                len(labels),
                float(seen.nll[row]),
                float(seen.x[row].abs().max()),
                bool(seen.x[row].isfinite().all()),
                frames_needed(labels) <= frames,
            )
        )
    healthy = [-u.loss / u.labels if math.isfinite(u.loss) else -math.inf for u in found]  # by row
    return sorted(found, key=lambda u: (u.input_finite, u.can_be_aligned, healthy[u.row]))
