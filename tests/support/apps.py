"""A small Hydra app of somebody else's, with the three lines of YAML that make studies of its sweeps."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.core.checkout import ROOT
from tests.support.commandline import Ended, Forked, checked, ended

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.support.preload"])

_CONFIG = """\
lr: 0.1
width: 4
seed: 0
fault: null      # until a file `mended` is there, seed 1 may crash, or wait; die
log: true        # whether it writes a log
monitor: false   # whether it has a Monitor
hydra:
  callbacks:
    stability: {_target_: stability.hydra.StabilityCallback, tracking: none}
"""

# Training explodes where lr is above 2.5.
_SCRIPT = """\
import csv, math, os, sys, time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


def watch(cfg):
    import torch
    from stability import Monitor

    torch.manual_seed(cfg.seed)
    x = torch.randn(32, cfg.width)
    model = torch.nn.Linear(cfg.width, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.lr)
    monitor = Monitor(model, optimizer)
    for step in range(60):
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        if monitor.step(loss):
            break
        optimizer.step()


@hydra.main(config_path=".", config_name="config", version_base=None)
def main(cfg):
    print(f"running lr {cfg.lr} seed {cfg.seed}", flush=True)
    if cfg.fault == "crash" and cfg.seed == 1 and not os.path.exists("mended"):
        if cfg.lr > 2.5:
            sys.exit("no such data")
        raise ValueError("no such data")
    while cfg.fault == "wait" and cfg.seed == 1 and not os.path.exists("mended"):
        time.sleep(0.01)
    if cfg.fault == "die":
        os._exit(7)
    if cfg.monitor:
        watch(cfg)
    elif cfg.log:
        folder = Path(HydraConfig.get().runtime.output_dir)
        with (folder / "log.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "grad_norm", "val_wer"])
            explodes = cfg.lr > 2.5
            for step in range(400):
                noise = 0.05 * math.sin(12.9 * step + cfg.seed)
                late = max(0, step - 100) if explodes else 0
                loss = (1.0 if explodes else 4 * math.exp(-step / 80) + 0.1) * 1.1**late * (1 + noise)
                norm = (1 + noise) * 1.1**late
                wer = max(0.1, 1 - step / 200) if step % 50 == 49 and not explodes else ""
                writer.writerow([step, loss, norm, wer])
    return cfg.lr + cfg.seed


main()
"""


@dataclass(frozen=True)
class App:
    """An app in a folder of its own."""

    folder: Path

    @classmethod
    def write(cls, folder: Path, **changes: str) -> "App":
        """Write the app. `changes`: {name: value} of its configuration."""
        config = _CONFIG + "".join(f"{name}: {value}\n" for name, value in changes.items())
        (folder / "config.yaml").write_text(config)
        (folder / "train.py").write_text(_SCRIPT)
        return cls(folder)

    def sweep(self, *overrides: str, status: int = 0) -> Ended:
        """Run a sweep of the app to its end in a process that has imported the packages already."""
        printed = Path(tempfile.mkdtemp(dir=self.folder))
        arguments = (self.folder, ["--multirun", *overrides], dict(os.environ), [printed / n for n in ("out", "err")])
        process: Any = _FORKED.Process(target=_become_app, args=arguments)
        process.start()
        return ended(Forked(process, printed), status)

    def sweep_with(self, python: str | Path, *overrides: str, status: int = 0) -> Ended:
        """Run a sweep of the app to its end with another Python."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        command = [python, "train.py", "--multirun", *overrides]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        return checked(Ended(done.stdout, done.stderr), done.returncode, status)

    def jobs(self, study: str = "multirun/train") -> dict[str, Path]:
        """Return {overrides: folder} of the jobs of a study."""
        folders = (path for path in (self.folder / study).iterdir() if (path / ".hydra").exists())
        return {path.name.rpartition("-")[0]: path for path in folders}


def _become_app(folder: Path, arguments: list[str], environment: dict[str, str], printed: Sequence[Path]) -> None:
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, PYTHONWARNINGS="ignore")
    sys.argv[1:] = arguments
    import warnings

    warnings.simplefilter("ignore")
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
