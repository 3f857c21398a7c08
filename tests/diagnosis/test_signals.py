"""The registry of signals: complete, and the same as what is measured."""

import re
from pathlib import Path

import stability.diagnosis
from stability.data.records import Dataset
from stability.diagnosis.signals import EXPENSIVE_EVERY, SIGNALS, signal_names, signals_of
from tests.support.configs import tiny
from tests.support.stacks import trained


def test_a_trial_measures_all_signals_of_the_registry_in_its_order(dataset: Dataset) -> None:
    _, (table,) = trained([tiny()], dataset, EXPENSIVE_EVERY + 2)
    assert table.names == signal_names(layers=2)
    for at, signal in enumerate(signals_of(layers=2)):
        assert table.measured[:, at].tolist() == [step % signal.every == 0 for step in table.steps], signal.name


def test_parts_of_the_gradient_norm_are_numbered_by_layer() -> None:
    names = [name.removeprefix("grad_norm.") for name in signal_names(3) if name.startswith("grad_norm.")]
    assert names == ["day", "h0", "gru.0", "gru.1", "gru.2", "head"]
    assert len({*signal_names(3)}) == sum(signal.in_trials for signal in SIGNALS.values()) + 2


def test_every_signal_that_a_detector_reads_is_registered() -> None:
    folder = Path(stability.diagnosis.__file__).parent
    sources = [
        (folder / f"{name}.py").read_text() for name in ("collapse", "ctc_inputs", "explosion", "non_finite", "verdict")
    ]
    read = {name for source in sources for name in re.findall(r'\(signals, "(\w+)"', source)}
    assert len(read) > 10
    assert read <= {*SIGNALS}


def test_each_signal_is_explained() -> None:
    for name, signal in SIGNALS.items():
        assert signal.name == name
        assert signal.meaning
        assert signal.every in (1, EXPENSIVE_EVERY)
