"""Watches training loops that are not ours."""
