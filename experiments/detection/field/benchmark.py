"""Compare ours with the peers on the same logs and programs, and print one table: who reads what, and who is right.

    python -m experiments.detection.field.benchmark [../shared] [--half field_test]      # make benchmark-field

The logs of the field corpus are written as CSV files into a temporary folder, with the names that trackers use, every
10 and every 100 steps. The cases that were held back are in `../held_back.tar.xz`. The folder `shared` has cases (logs
and programs) and logs of other people. It is not part of this repository; without it, its columns stay empty.

A tool is right on a healthy training if it raises no alarm, and on a faulty one if one of its findings is an outcome
that is right. Of a case, the outcomes are those that its accepted pattern names. Ours must give the right outcome on
healthy ones too; of a case it must also name an accepted cause, and must not say what the case forbids.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from experiments.detection.corpus import Trace
from experiments.detection.field.cases import field_cases
from experiments.detection.field.corpus import packed
from experiments.detection.field.recipe import Half
from experiments.detection.held_back import Case, is_right, read_cases, run, unpacked, verdict
from experiments.detection.log_peers import LOG_PEERS, Said
from experiments.detection.peers import PEERS
from stability.core.errors import StabilityError
from stability.diagnosis.finding import Outcome
from stability.diagnosis.judge import judge
from stability.diagnosis.readers import read_runs

_OURS = "stability"
_HEALTHY = {"stable"}
_STUCK = {"slow", "undecided", "blank_collapse", "mode_collapse"}
_NAMES = (  # of step, loss, learning rate, gradient norm, validation loss and error rate, as trackers write them
    ("step", "loss", "lr", "grad_norm", "val_loss", "wer"),
    ("step", "train_loss", "learning_rate", "grad_norm", "eval_loss", "eval_wer"),
    ("_step", "train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/wer"),
)
# What happened in the logs of other people: their README says it in words.
_FIELD = {
    "t12_gru_ctc_reg1.metrics.jsonl": {"exploded", "slow"},
    "t12_gru_ctc_reg2.metrics.jsonl": {"exploded"},
    "t12_gru_ctc_reg3.metrics.jsonl": {"exploded", "degraded"},
    "t12_gru_ctc_reg4.metrics.jsonl": {"degraded", "stable"},
    "t12_run8_recovery.metrics.jsonl": {"slow"},
    "t12_run12_baseline_hybrid.metrics.jsonl": {"exploded"},
    "t12_run13_onecycle_safe.metrics.jsonl": {"exploded", "degraded"},
    "t12_run16_sub20.metrics.jsonl": {"degraded"},
    "keras_brnn.csv": {"stable"},
    "rnn_epochs.csv": {"slow"},
    "lightning_slm_v12.csv": {"stable", "undecided"},
    "lightning_diar.csv": {"undecided"},
    "whisper_percent.trainer_state.json": {"stable"},
    "wav2vec2_nan.trainer_state.json": {"exploded", "non_finite"},
}


class _Log(NamedTuple):
    path: Path
    right: set[str]


class _Score:
    """Counts of one tool on one set of logs or programs."""

    def __init__(self) -> None:
        self.of, self.read, self.right = 0, 0, 0
        self.healthy, self.condemned = 0, 0

    def add(self, said: Said, right: set[str]) -> None:
        healthy = bool(right & _HEALTHY)
        self.of += 1
        self.read += said.read
        self.healthy += healthy
        condemned = healthy and any(alarm.isdisjoint(right) for alarm in said.alarms)
        self.condemned += condemned
        fits = not condemned if healthy and not said.is_verdict else bool(said.outcomes & right)
        self.right += said.read and fits

    def __str__(self) -> str:
        if not self.of:
            return "–"
        condemned = f", {self.condemned} of {self.healthy} healthy condemned" if self.healthy else ""
        return f"read {self.read}, right {self.right} of {self.of}{condemned}"


def write_csv(trace: Trace, path: Path) -> None:
    """Write a training as a log in CSV, as trackers do: names vary, and one in three has percent."""
    seed = trace.facts["recipe"]["seed"]
    names = _NAMES[seed % len(_NAMES)]
    rows: dict[int, dict[str, float]] = {}
    signals, validation = trace.signals, trace.validation
    for name, title in zip(("loss", "lr", "grad_norm"), names[1:4], strict=True):
        if name in signals.names:
            _fill(rows, title, signals.steps, signals[name], signals.measured[:, signals.names.index(name)])
    for name, title in zip(("loss", "per"), names[4:], strict=True):
        scale = 100 if name == "per" and seed % 3 == 1 else 1
        known = validation.measured[:, validation.names.index(name)]
        _fill(rows, title, validation.steps, scale * validation[name], known)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({names[0]: step, **row} for step, row in sorted(rows.items()))


def _fill(
    rows: dict[int, dict[str, float]], title: str, steps: np.ndarray, values: np.ndarray, known: np.ndarray
) -> None:
    for step, value in zip(steps[known].tolist(), values[known].tolist(), strict=True):
        rows.setdefault(step, {})[title] = float(f"{value:.6g}")


def _corpus_logs(half: Half, distance: int, folder: Path) -> Iterator[_Log]:
    for case in field_cases(half, distance, "log"):
        path = folder / f"{case.trace.name}.csv"
        write_csv(case.trace, path)
        yield _Log(path, {*case.label.outcomes})


def _ours(log: Path) -> Said:
    try:
        last = read_runs(log)[-1]
    except StabilityError:
        return Said()
    outcome: str = judge(last.signals, last.validation).outcome
    alarms = [{outcome}] if outcome not in ("stable", "slow", "undecided") else []
    return Said(True, alarms, {outcome}, is_verdict=True)


def _score_logs(logs: list[_Log]) -> dict[str, _Score]:
    tools: dict[str, Callable[[Path], Said]] = {_OURS: _ours}
    tools |= {kind.name: kind().judge for kind in LOG_PEERS if kind.command() is not None}
    scores = {name: _Score() for name in tools}
    with ThreadPoolExecutor(2) as pool:
        for name, judge_log in tools.items():
            for log, said in zip(logs, pool.map(judge_log, [log.path for log in logs]), strict=True):
                scores[name].add(said, log.right)
    return scores


def _expected(pattern: str) -> set[str]:
    """The outcomes that an accepted pattern of a case names, or implies."""
    named = {word for word in get_args(Outcome) if word in pattern}
    return named or (_STUCK if re.search("no_information|precision", pattern) else set())


def _score_programs(programs: Sequence[tuple[Path, set[str]]], digits: Path) -> dict[str, _Score]:
    """Score the peers that watch a training on programs, each with the outcomes that are right."""
    scores = {kind.name: _Score() for kind in PEERS if kind.requirement}
    for program, right in programs:
        alarms = _alarms(program, digits)
        if not alarms:  # one peer may have broken the program
            for kind in scores:
                alarms |= _alarms(program, digits, kind)
        for name, score in scores.items():
            kinds = {*alarms.get(name, ())}
            score.add(Said(name in alarms, [{kind} for kind in kinds], kinds), right)
    return scores


def _alarms(program: Path, digits: Path, only: str = "") -> dict[str, list[str]]:
    """Return each peer's alarms while a program runs; nothing if the program broke, or has no Monitor."""
    command = [sys.executable, "-m", "experiments.detection.watch_program", str(program), *([only] if only else [])]
    env = os.environ | {"SPOKEN_DIGITS": str(digits.absolute())}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    alarms: dict[str, list[str]] = json.loads(done.stdout) if done.returncode == 0 else {}
    return alarms


def _case_columns(which: str, cases: Sequence[Case], digits: Path) -> Iterator[tuple[str, dict[str, _Score]]]:
    """Yield the columns of the logs and of the programs among some cases."""
    logs, programs = ([case for case in cases if case.is_program == own] for own in (False, True))
    right = {case: _expected(case.right) for case in cases}
    peers = _score_logs([_Log(case.path, right[case]) for case in logs])
    yield f"logs {which}", peers | {_OURS: _score_ours(logs, digits)}
    peers = _score_programs([(case.path, right[case]) for case in programs], digits)
    yield f"programs {which}", peers | {_OURS: _score_ours(programs, digits)}


def _score_ours(cases: Sequence[Case], digits: Path) -> _Score:
    """Score ours, which is asked for the cause too."""
    score = _Score()
    for case, text in run(cases, digits):
        right = is_right(case, text)
        score.of += 1
        score.right += right
        score.read += right or bool(re.match("|".join(get_args(Outcome)), verdict(case, text)))
    return score


def _columns(half: Half, shared: Path) -> Iterator[tuple[str, dict[str, _Score]]]:
    """Yield the columns of the table: its head, and the score of each tool."""
    for distance in (10, 100):
        with tempfile.TemporaryDirectory() as folder:
            logs = [*_corpus_logs(half, distance, Path(folder))]
            yield f"{half}, every {distance} steps", _score_logs(logs)
    digits = shared / "data" / "spoken-digits"
    with tempfile.TemporaryDirectory() as folder:
        yield from _case_columns("held back", unpacked("test", Path(folder)), digits)
    field, cases = shared / "logs" / "field", shared / "cases"
    if not field.is_dir() or not cases.is_dir():
        print(f"{shared} has no logs/field or no cases: these columns are left out. Give the folder as an argument.")
        return
    others = [_Log(field / name, right) for name, right in _FIELD.items() if (field / name).exists()]
    yield "logs of other people", _score_logs(others)
    yield from _case_columns("among the cases", read_cases(cases), digits)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", nargs="?", type=Path, default=Path("../shared"), help="has cases/ and logs/field/")
    default: Half = "field_test" if packed("field_test").exists() else "field_design"
    parser.add_argument("--half", choices=get_args(Half), default=default)
    options = parser.parse_args()
    columns = {}
    for head, scores in _columns(options.half, options.shared):
        print(f"scored: {head}", file=sys.stderr)
        columns[head] = scores
    table = TextTable("tool", *columns, box=None)
    for name in _tools():
        table.add_row(name, *(str(scores.get(name, "–")) for scores in columns.values()))
    Console(width=220).print(table)


def _tools() -> list[str]:
    """The names of ours and of all peers. Print a line on stderr for each reader of logs that is not installed."""
    for kind in LOG_PEERS:
        if kind.command() is None:
            print(f"Without {kind.name}: it is not installed. pip install {kind.requirement}", file=sys.stderr)
    return [_OURS, *(kind.name for kind in LOG_PEERS), *(kind.name for kind in PEERS if kind.requirement)]


if __name__ == "__main__":
    main()
