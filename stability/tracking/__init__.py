"""Sends trials and studies to MLflow."""
