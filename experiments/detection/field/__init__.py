"""Trainings as other people make them: recipes, traces and labels, and a comparison of several tools."""
