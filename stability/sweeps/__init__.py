"""Studies of many trials, run through Hydra."""
