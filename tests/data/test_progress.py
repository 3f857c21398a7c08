"""Progress shows on a terminal only, and a process that waits for another one prints it."""

import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from stability.data import progress


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    work()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    work()
    out, err = capsys.readouterr()
    assert (out, "checking the data" in err) == ("", True)


def work() -> None:
    with progress.progress("checking the data", 2) as advance:
        for _ in range(2):
            advance(1)


def test_the_second_process_waits_and_prints_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
    entered: list[bool] = []

    def second() -> None:
        with progress.locked(tmp_path / "lock", "writing data"):
            entered.append(True)

    thread = threading.Thread(target=second)
    with FileLock(tmp_path / "lock"):
        thread.start()
        printed = ""
        while not printed.endswith("\n") and thread.is_alive():  # print() writes the line and its end apart
            time.sleep(0.01)
            printed += capfd.readouterr().err
        assert printed == "Another process is writing data: waiting for it.\n"
        assert not entered
    thread.join()
    assert entered
