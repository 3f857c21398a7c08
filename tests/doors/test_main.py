"""The console command `stability`, and what all doors have in common."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commandline import run_module
from tests.support.interpreters import EXTRAS, run_without_extras

DOORS = ("train", "explain", "repair", "evaluate", "report", "diagnose", "send")


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    done = run_module("stability", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in DOORS:
        assert f"\n    {name} " in done.stdout
    program = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('stability', run_name='__main__', alter_sys=True)\n"
        "finally: print('LOADED', sys.modules.keys() & {'numpy', 'torch', 'matplotlib', 'rich', 'hydra', 'mlflow'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED set()\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", "== Configuration groups =="),
        ("explain", "usage: python -m stability.explain "),
        ("repair", "usage: python -m stability.repair "),
        ("evaluate", "usage: python -m stability.evaluate "),
        ("report", "usage: python -m stability.report "),
        ("diagnose", "usage: python -m stability.diagnose "),
        ("send", "usage: python -m stability.send "),
    ],
)
def test_the_help_of_a_command_is_that_of_its_door(name: str, words: str) -> None:
    done = run_module("stability", name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_module(f"stability.{name}", "--help").stdout
    assert words in done.stdout


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], []])
def test_an_unknown_command_is_an_error_that_names_the_commands(arguments: list[str]) -> None:
    done = run_module("stability", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error") == 1
    if arguments == ["nope"]:
        assert all(name in done.stderr for name in ("nope", *DOORS))


def test_a_command_gets_its_arguments_and_gives_its_exit_status(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{step},{50 - step}\n" for step in range(30)))
    done = run_module("stability", "diagnose", tmp_path / "log.csv", "--figure", tmp_path / "log.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log.png").exists()
    done = run_module("stability", "train", "steps=0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: steps=0")


@pytest.mark.parametrize("name", ["train", "evaluate", "report", "send"])
def test_with_the_base_packages_alone_a_door_says_what_to_install(name: str, tmp_path: Path) -> None:
    program = (
        f"sys.argv[1:] = ['{tmp_path}']\n"
        f"import runpy; runpy.run_module('stability.{name}', run_name='__main__', alter_sys=True)"
    )
    done = run_without_extras(program, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Not installed: ")
    assert done.stderr.endswith(" Run: pip install 'training-stability[train]'\n")
    assert done.stderr.count("\n") == 1
    assert all(package in done.stderr for package in EXTRAS)
    assert [*tmp_path.iterdir()] == []
