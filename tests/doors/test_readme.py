"""What the README says can be done, done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.watch.test_monitor import batch, ctc

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_option_is_listed_with_its_command_at_its_head() -> None:
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        assert path.stem in re.findall(r"[`/=](\w+)[`\s]", README), path
        if path.parent.name == "claims":  # a file that is ruled on, no option of a trial
            continue
        first, second, *_ = path.read_text().splitlines()
        command = second if first == "# @package _global_" else first
        assert command.startswith("# python -m stability.train "), path


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]*)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    path, _, section = target.partition("#")
    assert (ROOT / path).exists()
    if section:
        headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(), re.MULTILINE)
        assert section in [heading.lower().replace(" ", "-") for heading in headings]


def code_with(word: str) -> str:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block)
    return str(code)


def test_a_loop_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(8, 5)
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "batches": [batch(step) for step in range(5)],
        "ctc": ctc,
    }
    exec(code_with("Monitor"), names)
    assert "Verdict(outcome='slow'" in capsys.readouterr().out


def test_bringing_your_own_data(tmp_path: Path) -> None:
    code = code_with("write_session")
    command = re.search(r"python -m stability.train (data=t15 data.path=my_data)", README)
    assert command is not None
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    small = ["steps=2", "batch.size=8", "model.units=8", "tracking=none"]
    arguments = [sys.executable, "-m", "stability.train", *command[1].split(), *small]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "80 utterances to train on and 20 to validate on, 4 days, 40 features" in done.stdout
