"""Analyses the finished trials of a study: effects, rulings on claims, boundaries."""
