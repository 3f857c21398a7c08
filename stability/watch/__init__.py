"""Watches training loops of other programs."""
