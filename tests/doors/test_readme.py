"""What README.md and the pages in docs/ say can be done, done."""

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stability import diagnose, report, send
from stability.config.names import full_name
from stability.config.schema import Sweep
from stability.diagnosis.signals import SIGNALS
from tests.support import toy_ctc
from tests.support.configs import composed
from tests.support.pages import DOCS, PAGES, ROOT, anchors, code_blocks, code_with, links, name

README = ROOT / "README.md"
TEXT = "\n".join(page.read_text() for page in PAGES)
OF_HYDRA = {"hydra/launcher": {"basic"}, "hydra/sweeper": {"optuna"}}


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 1200


def test_every_option_is_listed_with_its_command_at_its_head() -> None:
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        assert path.stem in re.findall(r"[`/=](\w+)[`\s]", TEXT), path
        if path.parent.name == "claims":  # a file that is ruled on, not an option of a trial
            continue
        first, second, *_ = path.read_text().splitlines()
        command = second if first == "# @package _global_" else first
        assert re.match(r"# python -m stability\.(train|explain|repair) ", command), path


def test_every_signal_is_listed() -> None:
    table = (DOCS / "reference/files.md").read_text()
    for signal in SIGNALS.values():
        assert f"`{signal.name}`" in table, signal.name


@pytest.mark.parametrize("door", [diagnose, report, send])
def test_every_option_of_a_command_is_listed(door: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        door.main(["--help"])
    page = (DOCS / "reference/command-line.md").read_text()
    for option in {*re.findall(r"(--[a-z]+)", capsys.readouterr().out)} - {"--help"}:
        assert f"`{option}" in page, option


@pytest.mark.parametrize(("page", "target"), [(page, target) for page in PAGES for target in links(page)])
def test_every_link_has_a_target(page: Path, target: str) -> None:
    path, _, section = target.partition("#")
    to = (page.parent / path).resolve() if path else page
    assert to.exists(), name(page)
    if section:
        assert section in anchors(to), name(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_page_is_in_the_site(page: Path) -> None:
    if page != README:
        assert f"{page.relative_to(DOCS)}\n" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_imports_existing_names(page: Path) -> None:
    for code in code_blocks(page, "python"):
        imports: list[ast.stmt] = [
            node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(body=imports, type_ignores=[]), name(page), "exec"), {})


def overrides() -> list[tuple[str, str]]:
    """Each NAME=VALUE that a page gives to `stability.train`, but for the page whose command `tests/docs` runs."""
    found = []
    for page in [page for page in PAGES if page.name != "extend.md"]:
        for block in code_blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if "stability.train " in line and "--config-dir" not in line:  # which has experiments of its own
                    words = shlex.split(line.partition("stability.train ")[2], comments=True)
                    found += [(name(page), word) for word in words if "=" in word]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "override"), overrides())
def test_the_commands_name_existing_settings(page: str, override: str) -> None:
    key, _, value = override.removeprefix("+").partition("=")
    group = ROOT / "conf" / key
    if group.is_dir():
        there = {path.stem for path in group.glob("*.yaml")} | OF_HYDRA.get(key, set())
        assert {*value.split(",")} <= there, page
    elif not key.startswith(("hydra.", "settings.")):  # the second are a program's own
        *groups, last = full_name(key).split(".")
        settings: Any = Sweep if groups == ["sweep"] else reduce(getattr, groups, composed())
        assert last in {field.name for field in fields(settings)}, page


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/own-loop.md"])
def test_a_loop_of_your_own(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(8, 5)
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "batches": [toy_ctc.batch(step) for step in range(5)],
        "ctc": toy_ctc.ctc,
    }
    exec(code_with(ROOT / page, "Monitor("), names)
    assert capsys.readouterr().out.startswith("slow")  # as the terminal shows it


def test_bringing_your_own_data(tmp_path: Path) -> None:
    page = DOCS / "how-to/own-data.md"
    (code,) = code_blocks(page, "python")
    command = re.search(r"python -m stability.train (data=t15 data.path=my_data)", page.read_text())
    assert command is not None
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    small = ["steps=2", "batch.size=8", "model.units=8", "tracking=none"]
    arguments = [sys.executable, "-m", "stability.train", *command[1].split(), *small]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "80 utterances to train on and 20 to validate on, 4 days, 40 features" in done.stdout
