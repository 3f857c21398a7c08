"""Diagnoses a training: makes findings and a verdict from its signals. It imports no trainer, and no PyTorch."""
