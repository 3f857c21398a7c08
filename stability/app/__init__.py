"""Makes a study of a sweep of somebody's own Hydra app: the callback of `stability.hydra`, and what it needs."""
