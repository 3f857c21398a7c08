"""Judges a training: signals in, findings and a verdict out. It imports no trainer, and no PyTorch."""
