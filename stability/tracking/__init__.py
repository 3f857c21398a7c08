"""Sends trials and studies to MLflow. Other rooms use it through `api`."""
