"""Runs the real command line, each command in a process of its own."""

import contextlib
import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from stability.core.checkout import ROOT
from stability.train import main

_MODEL = ("model.units=8", "model.layers=2", "batch.size=8", "steps=12", "tracking=none")
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.support.preload"])
_SET = ("features=8", "days=4", "words=1", "train_utterances=10", "val_utterances=4")


class Ended(NamedTuple):
    """What a command that has ended printed."""

    out: str
    err: str


@dataclass(frozen=True)
class Forked:
    """A command in a process that was forked from one that has imported the packages already."""

    process: Any
    printed: Path  # the folder of what it prints

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        status: int | None = self.process.exitcode
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self) -> Ended:
        """Wait for its end."""
        self.process.join()
        return Ended(*((self.printed / name).read_text() for name in ("out", "err")))

    @property
    def returncode(self) -> int | None:
        return self.poll()


@dataclass(frozen=True)
class CommandLine:
    """Runs `python -m stability.train` with tiny settings.

    Args:
        folder: Where the commands run.
        sets: Where synthetic sets are kept, for several tests.
        started: The processes that were started, for the fixture to kill.
    """

    folder: Path
    sets: Path
    started: list["subprocess.Popen[str] | Forked"] = field(default_factory=list)

    @property
    def synthetic(self) -> list[str]:
        """Overrides for a tiny synthetic set."""
        return [f"data.path={self.sets}", *(f"data.synthetic.{setting}" for setting in _SET)]

    def start(self, *overrides: str, **options: Any) -> subprocess.Popen[str]:
        """Start to train a tiny trial. Its data are synthetic unless `overrides` choose others."""
        return self.start_plain(*self._tiny(overrides), **options)

    def start_plain(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command with these arguments alone."""
        usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "stability.train", *arguments]
        process = subprocess.Popen(command, cwd=self.folder, **(usual | options))
        self.started.append(process)
        return process

    def fork(self, *overrides: str) -> Forked:
        """Like `start`, with a process that is forked from one that has imported the packages already."""
        return self.fork_plain(*self._tiny(overrides))

    def fork_plain(self, *arguments: str) -> Forked:
        """Like `start_plain`, with such a process."""
        printed = Path(tempfile.mkdtemp(dir=self.folder.parent))
        self.started.append(process := _fork("stability.train", arguments, self.folder, printed))
        return process

    def run(self, *overrides: str, status: int = 0, **options: Any) -> Ended:
        """Train a tiny trial to its end, and check the exit status.

        If no options for the process are given, it is forked from one that has imported the packages already.
        """
        if options:
            return ended(self.start(*overrides, **options), status)
        return ended(self.fork(*overrides), status)

    def _tiny(self, overrides: Sequence[str]) -> list[str]:
        if "trainer=command" in overrides:  # it has no model and no data
            return ["tracking=none", *overrides]
        return [*_MODEL, *([] if "data=t15" in overrides else self.synthetic), *overrides]

    def fail(self, *overrides: str, **options: Any) -> str:
        """Run a command that must fail, and return its one message."""
        return the_message(self.run(*overrides, status=1, **options))

    def refuse(self, *overrides: str) -> str:
        """Like `fail`, for a command that fails before it trains: it runs in this process, which is much faster."""
        log = logging.getLogger()
        handlers, level = [*log.handlers], log.level
        arguments = ["stability.train", *self._tiny(overrides)]
        with mock.patch.object(sys, "argv", arguments), contextlib.chdir(self.folder), warnings.catch_warnings():
            warnings.simplefilter("default")  # as in a process of its own
            with pytest.raises(SystemExit) as end:
                main()
        for added in [handler for handler in log.handlers if handler not in handlers]:  # by Hydra
            log.removeHandler(added)
            added.close()
        log.setLevel(level)
        return the_message(Ended("", f"{end.value}\n"))

    def trial(self, study: str = "single", outputs: str = "outputs") -> Path:
        """Return the folder of the only trial of a study."""
        (folder,) = (path.parent for path in (self.folder / outputs / study).glob("*/config.yaml"))
        return folder


def _fork(module: str, arguments: Sequence[str], folder: Path, printed: Path) -> Forked:
    """Start `python -m MODULE ARGUMENTS` in a process that is forked from one that has imported the packages."""
    given = (module, folder, [*arguments], dict(os.environ), [printed / name for name in ("out", "err")])
    process = _FORKED.Process(target=_become_command, args=given)
    process.start()
    return Forked(process, printed)


def _become_command(
    module: str, folder: Path, arguments: list[str], environment: dict[str, str], printed: Sequence[Path]
) -> None:
    """Become `python -m MODULE`, in a process that was forked for it."""
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # so that it is run again, and not only looked up
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_module(module: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m MODULE ARGUMENTS` to its end, in the checkout."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def fork_module(module: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Do the same in another folder, in a process that is forked from one that has imported the packages."""
    with tempfile.TemporaryDirectory() as printed:
        process = _fork(module, arguments, folder, Path(printed))
        end = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([module, *arguments], process.returncode, *end)


def ended(process: "subprocess.Popen[str] | Forked", status: int) -> Ended:
    """Wait for the end of a command. Check its exit status, and that it printed no traceback."""
    return checked(Ended(*process.communicate()), process.returncode, status)


def checked(end: Ended, actual: int | None, status: int) -> Ended:
    """Check the exit status of a command that has ended, and that it printed no traceback."""
    assert actual == status, (actual, end)
    assert "Traceback" not in end.out + end.err, end
    return end


def the_message(end: Ended) -> str:
    """Return the message of a command that failed. Check that it is the only one."""
    assert end.err.startswith("error: "), end
    assert end.err.count("error") == 1, end
    assert "error" not in end.out, end
    return end.err


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str] | Forked") -> None:
    """Wait until a condition holds, or until the process that should cause it has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.001)


def rows(table: Path) -> Sequence[str]:
    """Return the rows of a table of signals; none if the file is not there yet."""
    return table.read_text().splitlines()[1:] if table.exists() else []
