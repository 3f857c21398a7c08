"""Trainings as other people make them: their recipes, traces, labels, and the table beside other tools."""
