"""What a terminal shows during a sweep."""

import fcntl
import os
import pty
import re
import struct
import termios

import pytest

from tests.support.commandline import CommandLine
from tests.support.sweeps import FACTORS


@pytest.mark.slow
def test_a_terminal_shows_bars_and_the_verdicts_so_far(cli: CommandLine) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    many = ("steps=200", "schedule.lr_max=0.005,0.002")
    process = cli.start("--multirun", *FACTORS, *many, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while some := os.read(ours, 1 << 16):
            seen += some
    except OSError:
        pass  # how Linux says that the other side was closed
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    assert any(re.fullmatch(r"about \d+ (s|min) left +[━╸╺]+ +0/8 +[\d.]+ steps/s", line) for line in lines)
    trial = r"epsilon [\de.-]+ +lr [\d.]+ +seed \d"
    assert any(re.fullmatch(rf"{trial} +[━╸╺]+ +\d+/200 +loss [\d.]+ +[\d.]+ steps/s", line) for line in lines)
    assert any(re.search(r"^0\.005 .*\d·", line) for line in lines), "a cell with trials to do"
    assert any(re.fullmatch(r"\[8/8\] \w+  epsilon .* PER .* s", line) for line in lines)
    (counts,) = [line for line in lines[-6:] if re.fullmatch(r"(\w \w+ \d+ *)+", line)]  # above the report
    assert sum(map(int, re.findall(r"\d+", counts))) == 8, counts
