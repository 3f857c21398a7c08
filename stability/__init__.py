"""Finds out, by controlled experiment, why a training run blew up or never got going."""
