"""Trials in one stack, with real folders: each ends as it does alone, whatever other trials are in the stack."""

import itertools
import signal
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability.config.schema import Config
from stability.core.errors import Interrupted, StabilityError
from stability.data.records import Split
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import Verdict
from stability.engine import measure, optimizer
from stability.engine import step as engine_step
from stability.engine.decoder import Parameters, forward
from stability.engine.gradients import examine
from stability.engine.memory import free_memory, prepare_process
from stability.engine.stack import Stack
from stability.engine.step import train_steps
from stability.trials import capacity, readings, requests, scheduler, setup, training
from stability.trials.capacity import Capacity
from stability.trials.requests import Join, Train
from stability.trials.run import run_trial, trial
from stability.trials.scheduler import train_together
from stability.trials.setup import open_data
from tests.support.configs import tiny
from tests.support.trial_folders import assert_same_trial, without_figure

_SET = ("features=6", "days=4", "words=1", "train_utterances=6", "val_utterances=4")
_TRIALS = (  # with different lengths, outcomes and intervals
    ("seed=0", "steps=24"),
    ("seed=0", "steps=33", "optimizer=adam_default", "aug=weak", "validate_every=7", "checkpoint_every=9"),
    ("seed=1", "steps=40", "schedule.lr_max=1e38", "optimizer.clip_norm=null"),  # soon not finite
    ("seed=2", "steps=17", "loss=per_label_mean", "aug=none"),
    ("seed=1", "steps=29", "optimizer.epsilon=1e-3", "checkpoint_every=4"),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trials, each trained alone."""
    root = tmp_path_factory.mktemp("alone")
    for i, config in enumerate(configs(root)):
        run_trial(config, without_figure(root / str(i)), quiet=True)
    return root


def configs(root: Path) -> list[Config]:
    common = ("validate_every=10", "checkpoint_every=10", *(f"data.synthetic.{setting}" for setting in _SET))
    every = [tiny(*common, *own) for own in _TRIALS]
    for config in every:
        config.outputs, config.data.path = str(root), str(root.parent / "set")
    return every


def trained(root: Path, order: Sequence[int], size: int) -> list[Verdict | BaseException]:
    every = configs(root)
    dataset = open_data(every[0], torch.device("cpu"))
    trials = [
        trial(every[i], without_figure(root / str(i)), quiet=True, open_data=lambda config, device: dataset)
        for i in order
    ]
    return train_together(trials, size=size)


def assert_as_alone(alone: Path, root: Path, trials: Sequence[int]) -> None:
    for i in map(str, trials):
        assert_same_trial(root / i, alone / i)


@pytest.mark.parametrize("draw", range(2))
def test_in_any_stack_and_any_order_a_trial_ends_as_alone(alone: Path, tmp_path: Path, draw: int) -> None:
    rng = np.random.default_rng(draw)
    order, size = rng.permutation(len(_TRIALS)).tolist(), int(rng.integers(2, 5))
    ends = trained(tmp_path, order, size)
    assert [end.outcome for end in ends if isinstance(end, Verdict)] == [outcome(alone, i) for i in order]
    assert_as_alone(alone, tmp_path, order)


def outcome(root: Path, i: int) -> str:
    return Verdict.from_json((root / str(i) / "verdict.json").read_text()).outcome


def test_no_slot_is_idle(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a trial ends, the next takes its slot at once, at its own step 0."""
    sizes, steps = [], []

    def counted(stack: Stack, split: Split, count: int) -> list[Table]:
        sizes.extend([len(stack.configs)] * count)
        steps.append([*stack.steps])
        return train_steps(stack, split, count)

    monkeypatch.setattr(scheduler, "train_steps", counted)
    trained(tmp_path, range(len(_TRIALS)), 2)
    trial_steps = sum(len(read_table(alone / str(i) / "signals.csv").steps) for i in range(len(_TRIALS)))
    assert sum(sizes) == trial_steps
    assert sizes.count(1) <= 24  # only when no trial waits any more
    assert any(0 in now and max(now) > 0 for now in steps)


def disturbed(work: Callable[..., Any], events: Mapping[int, Callable[[], None]]) -> Callable[..., Any]:
    """Return `work` with events: the one under n happens just before the call after the first n calls."""
    numbers = itertools.count()

    def work_after_event(*arguments: Any, **settings: Any) -> Any:
        events.get(next(numbers), lambda: None)()
        return work(*arguments, **settings)

    return work_after_event


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError


def test_the_trials_of_a_stopped_stack_continue_alone_or_in_a_stack(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial is stopped in a stack and resumed alone, the others are resumed in a stack."""
    monkeypatch.setattr(scheduler, "train_steps", disturbed(train_steps, {5: ctrl_c}))
    with pytest.raises(Interrupted, match=r"^Stopped before step \d+\. The same command goes on from there\.$"):
        trained(tmp_path, [0, 1, 3], 2)
    assert not (tmp_path / "3/config.yaml").exists(), "a trial that waits is not started"
    run_trial(configs(tmp_path)[1], without_figure(tmp_path / "1"), quiet=True)
    trained(tmp_path, [0, 3], 2)
    assert_as_alone(alone, tmp_path, [0, 1, 3])


def test_trials_that_wait_for_a_slot_again_write_their_checkpoints_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "train_steps", disturbed(train_steps, {2: out_of_memory, 3: ctrl_c}))
    with pytest.raises(Interrupted):
        trained(tmp_path, [0, 1, 3], 3)
    for i in (0, 1, 3):
        state = torch.load(tmp_path / str(i) / "checkpoints/last.pt", weights_only=True)
        assert state["stability"]["step"] == len(read_table(tmp_path / str(i) / "signals.csv").steps) > 1


def test_a_trial_whose_batch_cannot_be_read_ends_and_the_others_continue(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(stack: Stack, split: Split, count: int) -> list[Table]:
        if any(c.seed == 2 and step >= 10 for c, step in zip(stack.configs, stack.steps, strict=True)):
            raise StabilityError("trial_0003 cannot be read")
        return train_steps(stack, split, count)

    monkeypatch.setattr(scheduler, "train_steps", unreadable)
    ends = trained(tmp_path, [0, 3, 4], 3)
    assert isinstance(ends[1], StabilityError)
    assert_as_alone(alone, tmp_path, [0, 4])


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (optimizer, "_adamw", 7),  # of the third trial of four, at the first step
        (measure, "frame_information", 0),
        (engine_step, "_check_finiteness", 3),
        (setup, "new_stack", 2),  # for a trial that starts while others run
        (training, "Recorder", 2),
        (requests, "select", 1),
        (scheduler, "select", 1),
    ],
)
def test_no_step_is_made_twice_wherever_memory_runs_out(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int
) -> None:
    monkeypatch.setattr(owner, name, disturbed(getattr(owner, name), {calls: out_of_memory}))
    trained(tmp_path, range(len(_TRIALS)), 4)
    assert_as_alone(alone, tmp_path, range(len(_TRIALS)))


@pytest.mark.parametrize("name", ["update_signals", "epsilon_signals"])
def test_signals_for_which_memory_is_short_are_missing_and_nothing_else(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The update has been made by then, so the step must not be lost."""
    monkeypatch.setattr(measure, name, disturbed(getattr(measure, name), {1: out_of_memory}))
    trained(tmp_path, range(len(_TRIALS)), 4)
    lacking = 0
    for i in range(len(_TRIALS)):
        own, wanted = (read_table(root / str(i) / "signals.csv") for root in (tmp_path, alone))
        np.testing.assert_array_equal(own.steps, wanted.steps)
        assert not (own.measured & ~wanted.measured).any()
        lacking += int((wanted.measured & ~own.measured).sum())
        np.testing.assert_allclose(own["loss"], wanted["loss"], rtol=2e-3)
        assert outcome(tmp_path, i) == outcome(alone, i)
    assert 2 <= lacking <= 4 * 4, "the signals of one step, of at most four trials"


def test_out_of_memory_halves_the_stack_and_loses_nothing(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def small(stack: Stack, split: Split, count: int) -> list[Table]:
        sizes.append(len(stack.configs))
        if len(stack.configs) > 2:
            torch.empty(1 << 50)
        return train_steps(stack, split, count)

    monkeypatch.setattr(scheduler, "train_steps", small)
    trained(tmp_path, range(len(_TRIALS)), 4)
    assert (sizes.count(4), sizes.count(3), max(sizes[1:])) == (1, 0, 2)
    assert_as_alone(alone, tmp_path, range(len(_TRIALS)))


def limit_rows(rows: int, monkeypatch: pytest.MonkeyPatch, training: bool = True) -> list[int]:
    """Let the decoder run out of memory above so many rows, in training or in validation. Return its rows."""
    given = []

    def decode(parameters: Parameters, x: Tensor, *rest: Any, **settings: Any) -> Tensor:
        if torch.is_grad_enabled() == training:
            given.append(x.shape[0] * x.shape[1])
            if given[-1] > rows:
                raise torch.OutOfMemoryError
        return forward(parameters, x, *rest, **settings)

    monkeypatch.setattr("stability.engine.predict.forward", decode)
    return given


def test_batches_that_do_not_fit_into_memory_are_computed_in_parts(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = limit_rows(2, monkeypatch)
    trained(tmp_path, [0, 3], 2)
    assert_as_alone(alone, tmp_path, [0, 3])
    assert given[:4] == [12, 6, 6, 3], "the stack, the trial, and then parts of its batch"
    warning = "The memory of cpu does not hold a batch of 6 utterances: each batch is computed in 4 parts."
    assert caplog.text.count(warning) == 2, "once a trial"


def test_a_validation_that_does_not_fit_into_memory_is_done_in_parts(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = limit_rows(2, monkeypatch, training=False)
    trained(tmp_path, [0, 3], 2)
    assert_as_alone(alone, tmp_path, [0, 3])
    assert given[:4] == [8, 4, 2, 2], "both trials, one trial, and then parts of its batch"


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_ends_if_one_utterance_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    limit_rows(0, monkeypatch, training)
    (end,) = trained(tmp_path, [0], 1)
    assert isinstance(end, StabilityError)
    assert "The memory of cpu does not hold one utterance of a batch: give a smaller batch.size" in str(end)


def test_a_flight_recording_that_runs_out_of_memory_changes_no_verdict(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stability.trials.recorder.examine", disturbed(examine, {0: out_of_memory}))
    trained(tmp_path, [2, 0], 2)
    assert_as_alone(alone, tmp_path, [2, 0])
    assert "There is no flight recording" in caplog.text


def test_a_trial_that_has_ended_leaves_no_memory_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, most = weakref.WeakSet[Stack](), 0

    def counted(stack: Stack, split: Split, count: int) -> list[Table]:
        nonlocal most
        known.add(stack)
        most = max(most, len(known))
        return train_steps(stack, split, count)

    monkeypatch.setattr(Stack, "__hash__", object.__hash__, raising=False)
    monkeypatch.setattr(scheduler, "train_steps", counted)
    trained(tmp_path, [0, 1, 3, 4, 2], 2)
    assert most <= 2, "the present stack, and the one before a trial was replaced"


def test_the_memory_that_a_trial_needs_does_not_depend_on_earlier_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_process()
    monkeypatch.setattr(capacity, "_LARGEST_STACK", {"cpu": 1 << 60})
    dataset = open_data(configs(tmp_path)[0], torch.device("cpu"))
    torch.ones(100 << 20, dtype=torch.uint8)  # freed but kept, and the peak so far
    measured = Capacity(torch.device("cpu"), dataset, recorder_bytes=0)
    torch.ones(50 << 20, dtype=torch.uint8)
    assert measured.trials(sharing=1) == pytest.approx(0.8 * free_memory() / (50 << 20), rel=0.3)


def test_on_a_gpu_the_hosts_memory_limits_the_stack_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a trial has its flight recorder. A made-up GPU with room for 40 trials, of a gigabyte each."""
    gpu, dataset = torch.device("cuda"), open_data(configs(tmp_path)[0], torch.device("cpu"))
    memory: dict[str, Any] = {
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 1 << 30,
        "memory_reserved": 1 << 30,
    }
    memory |= {"memory_allocated": 1 << 30, "mem_get_info": (50 << 30, 80 << 30)}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(capacity, "free_memory", lambda: 20 << 30)
    assert Capacity(gpu, dataset, recorder_bytes=1).trials(sharing=1) == 41
    assert Capacity(gpu, dataset, recorder_bytes=1 << 30).trials(sharing=1) == 17
    assert Capacity(gpu, dataset, recorder_bytes=1 << 30).trials(sharing=4) == 5
    assert Capacity(gpu, dataset, recorder_bytes=1 << 40).trials(sharing=1) == 1


def test_a_trial_that_cannot_start_does_not_stop_the_others(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "0/config.yaml").mkdir(parents=True)  # where its file should be
    ends = trained(tmp_path, [0, 3], 2)
    assert isinstance(ends[0], StabilityError)
    assert_as_alone(alone, tmp_path, [3])


def test_a_trial_requests_what_it_needs(tmp_path: Path) -> None:
    coroutine = trial(configs(tmp_path)[0], tmp_path / "0", quiet=True)
    assert isinstance(coroutine.send(None), Join)
    assert coroutine.send(None) == Train(1), "validation comes after step 0"
    coroutine.close()


def test_a_trial_reads_its_tables_once_and_diagnoses_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, diagnosed = [], []

    def counted_read(path: Path) -> Table:
        read.append(path.name)
        return read_table(path)

    def counted_findings(signals: Table, validation: Table) -> list[Finding]:
        diagnosed.append((len(signals.steps), len(validation.steps)))
        return findings(signals, validation)

    monkeypatch.setattr(readings, "read_table", counted_read)
    monkeypatch.setattr(readings, "findings", counted_findings)
    config = configs(tmp_path)[0]
    config.steps = 100
    run_trial(config, without_figure(tmp_path / "0"), quiet=True)
    assert read == ["signals.csv", "validation.csv"]
    assert len(diagnosed) == len({*diagnosed}) == 12, "at step 0, at every 10th, and after the last validation"
