"""The front door: `python -m stability.train optimizer=official aug=strong` trains one trial and rules on it."""
import os
import hydra
from omegaconf import DictConfig
from stability import config
@hydra.main(version_base=None, config_path=str(config.folder()), config_name="config")
def _job(cfg: DictConfig) -> None:
    print(config.resolve(cfg), config.trial_name(config.resolve(cfg)))
config.register()
if __name__ == "__main__":
    _job()
