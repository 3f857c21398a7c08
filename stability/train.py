"""The front door: train one trial, or with --multirun a sweep of them, and rule on each.

python -m stability.train optimizer=official aug=strong

Exit status: 0 with a verdict, whatever it is; 1 with a message on what is wrong; 130 after Ctrl-C; and 75 (EX_TEMPFAIL)
after SIGTERM in training, which schedulers send before they take a machine away. After the last two the same command
goes on from the checkpoint that was written.
"""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stability.config.hydra import conf_folder, explain_error, register_schema, resolve_config
from stability.core.errors import CallbackError, Interrupted, StabilityError, write_error


@hydra.main(config_path=str(conf_folder()), config_name="config", execution_whitelist="stability.*")
def _job(cfg: DictConfig) -> float | None:
    running = HydraConfig.get()
    folder = Path(running.runtime.output_dir)
    if running.mode == RunMode.MULTIRUN:
        from stability.sweeps.sweep_trial import run_in_sweep

        return run_in_sweep(cfg, folder)
    from stability.trials.run import run_trial  # late: PyTorch takes seconds, and --help needs none of it

    try:
        run_trial(resolve_config(cfg), folder)
    except StabilityError as error:
        sys.exit(f"error: {error}")  # Hydra prints an exception that passes through it
    return None


def main() -> None:
    """Run Hydra on the command line. What a user can mend ends in one message and exit status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands us the exceptions as they are, instead of printing them
    # PyTorch's threads spin while they wait, and starve all else on their cores. So many turns take a millisecond;
    # then they sleep. It is read when PyTorch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    logging.raiseExceptions = False  # on a full disk Hydra's log of a job would fail with a traceback
    register_schema()
    try:
        _run()
    except StabilityError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain_error(error)}")
    except OSError as error:  # Hydra makes the trial's folder, and opens a log in it, before the trial begins
        sys.exit(f"error: {_explain_folder(error)}")
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            sys.exit(f"error: {_explain_folder(error.__cause__)}")
        if "Config group override" in str(error):  # GROUP=null
            sys.exit(f"error: {error}")
        raise
    except KeyboardInterrupt as error:
        print(str(error) or "Stopped. The same command goes on from there.", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, Interrupted) else Interrupted.exit_status)


def _run() -> None:
    try:
        _job()
    except CallbackError as stop:
        raise stop.error from stop.error.__cause__


def _explain_folder(error: OSError) -> StabilityError:
    return write_error(error.filename or "the output folder", error)


if __name__ == "__main__":
    main()
