"""Sends trials and studies to MLflow; `api` is the face."""
