"""How to extend stability: all changes on the page are applied to a copy of the checkout, and work together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stability.core.files import SIGNALS_FILE
from stability.diagnosis.table import read_table
from tests.support.pages import DOCS, ROOT, code_blocks, titled_blocks

PAGE = DOCS / "how-to/extend.md"
SMALL = ("model.units=8", "model.layers=2", "batch.size=8", "steps=3", "data.synthetic.train_utterances=4")


def apply(change: str, path: Path) -> None:
    """Apply a change: in each of its places, lines with + replace those with -, next to the lines with neither."""
    text = path.read_text()
    for place in re.split(r"^@@.*\n", change, flags=re.MULTILINE):
        lines = place.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(old.strip("\n")) == 1, f"{path.name} has changed, and the page has not:\n{old}"
        text = text.replace(old.strip("\n"), new.strip("\n"))
    path.write_text(text)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with all changes of the page."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("conf", "stability"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for language, title, code in titled_blocks(PAGE):
        if language == "diff":
            apply(code, copy / title)
        else:
            assert not (copy / title).exists(), title
            (copy / title).write_text(code)
    return copy


def run(extended: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(extended)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=extended, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("code", code_blocks(PAGE, "python"))
def test_the_examples_work(extended: Path, code: str) -> None:
    run(extended, "-c", code)


def test_the_command_trains_with_what_was_added(extended: Path) -> None:
    (block,) = code_blocks(PAGE, "bash")
    run(extended, *block.split()[1:], *SMALL)
    (trial,) = (path.parent for path in extended.glob("outputs/single/*/verdict.json"))
    assert "kind: sgd" in (trial / "config.yaml").read_text()
    assert (read_table(trial / SIGNALS_FILE)["largest_loss"] > 0).all()
    assert (extended / "outputs/trials.txt").read_text() == f"{trial.name} undecided\n"


def test_the_added_modules_are_linted(extended: Path) -> None:
    new = [str(extended / title) for language, title, _ in titled_blocks(PAGE) if language == "python"]
    run(extended, "-m", "ruff", "check", *new)
