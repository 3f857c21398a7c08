"""A study's report: its text, figures and page."""
