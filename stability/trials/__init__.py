"""Trains a trial from its start, or its last checkpoint, to its verdict: alone, or with others in one stack."""
