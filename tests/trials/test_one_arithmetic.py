"""A trial has one precision and one engine from its first step to its last, whatever its company.

Which of them a GPU has is decided without its company, in `new_stack`. Here both are made up, and the trials run on a
CPU: every GRU layer of every step, validation and recording says with what it was computed.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stability.core.device import DTYPES, Precision
from stability.core.errors import Interrupted, StabilityError
from stability.engine import recurrent, stack
from stability.engine.recurrent import Engine
from stability.engine.step import train_steps
from stability.trials import checkpoint, scheduler
from stability.trials.checkpoint import restore
from stability.trials.replay import replay
from stability.trials.run import run_trial
from tests.support.configs import tiny
from tests.support.stacks import stack_of
from tests.support.trial_folders import without_figure
from tests.trials.test_scheduler import configs, ctrl_c, disturbed, trained

Seen = list[tuple[Engine, torch.dtype, int]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The engine, the dtype and the number of trials of each GRU layer that is computed."""
    layers: Seen = []

    def noted(engine: Engine, run: Any) -> Any:
        def call(x: Tensor, *rest: Any) -> Tensor:
            layers.append((engine, x.dtype, len(x)))
            assert not torch.is_autocast_enabled(x.device.type), "cuDNN would be handed float16"
            computed: Tensor = run(x, *rest)
            return computed

        return call

    own = dict(recurrent._ENGINES)
    for engine, run in own.items():
        monkeypatch.setitem(recurrent._ENGINES, engine, noted(engine, run))
    return layers


def begin_with(engine: Engine, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial with `precision=auto` begins with on this device."""
    monkeypatch.setattr(stack, "choose_engine", lambda *_: engine)
    monkeypatch.setattr(stack, "choose_precision", lambda *_: precision)


@pytest.mark.parametrize("engine", ["loop", "library"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_alone_in_a_stack_as_the_last_one_and_in_a_recording(
    engine: Engine, precision: Precision, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(engine, precision, monkeypatch)
    run_trial(configs(tmp_path)[0], without_figure(tmp_path / "0"), quiet=True)
    alone = {*seen}
    seen.clear()
    trained(tmp_path, [1, 2, 3], 3)  # the second explodes and is recorded, and they end one after another
    assert (tmp_path / "2/flight/state.pt").exists()
    assert {places for *_, places in seen} == {1, 2, 3}
    assert {kind[:2] for kind in seen} == {kind[:2] for kind in alone} == {(engine, DTYPES[precision])}


@pytest.mark.parametrize(("engine", "other"), [("loop", "library"), ("library", "loop")])
def test_resumed_in_another_stack_it_keeps_what_it_began_with(
    engine: Engine, other: Engine, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(engine, "bf16", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "train_steps", disturbed(train_steps, {1: ctrl_c}))
        with pytest.raises(Interrupted):
            trained(tmp_path, [0, 1], 2)
    assert {kind[:2] for kind in seen} == {(engine, torch.bfloat16)}
    seen.clear()
    begin_with(other, "fp32", monkeypatch)  # say, on another device
    trained(tmp_path, [0, 3, 1], 3)
    assert {kind[:2] for kind in seen} == {(engine, torch.bfloat16), (other, torch.float32)}
    kept = {i: torch.load(tmp_path / f"{i}/checkpoints/last.pt", weights_only=True)["stability"] for i in (0, 1, 3)}
    assert [kept[i]["precision"] for i in (0, 1, 3)] == ["bf16", "bf16", "fp32"]
    assert [kept[i]["engine"] for i in (0, 1, 3)] == [engine, engine, other]


def test_a_recorded_step_is_repeated_by_its_own_engine(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with("library", "bf16", monkeypatch)
    trained(tmp_path, [2], 1)
    monkeypatch.setattr(stack, "choose_engine", lambda *_: "loop")
    monkeypatch.setattr(stack, "choose_precision", lambda name, _: name)
    seen.clear()
    assert [*replay(tmp_path / "2", "cpu").attempts] == ["bf16", "fp32", "fp64"]
    assert {kind[:2] for kind in seen} == {("library", t) for t in (torch.bfloat16, torch.float32, torch.float64)}


def test_a_checkpoint_in_a_precision_that_the_device_lacks_is_refused(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(name: str, device: torch.device) -> Precision:
        raise StabilityError("precision=bf16, but Tesla T4 has no bf16: give precision=fp32")

    trial = stack_of([tiny()], dataset)
    checkpoint.save(tmp_path / "last.pt", trial, 0, checkpoint.Best())
    monkeypatch.setattr(checkpoint, "choose_precision", lacks)
    with pytest.raises(StabilityError, match=r"was written in fp32, which cpu does not have\. Continue on a device"):
        restore(tmp_path / "last.pt", trial, 0)


@pytest.mark.parametrize("name", ["precision", "engine"])
def test_a_checkpoint_of_an_earlier_version_goes_on_with_what_its_device_has(
    name: str, dataset: Any, tmp_path: Path
) -> None:
    trial = stack_of([tiny()], dataset)
    checkpoint.save(tmp_path / "last.pt", trial, 0, checkpoint.Best())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    del content["stability"][name]
    torch.save(content, tmp_path / "last.pt")
    restore(tmp_path / "last.pt", trial, 0)
    assert trial.arithmetic == ("fp32", "loop")
    torch.save(content | {"stability": content["stability"] | {name: "fast"}}, tmp_path / "last.pt")
    with pytest.raises(StabilityError, match="is no checkpoint of a trial, or it is damaged"):
        restore(tmp_path / "last.pt", trial, 0)
