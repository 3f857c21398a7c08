"""The benchmarks that a person reads run to their end, with tiny settings, and print what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine

_ROOT = Path(__file__).parents[2]
_TINY = ("model.units=8", "model.layers=2", "batch.size=8")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("module", "arguments", "line"),
    [
        ("step_speed", (), "ratio ours/plain, median of 10 pairs: "),
        ("data_speed", (), "floor: a copy of the batch"),
        ("stack_speed", ("--quick", "--trials", "1", "2"), "stack of one / plain"),
    ],
)
def test_a_benchmark_prints_its_result(cli: CommandLine, module: str, arguments: tuple[str, ...], line: str) -> None:
    out = run_benchmark(cli, module, *_TINY, *cli.synthetic, f"outputs={cli.folder}", *arguments)
    assert line in out
    assert "nan" not in out


def test_benchmark_of_the_engines(cli: CommandLine) -> None:
    out = run_benchmark(cli, "engine_speed", "--units", "32", "--trials", "1", "2", "--rows", "4", "--frames", "6")
    assert "PyTorch's GRU, in turn" in out
    assert "nan" not in out


def test_benchmark_of_reports_on_runs_that_exist(cli: CommandLine) -> None:
    out = run_benchmark(cli, "runs_speed", "--runs", "40", "--readings", "20")
    assert "40 runs with 20 readings" in out
    assert [word for word in ("table", "hydra", "mlflow") if f" {word} " in out] == ["table", "hydra", "mlflow"]


def run_benchmark(cli: CommandLine, module: str, *arguments: str) -> str:
    """Run a benchmark and return what it prints."""
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "COLUMNS": "200"}
    return subprocess.run(command, cwd=cli.folder, env=environment, capture_output=True, text=True, check=True).stdout
