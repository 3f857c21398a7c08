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
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stability import config
from stability.errors import Interrupted, StabilityError


@hydra.main(config_path=str(config.folder()), config_name="config")
def _job(cfg: DictConfig) -> None:
    from stability.training.trial import run_trial  # late: PyTorch takes seconds, and --help needs none of it

    run_trial(config.resolve(cfg), Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """Run Hydra on the command line. What a user can mend ends in one message and exit status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands us the exceptions as they are, instead of printing them
    config.register()
    try:
        _job()
    except StabilityError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error)}")
    except Interrupted as error:
        print(error, file=sys.stderr)
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


if __name__ == "__main__":
    main()
