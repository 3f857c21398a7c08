"""A program that nobody here touched: it trains something in a moment, and writes a log as many programs do."""

import json
import os
import sys
from pathlib import Path
from typing import Any

# It diverges where the rate is 1 or more. Where it is told to pause, it waits after each step.
PROGRAM = """
import argparse, json, math, os, random, signal, sys, time

options = argparse.ArgumentParser()
options.add_argument("--lr", type=float, default=0.1)
options.add_argument("--seed", type=int, default=0)
options.add_argument("--steps", type=int, default=60)
options.add_argument("--pause", type=float, default=0)
options.add_argument("--config")
options.add_argument("--resume", action="store_true")
options.add_argument("--note")
given = options.parse_args()
if given.config:
    vars(given).update(json.load(open(given.config)))
random.seed(given.seed)
begin = 0
if given.resume:
    begin = int(open("state").read())
signal.signal(signal.SIGTERM, lambda *_: (open("state", "w").write(str(step + 1)), sys.exit(143)))
with open("log.csv", "a", buffering=1) as log:
    if not begin:
        print("step,loss,grad_norm,val_wer", file=log)
    for step in range(begin, given.steps):
        size = math.exp(-step / 10) if given.lr < 1 else math.exp(min(step, 300) * 0.5)
        noise = random.uniform(0.9, 1.1)
        wer = max(0.1, size * noise) if step % 10 == 9 and given.lr < 1 else ""
        print(f"{step},{3 * size * noise},{size * noise},{wer}", file=log)
        time.sleep(given.pause)
print("trained with", given)
"""


def write_program(folder: Path) -> None:
    """Write the program as `train.py` into the folder in which a command is given."""
    (folder / "train.py").write_text(PROGRAM)


def command(arguments: str = "--lr {lr} --seed {seed}", *, interpreter: str = f"{sys.executable} -S -E") -> str:
    """The override that starts the program with these arguments."""
    return f"trainer.command={interpreter} train.py {arguments}"


def runs(trial: Path) -> list[dict[str, Any]]:
    """What a trial's folder notes of the runs of its program."""
    found: list[dict[str, Any]] = json.loads((trial / "command.json").read_text())
    return found


def is_running(number: int) -> bool:
    """Return whether a process runs. One that has ended and was not waited for does not."""
    try:
        with Path(f"/proc/{number}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def group_of(trial: Path, name: str = "pid") -> int:
    """The process number that a program has written into its folder."""
    return int((trial / "work" / name).read_text() or os.getpid())
