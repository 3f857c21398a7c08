"""The state of a Monitor in numbers, texts and lists, which strict JSON and `torch.save` keep alike."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from stability.core.text import plain
from stability.diagnosis.finding import Finding, finite_readings
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import Verdict

_NOT_FINITE = ("nan", "inf", "-inf")
_JUMP = 2.0  # a learning rate jumps if it is this many times larger or smaller than its last two values promise


def finding_state(finding: Finding) -> dict[str, Any]:
    """Return a finding for `finding_of`."""
    state: dict[str, Any] = plain(asdict(finding))
    return state


def finding_of(state: Mapping[str, Any]) -> Finding:
    """Return the finding that `finding_state` was given."""
    return Finding(**{**state, "value": float(state["value"])})


def verdict_state(verdict: Verdict | None) -> dict[str, Any] | None:
    """Return a verdict for `verdict_of`."""
    return None if verdict is None else json.loads(verdict.to_json())


def verdict_of(state: Mapping[str, Any] | None) -> Verdict | None:
    """Return the verdict that `verdict_state` was given."""
    if state is None:
        return None
    evidence = {name: float(v) if v in _NOT_FINITE else v for name, v in state["evidence"].items()}
    return Verdict(**{**state, "evidence": evidence})


def table_state(table: Table) -> dict[str, Any]:
    """Return a table for `table_of`. What was not measured is None."""
    values = [
        [plain(value) if is_measured else None for value, is_measured in zip(*row, strict=True)]
        for row in zip(table.values.tolist(), table.measured.tolist(), strict=True)
    ]
    return {"names": [*table.names], "steps": table.steps.tolist(), "values": values}


def table_of(state: Mapping[str, Any]) -> Table:
    """Return the table that `table_state` was given."""
    names, shape = tuple(state["names"]), (len(state["steps"]), len(state["names"]))
    measured = np.array([[value is not None for value in row] for row in state["values"]], bool).reshape(shape)
    values = [[math.nan if value is None else float(value) for value in row] for row in state["values"]]
    return Table(names, np.array(state["steps"], np.int64), np.array(values, np.float32).reshape(shape), measured)


def optimizer_state(optimizer: torch.optim.Optimizer | None, signals: Table) -> dict[str, Any]:
    """Return what `lost_state` compares: whether the optimizer has a state, and its last two learning rates."""
    rates = finite_readings(signals, "lr").values[-2:].tolist()
    return {"filled": optimizer is not None and _is_filled(optimizer), "rates": rates}


def lost_state(optimizer: torch.optim.Optimizer, before: Mapping[str, Any]) -> list[str]:
    """Say what of the optimizer did not come back at a restart, in sentences without a full stop."""
    lost = []
    if before["filled"] and not _is_filled(optimizer):
        lost.append("the optimizer's state was empty")
    rate, rates = optimizer.param_groups[0]["lr"], before["rates"]
    if rates and rate is not None and _jumps(float(rate), rates):
        lost.append(f"the learning rate was {rate:.3g}, and {rates[-1]:.3g} before")
    return lost


def _is_filled(optimizer: torch.optim.Optimizer) -> bool:
    return any(isinstance(value, torch.Tensor) for state in optimizer.state.values() for value in state.values())


def _jumps(rate: float, rates: list[float]) -> bool:
    """Whether a learning rate does not go on as its last values promise, growing or shrinking by the same factor."""
    last, earlier = rates[-1], rates[0]
    if not last:
        return False  # the first step of a warm-up
    expected = last * last / earlier if earlier else 2 * last
    return not min(last, expected) / _JUMP <= rate <= max(last, expected) * _JUMP
