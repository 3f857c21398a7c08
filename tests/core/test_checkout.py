"""The commit that reports and runs name."""

import subprocess
from pathlib import Path

import pytest

from stability.core import checkout


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert checkout.git_commit() is None
    (tmp_path / "file").write_text("1")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "1"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert checkout.git_commit() == head
    (tmp_path / "file").write_text("2")
    assert checkout.git_commit() == f"{head}-dirty"
