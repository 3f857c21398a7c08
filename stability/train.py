"""The front door: train one trial and rule on it.

python -m stability.train optimizer=official aug=strong
"""

import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stability import config
from stability.errors import StabilityError, cannot_write
from stability.studies import bisection


@hydra.main(config_path=str(config.folder()), config_name="config")
def _job(cfg: DictConfig) -> None:
    from stability.training.trial import run_trial  # late: PyTorch takes seconds, and --help needs none of it

    running = HydraConfig.get()
    try:
        run_trial(config.resolve(cfg), Path(running.runtime.output_dir))
    except StabilityError as error:
        if running.mode == RunMode.MULTIRUN:
            raise  # the other trials are run, and Hydra tells which one failed
        sys.exit(f"error: {error}")


def main() -> None:
    """Run Hydra on the command line. What a user can mend ends in one message and exit status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands us the exceptions as they are, instead of printing them
    config.register()
    bisection.register()
    try:
        _job()
    except StabilityError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error)}")
    except OSError as error:  # Hydra makes the trial's folder, and opens a log in it, before the trial begins
        sys.exit(f"error: {_explain_folder(error)}")
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            sys.exit(f"error: {_explain_folder(error.__cause__)}")
        if "Config group override" in str(error):  # GROUP=null
            sys.exit(f"error: {error}")
        raise
    except KeyboardInterrupt as error:
        print(str(error) or "Stopped.", file=sys.stderr)
        sys.exit(130)


def _explain(error: BaseException) -> str:
    """Hydra's message without its internals, and the names that there are where one was wrong."""
    text = "\n".join(str(e).strip() for e in (error, error.__cause__) if e is not None)
    text = re.sub(r"\w+ raised while resolving interpolation: *", "", text)
    text = re.sub(r"\nTo append to your config use .*|\n *(full_key|reference_type|object_type)[:=].*", "", text)
    owner = re.search(r"not in '(\w+)'", text)
    if owner:
        text += f"\nThere are: {', '.join(f.name for f in fields(getattr(config, owner[1])))}."
    return text


def _explain_folder(error: OSError) -> StabilityError:
    return cannot_write(error.filename or "the output folder", error)


if __name__ == "__main__":
    main()
