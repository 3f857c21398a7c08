"""Train one trial, or with --multirun a sweep of trials, and give each a verdict.

python -m stability.train optimizer=official aug=strong

Exit status:
    0: every trial has its verdict, whatever it is.
    1: something has to be corrected first; a message says what.
    130: stopped by Ctrl-C.
    75 (EX_TEMPFAIL): stopped by SIGTERM, which schedulers send before they take a machine away.
After 130 and 75, the same command goes on from there: a trial that had trained has written a checkpoint.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stability.core.errors import CallbackError, Interrupted, StabilityError, write_error
from stability.core.extras import install_command, require
from stability.core.passwords import refuse_password
from stability.core.stopping import STOPPED, signals_handled, stop_requested

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run the command line, `sys.argv`. A problem that the user can correct ends in one message and exit status 1."""
    try:
        with signals_handled():
            _run()
    except KeyboardInterrupt as error:
        print(str(error) or STOPPED, file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, Interrupted) else Interrupted.exit_status)


def _run() -> None:
    try:
        _check_packages()
        for argument in sys.argv[1:]:  # before Hydra, which writes what it is given
            name, _, value = argument.partition("=")
            refuse_password(name.lstrip("+"), value)
    except StabilityError as error:
        sys.exit(f"error: {error}")
    from hydra.errors import HydraException  # late: these packages may be missing
    from omegaconf.errors import OmegaConfBaseException

    from stability.config.commandline import full_words
    from stability.config.hydra import explain_error

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises exceptions as they are, instead of printing them
    # While PyTorch's threads wait, they spin, and take the time of other processes on their cores. With this many turns
    # they spin for a millisecond and then sleep. The variable is read when PyTorch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    logging.raiseExceptions = False  # on a full disk, Hydra's log of a job would print a traceback
    try:
        sys.argv[1:] = full_words(sys.argv[1:])
        _run_hydra()
    except StabilityError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain_error(error)}")
    except OSError as error:  # Hydra makes the trial's folder and opens a log in it, before the trial begins
        sys.exit(f"error: {_folder_error(error)}")
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            sys.exit(f"error: {_folder_error(error.__cause__)}")
        if "Config group override" in str(error):  # GROUP=null, GROUP=3
            sys.exit(f"error: {error}. Give the name of an option, as in model=small.")
        if "Only one of --run" in str(error):  # --multirun --cfg job
            sys.exit(f"error: {error}. To see what a sweep would train: --multirun sweep.dry_run=true")
        raise


def _check_packages() -> None:
    require("train")
    import hydra

    # Other projects pin 1.3, with which our sweepers and configuration do not work.
    if not hydra.__version__.startswith("1.4"):
        raise StabilityError(
            f"Training needs Hydra 1.4, but {hydra.__version__} is installed. Run: {install_command('train')}"
        )


def _run_hydra() -> None:
    import hydra

    from stability.config.hydra import conf_folder, register_schema

    register_schema()
    run = hydra.main(config_path=str(conf_folder()), config_name="config", execution_whitelist="stability.*")(_run_job)
    try:
        run()
    except (Exception, CallbackError) as raised:
        error = raised.error if isinstance(raised, CallbackError) else raised
        if interruption := stop_requested():  # a library that a signal ends half-way may fail as it tidies up
            raise interruption(STOPPED) from error
        raise error from error.__cause__


def _run_job(cfg: "DictConfig") -> float | None:
    """Train what Hydra composed. In a sweep, return the sweeper's objective."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from stability.config.hydra import resolve_config

    running = HydraConfig.get()
    folder = Path(running.runtime.output_dir)
    # Both are imported late: PyTorch takes seconds, and --help works without it.
    if running.mode == RunMode.MULTIRUN:
        from stability.sweeps.sweep_trial import run_in_sweep

        return run_in_sweep(cfg, folder)
    from stability.trials.run import run_trial

    try:
        run_trial(resolve_config(cfg), folder)
    except StabilityError as error:
        logging.getLogger("stability").info("error: %s", error)  # into the trial's log
        sys.exit(f"error: {error}")  # Hydra would print the exception
    return None


def _folder_error(error: OSError) -> StabilityError:
    return write_error(error.filename or "the output folder", error)


if __name__ == "__main__":
    main()
