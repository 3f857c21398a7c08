"""The signals of a trial: their names, their units, and the files in a trial's folder that keep them.

A trial's folder holds `signals.csv` (one row a training step) and `validation.csv` (one row a validation).
Both start with a column `step`; numbers are written so that they read back as the same float32.
"""
