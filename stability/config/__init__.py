"""The configuration of a trial: its typed schema, its names, and how Hydra reads it."""
