"""What became of a trial: signals in, findings and a verdict out. Knows no trainer."""
